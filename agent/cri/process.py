"""The process that listens on a CRI socket: its identity, executable, configuration and unit.

Invariant: a process is identified by pid and start time together, never by pid alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agent.errors import Unreachable, reason
from agent.host import budget
from agent.host.paths import HostRoot

_SLACK = 0.1  # seconds; both times are inexact, and a process reads its files after its start
_UNIT = re.compile(r"[A-Za-z0-9@_.:\\-]+\.service")
_USERS = re.compile(r"user\.slice|user-[0-9]+\.slice|user@[^/]*\.service")  # parts of a cgroup path


@dataclass(frozen=True)
class Process:
    """The process of a runtime. `start` is its start time in clock ticks since boot (proc(5), field
    22). `executable` and `config` (the file of -c or --config) are paths in the process's own root;
    None if not known. `unit` is the systemd service of its cgroup, None if it has none. `command`
    is its command line. `proc` is the /proc in which it was found."""

    pid: int
    start: int
    executable: str | None
    config: str | None
    unit: str | None
    command: tuple[str, ...]
    proc: str

    @property
    def identity(self) -> tuple[int, int]:
        return self.pid, self.start


def peer_pid(path: str, name: str, timeout: float = 5.0) -> int:
    """The pid of the process behind a unix socket; 0 if its pid is not visible in our namespace.

    SO_PEERCRED is reliable for this (observed on containerd 1.6 to 2.4 and CRI-O); the credentials
    of a message are not. `path` is an agent path, `name` is the path in messages. Raises
    Unreachable if no process listens, or if it is not root's.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise Unreachable(f"cannot reach {name}: {_why(error)}") from error
    if not stat.S_ISSOCK(status.st_mode):
        raise Unreachable(f"cannot reach {name}: it is not a socket; give the CRI socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        try:
            with short_socket_path(path) as short:
                client.connect(short)
            raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError as error:
            raise Unreachable(f"cannot reach {name}: {_why(error)}") from error
    pid, uid, _ = struct.unpack("3i", raw)
    if uid not in _trusted():
        raise _wrong_user(name, uid)
    return int(pid)


def _why(error: OSError) -> str:
    """The reason why the socket cannot be used, with the remedy."""
    text = "no answer" if isinstance(error, TimeoutError) else reason(error)
    return text if isinstance(error, PermissionError) else f"{text}; is the runtime up?"


def _trusted() -> tuple[int, int]:
    """The users whose process may be a runtime: root, and our own user if we are not root."""
    return 0, os.geteuid()


def _wrong_user(name: str, uid: int) -> Unreachable:
    return Unreachable(
        f"cannot use {name}: the process behind it belongs to user {uid}, not to root; give the "
        "CRI socket of the node's own runtime"
    )


@contextlib.contextmanager
def short_socket_path(path: str) -> Iterator[str]:
    """A path of a socket that fits into a socket address (107 bytes). Below a host root, the agent
    path can be longer than that."""
    if len(os.fsencode(path)) < 108:
        yield path
        return
    fd = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{os.path.basename(path)}"
    finally:
        os.close(fd)


def find(socket_path: str, name: str, host: HostRoot, kind: str) -> Process | None:
    """The process that listens on the CRI socket (agent path), None if it is not known.

    If its pid is not visible (another pid namespace), it is the only process in the host's /proc
    that belongs to root, is of this kind and has a systemd unit; None if there are several. `name`
    is the socket's path in messages. Raises Unreachable.
    """
    pid = peer_pid(socket_path, name)
    if pid > 1:
        running = inspect(pid, "/proc")
        if running is not None and (uid := _user(running)) is not None:
            raise _wrong_user(name, uid)
        return running
    matches = [
        process
        for entry in _pids(host.proc)
        if (process := inspect(entry, host.proc)) and process.unit and is_kind(process, kind)
        and _user(process) is None
    ]  # fmt: skip
    return matches[0] if len(matches) == 1 else None


def is_trusted(process: Process) -> bool:
    """Does a process belong to root, or to our own user?"""
    return _user(process) is None


def _user(process: Process) -> int | None:
    """A user other than root among the uids of a process, None if there is none. The owner of its
    directory in /proc does not count, because it is root for a process that makes itself
    undumpable."""
    text = _read(f"{process.proc}/{process.pid}/status")
    line = next((line for line in text.splitlines() if line.startswith(b"Uid:")), b"")
    uids = [int(word) for word in line.split()[1:] if word.isdigit()]
    return next((uid for uid in uids if uid not in _trusted()), None)


def _pids(proc: str) -> list[int]:
    try:
        return [int(entry) for entry in os.listdir(proc) if entry.isdigit()]
    except OSError:
        return []


def inspect(pid: int, proc: str) -> Process | None:
    """A process by its pid in the directory `proc`, None if it has ended."""
    base = f"{proc}/{pid}"
    start = start_time(pid, proc)
    if start is None:
        return None
    try:
        executable: str | None = os.readlink(f"{base}/exe").removesuffix(" (deleted)")
    except OSError:
        executable = None
    words = _words(pid, proc)
    config = config_argument(words)
    if config is not None and not config.startswith("/"):
        try:
            config = os.path.normpath(os.path.join(os.readlink(f"{base}/cwd"), config))
        except OSError:
            config = None
    unit = unit_of(os.fsdecode(_read(f"{base}/cgroup")))
    return Process(pid, start, executable, config, unit, words, proc)


def environment(process: Process) -> dict[str, str] | None:
    """The environment with which a process was started, None if it cannot be read. Of two variables
    with the same name the first counts, as for the process. The values can be secrets, and are
    never shown."""
    try:
        with open(f"{process.proc}/{process.pid}/environ", "rb") as file:
            data = file.read(budget.PROC.size + 1)
    except OSError:
        return None
    if _is_too_much(data):
        return None
    pairs = [os.fsdecode(item).partition("=") for item in data.split(b"\0")]
    return {name: value for name, equals, value in reversed(pairs) if equals}


def command_lines(host: HostRoot) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The pids and command lines of all processes in the host's /proc."""
    for pid in _pids(host.proc):
        words = _words(pid, host.proc)
        if words:
            yield pid, words


def _words(pid: int, proc: str) -> tuple[str, ...]:
    line = _read(f"{proc}/{pid}/cmdline")
    if _is_too_much(line):
        return ()  # anybody can start a process with millions of arguments
    return tuple(os.fsdecode(word) for word in line.split(b"\0")[:-1])


def _is_too_much(data: bytes) -> bool:
    return len(data) > budget.PROC.size or data.count(b"\0") > budget.PROC.values


def start_time(pid: int, proc: str = "/proc") -> int | None:
    """The start time of a running process, in clock ticks since boot; None if it has ended."""
    text = _read(f"{proc}/{pid}/stat")
    fields = text[text.rfind(b")") + 2 :].split()
    if len(fields) < 20 or fields[0] in (b"Z", b"X") or not fields[19].isdigit():
        return None
    return int(fields[19])


def is_kind(process: Process, kind: str) -> bool:
    """Is this the process of a runtime of this kind, by the name of its executable or command?"""
    comm = os.fsdecode(_read(f"{process.proc}/{process.pid}/comm")).strip()
    names = [process.executable or "", comm, *process.command[:1]]
    bases = [os.path.basename(name) for name in names]
    # Shims stay in the cgroup of the service, and are called containerd-shim-runc-v2.
    return any(base.startswith(kind) and not base.startswith(f"{kind}-shim") for base in bases)


def config_argument(words: tuple[str, ...]) -> str | None:
    """The value of -c or --config on a runtime's command line, None without one. The last one wins
    (observed)."""
    config = None
    for word, following in zip(words[1:], (*words[2:], None), strict=False):
        flag, equals, value = word.partition("=")
        if flag in ("-c", "--c", "-config", "--config"):
            config = value if equals else following or config
    return config


def start_moment(process: Process, clock: Callable[[], float] = time.time) -> float:
    """The start time of a process in seconds since the epoch, by the present state of `clock`."""
    running = time.clock_gettime(time.CLOCK_BOOTTIME) - process.start / os.sysconf("SC_CLK_TCK")
    return clock() - running


def changed_since_start(
    process: Process, path: str, clock: Callable[[], float] = time.time
) -> bool:
    """Was the file at `path` (agent path) changed after this process was started? False for a file
    that does not exist."""
    try:
        changed = os.lstat(path).st_ctime
    except OSError:
        return False
    return changed > start_moment(process, clock) + _SLACK


def unit_of(cgroup: str) -> str | None:
    """The systemd service of a process. `cgroup` is the content of its /proc/PID/cgroup (v1 or v2).

    None for a process of a user's own systemd. The first service in the path counts, because the
    names below it are chosen by that service, or by a user to whom the subtree was delegated.
    """
    for line in cgroup.splitlines():
        number, _, path = line.partition(":")
        controllers, _, path = path.partition(":")
        if number == "0" or controllers == "name=systemd":
            parts = path.split("/")
            if any(map(_USERS.fullmatch, parts)):
                return None
            if service := next(filter(is_service_name, parts), None):
                return service
    return None


def is_service_name(text: str) -> bool:
    """Is this the name of a service, which is safe on systemctl's command line?"""
    return _UNIT.fullmatch(text) is not None and not text.startswith("-")


def boot_id(proc: str = "/proc") -> str:
    """The kernel's id of this boot; empty if it cannot be read."""
    return _read(f"{proc}/sys/kernel/random/boot_id").decode("ascii", "replace").strip()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(budget.PROC.size + 1)
    except OSError:
        return b""
