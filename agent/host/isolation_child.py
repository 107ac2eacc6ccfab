"""The child process of `agent.host.isolation`, which makes the namespaces and runs the program.

Invariant: every mount of the host is read-only before the program starts, so that no write reaches
the host. This process imports few modules and starts no thread.

Standard input has the fields of `isolation.View`, and the program, in the format of `marshal`.
Standard output is one line: `pid N`, with the program's pid in the parent's namespace, or `cannot`
and the reason.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import marshal
import os
import re
import socket
import stat
import struct
import sys
from typing import Any, NoReturn

from agent.host import syscalls

_UNSHARE = {"x86_64": 272, "aarch64": 97}
_MOUNT = {"x86_64": 165, "aarch64": 40}
_UMOUNT2 = {"x86_64": 166, "aarch64": 39}
_MOUNT_SETATTR = {"x86_64": 442, "aarch64": 442}
_PRCTL = {"x86_64": 157, "aarch64": 167}

_NEW_NAMESPACES = 0x20000 | 0x40000000 | 0x20000000  # mounts, network, processes
_DIE_WITH_PARENT, _KILL = 1, 9  # PR_SET_PDEATHSIG, SIGKILL
_READ_ONLY, _NO_SETUID, _NO_DEVICES = 1, 2, 4
_REMOUNT, _BIND, _MOVE, _ALL, _PRIVATE = 1 << 5, 1 << 12, 1 << 13, 1 << 14, 1 << 18
_FLAGS = {"nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1 << 10, "nodiratime": 1 << 11,
          "relatime": 1 << 21}  # fmt: skip
_DETACH = 2  # umount2
_AT_CWD, _RECURSIVE = -100, 0x8000  # mount_setattr


class _CannotStart(Exception):
    """The program cannot be started. The message is the reason."""


def main() -> NoReturn:
    """Start the program that standard input describes, and end with its exit code."""
    given = marshal.load(sys.stdin.buffer)  # noqa: S302 - from our parent
    syscalls.call(_PRCTL, _DIE_WITH_PARENT, _KILL)
    try:
        syscalls.call(_UNSHARE, _NEW_NAMESPACES)
    except OSError as error:
        _say(f"cannot {_words('make namespaces', error)}")
        os._exit(1)
    reader, writer = os.pipe()  # closed by the execution of the program
    pid = os.fork()
    if pid == 0:
        _become(given, writer)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        failure = pipe.read()
    _say(f"cannot {failure}" if failure else f"pid {pid}")
    _, status = os.waitpid(pid, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(1, f"{text}\n".encode())


def _words(step: str, error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"{step}{where}: {os.strerror(error.errno or 0).lower()}"


def _become(given: dict[str, Any], failed: int) -> NoReturn:
    """Become process 1 of the new namespaces: prepare the view of the host, and execute the
    program. An error is written to the descriptor `failed`."""
    step = "start"
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        syscalls.call(_PRCTL, _DIE_WITH_PARENT, _KILL)
        step = "keep mounts apart"
        _mount("", "/", "", _ALL | _PRIVATE)
        step = "enter the host root"
        if given["root"] != "/":
            # Only a mount can be made read-only as a whole, so the root becomes one.
            _mount(given["root"], given["root"], "", _BIND | _ALL)
            os.chroot(given["root"])
        os.chdir("/")
        step = "make the host read-only"
        _make_read_only()
        step = "set up a network"
        _set_up_network()
        step = "prepare directories"
        _Stage(given).prepare()
        step = "run the program"
        _execute(given, null, failed)
    except OSError as error:
        os.write(failed, _words(step, error).encode())
    except _CannotStart as error:
        os.write(failed, f"{step}: {error}".encode())
    os._exit(1)


def _execute(given: dict[str, Any], null: int, failed: int) -> NoReturn:
    log = int(given["log"])
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    os.set_inheritable(failed, False)
    os.closerange(3, failed)
    os.closerange(failed + 1, 1 << 10)
    os.execve(given["argv"][0], given["argv"], given["env"])  # noqa: S606 - no shell


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    words = [os.fsencode(text) for text in (source, target, kind)]
    try:
        syscalls.call(_MOUNT, *words, flags, os.fsencode(data))
    except OSError as error:
        error.filename = target
        raise


def _make_read_only() -> None:
    attributes = struct.pack("QQQQ", _READ_ONLY, 0, 0, 0)
    try:
        syscalls.call(_MOUNT_SETATTR, _AT_CWD, b"/", _RECURSIVE, attributes, len(attributes))
    except OSError as error:
        # Linux before 5.12 has no such call, and old seccomp filters refuse it.
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
        _remount_each_read_only()
    # A runtime sets its own oom_score_adj. In a pod with a masked /proc this mount fails, and /proc
    # stays read-only.
    with contextlib.suppress(OSError):
        _mount("proc", "/proc", "proc", 0)


def _remount_each_read_only() -> None:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = [tuple(line.split(" ", 6)[4:6]) for line in file]  # all, before one changes
    for name, options in mounts:
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), name)
        kept = sum(_FLAGS.get(word, 0) for word in options.split(","))
        try:
            _mount("", point, "", _REMOUNT | _BIND | _READ_ONLY | kept)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):  # hidden by another mount
                raise


def _set_up_network() -> None:
    """Set up loopback, with a default route and a global address.

    Without a `stream_server_address` containerd takes the address of the interface with the default
    route, and does not serve the CRI if there is none (observed on 1.6).
    """
    import ctypes  # here, because the import is slow

    up, has_route, documentation = 0x1 | 0x8 | 0x40, 0x1, "192.0.2.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:

        def address(text: str) -> bytes:
            return struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))

        fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", up))  # SIOCSIFFLAGS
        fcntl.ioctl(control, 0x8916, struct.pack("16s16s", b"lo:1", address(documentation)))
        any_address = address("0.0.0.0")  # noqa: S104 - a destination, nothing listens
        name = ctypes.create_string_buffer(b"lo")
        route = struct.pack(
            "@L16s16s16sHhLPhPLLH",
            0, any_address, any_address, any_address, has_route, 0, 0, 0, 0,
            ctypes.addressof(name), 0, 0, 0,
        )  # fmt: skip
        fcntl.ioctl(control, 0x890B, route)  # SIOCADDRT


class _Stage:
    """Prepares the files that the program sees. All paths are host paths.

    The files that are made for the program are in `work`, and are mounted over the real names.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given
        self._work: str = given["work"]
        self._count = 0

    def prepare(self) -> None:
        """Make the mounts that `View` describes. Raises OSError or _CannotStart."""
        visible = [(path, os.open(path, os.O_PATH)) for path in self._given["visible"]
                   if os.path.lexists(path)]  # fmt: skip
        for path in (self._work, *self._given["writable"]):
            self._make_writable(path)
        for path, source in visible:
            self._show(path, source)
        for path, content in self._given["files"].items():
            self._put(path, content, 0o600)
        for path in self._given["programs"]:
            if not os.path.lexists(path):
                self._put(path, b"", 0o755)

    def _make_writable(self, path: str) -> None:
        if os.path.isdir(path):
            _mount("tmpfs", path, "tmpfs", _NO_SETUID | _NO_DEVICES, "mode=0755,size=256m")
        elif (above := _existing(path)) != "/":  # no directory can be made in `/`
            self._renew(above)
            os.makedirs(path, exist_ok=True)

    def _show(self, path: str, source: int) -> None:
        """Mount a file or directory again at `path`, where an empty directory hides it. `source` is
        its descriptor."""
        held = f"/proc/self/fd/{source}"
        if os.path.lexists(path):
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if stat.S_ISDIR(os.stat(held).st_mode):
            os.mkdir(path)
        else:
            _write(path, b"", 0o600)
        _mount(held, path, "", _BIND | _ALL)

    def _put(self, path: str, content: bytes | None, mode: int) -> None:
        """Make a file with this content, or hide the file if the content is None."""
        if content is not None and os.path.isfile(path):
            new = self._name()
            _write(new, content, mode)
            _mount(new, path, "", _BIND)
            return
        self._renew(_existing(os.path.dirname(path)))
        if content is not None:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _write(path, content, mode)
        elif os.path.lexists(path):
            if not os.path.islink(path):
                syscalls.call(_UMOUNT2, os.fsencode(path), _DETACH)
            os.unlink(path)

    def _renew(self, directory: str) -> None:
        """Replace a directory by a writable one with the same entries."""
        if not os.statvfs(directory).f_flag & os.ST_RDONLY:
            return  # it was replaced before
        if directory == "/":
            raise _CannotStart("a directory at the top of the host would have to be made")
        new = self._name()
        os.mkdir(new, stat.S_IMODE(os.stat(directory).st_mode))
        _mount(new, new, "", _BIND)
        for entry in os.scandir(directory):
            inside = os.path.join(new, entry.name)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), inside)
                continue
            if entry.is_dir(follow_symlinks=False):
                os.mkdir(inside)
            else:
                _write(inside, b"", 0o600)
            _mount(entry.path, inside, "", _BIND | _ALL)
        _mount(new, directory, "", _MOVE)  # with all mounts in it

    def _name(self) -> str:
        self._count += 1
        return os.path.join(self._work, f".stage-{self._count}")


def _existing(path: str) -> str:
    """The innermost directory of a path that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _write(path: str, content: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
