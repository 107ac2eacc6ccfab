"""The process behind a socket: who it is, what it runs and which configuration it was given.

Invariant: a process is known by pid and start time together, never by pid alone.
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

_SLACK = 0.1  # seconds; both clocks are coarse, and a process does not read its files at once
_UNIT = re.compile(r"[A-Za-z0-9@_.:\\-]+\.service")
_USERS = re.compile(r"user\.slice|user-[0-9]+\.slice|user@[^/]*\.service")  # parts of a cgroup path


@dataclass(frozen=True, slots=True)
class Process:
    """A running runtime. `start` is its start time in clock ticks since boot (proc(5), field 22);
    `executable` and `config` are paths as the process itself sees them; `unit` owns its cgroup."""

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


def peer(path: str, name: str, timeout: float = 5.0) -> int:
    """The pid behind a unix socket, 0 where it lies in a pid namespace that we do not see.

    SO_PEERCRED is right every time (observed on containerd 1.6 to 2.4 and CRI-O), other than the
    credentials of a message. Raises Unreachable where nothing listens, or where it is a process of
    another user than root that does; `name` is for its message.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise Unreachable(f"cannot reach {name}: {reason(error)}; is the runtime up?") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise Unreachable(f"cannot reach {name}: it is not a socket; give the CRI socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        try:
            with reachable(path) as short:
                client.connect(short)
            raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError as error:
            text = "no answer" if isinstance(error, TimeoutError) else reason(error)
            raise Unreachable(f"cannot reach {name}: {text}; is the runtime up?") from error
    pid, uid, _ = struct.unpack("3i", raw)
    if uid not in _trusted():
        raise _not_roots(name, uid)
    return int(pid)


def _trusted() -> tuple[int, int]:
    """Users whose process may be a runtime: without root the node is one's own."""
    return 0, os.geteuid()


def _not_roots(name: str, uid: int) -> Unreachable:
    return Unreachable(
        f"cannot use {name}: the process behind it is of user {uid}, and not root's; give the CRI "
        "socket of the node's own runtime"
    )


@contextlib.contextmanager
def reachable(path: str) -> Iterator[str]:
    """A name for a socket that fits into an address (107 bytes), also where a host root makes the
    path longer than what the runtime itself listens on."""
    if len(os.fsencode(path)) < 108:
        yield path
        return
    fd = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{os.path.basename(path)}"
    finally:
        os.close(fd)


def find(socket_path: str, name: str, host: HostRoot, kind: str) -> Process | None:
    """The process behind the CRI socket, or None where it cannot be told.

    Where its pid is hidden from us (another pid namespace), the host's /proc is searched for the
    one process of root and of this kind that systemd runs. Raises Unreachable.
    """
    pid = peer(socket_path, name)
    if pid > 1:
        found = inspect(pid, "/proc")
        if found is not None and (uid := _user(found)) is not None:
            raise _not_roots(name, uid)
        return found
    fits = [
        process
        for entry in _pids(host.proc)
        if (process := inspect(entry, host.proc)) and process.unit and is_kind(process, kind)
        and _user(process) is None
    ]  # fmt: skip
    return fits[0] if len(fits) == 1 else None


def _user(process: Process) -> int | None:
    """The user other than root that a process has among its ids. The owner of its directory in
    /proc does not tell: that is root where the process cannot be dumped, which it decides itself.
    """
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
    """What /proc says of a process, or None where it is gone."""
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
    """The variables that a process was started with; None where they cannot be read: that takes
    root, or the same user. The first of two with one name counts, as for the process itself. They
    may hold secrets: they are handed on, and never shown."""
    try:
        with open(f"{process.proc}/{process.pid}/environ", "rb") as file:
            data = file.read(budget.PROC.size + 1)
    except OSError:
        return None
    if _is_too_much(data):
        return None
    pairs = [os.fsdecode(item).partition("=") for item in data.split(b"\0")]
    return {name: value for name, equals, value in reversed(pairs) if equals}


def commands(host: HostRoot) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The command lines of all processes that can be seen, with their pids."""
    for pid in _pids(host.proc):
        words = _words(pid, host.proc)
        if words:
            yield pid, words


def _words(pid: int, proc: str) -> tuple[str, ...]:
    line = _read(f"{proc}/{pid}/cmdline")
    if _is_too_much(line):
        return ()  # anybody may start a process with words without end
    return tuple(os.fsdecode(word) for word in line.split(b"\0")[:-1])


def _is_too_much(data: bytes) -> bool:
    return len(data) > budget.PROC.size or data.count(b"\0") > budget.PROC.values


def start_time(pid: int, proc: str = "/proc") -> int | None:
    """Start time of a living process, in clock ticks since boot; None for one that is gone."""
    text = _read(f"{proc}/{pid}/stat")
    fields = text[text.rfind(b")") + 2 :].split()
    if len(fields) < 20 or fields[0] in (b"Z", b"X") or not fields[19].isdigit():
        return None
    return int(fields[19])


def is_kind(process: Process, kind: str) -> bool:
    """Is this process a containerd (or crio), by its executable or by what it was called as?"""
    comm = os.fsdecode(_read(f"{process.proc}/{process.pid}/comm")).strip()
    names = [process.executable or "", comm, *process.command[:1]]
    bases = [os.path.basename(name) for name in names]
    # Shims stay in the service's cgroup, and are called containerd-shim-runc-v2.
    return any(base.startswith(kind) and not base.startswith(f"{kind}-shim") for base in bases)


def config_argument(words: tuple[str, ...]) -> str | None:
    """The value of -c or --config on a runtime's command line; the last one wins (observed)."""
    return _value(words, ("-c", "--c", "-config", "--config"))


def _value(words: tuple[str, ...], flags: tuple[str, ...]) -> str | None:
    found = None
    for word, following in zip(words[1:], (*words[2:], None), strict=False):
        flag, equals, value = word.partition("=")
        if flag in flags:
            found = value if equals else following or found
    return found


def started(process: Process, clock: Callable[[], float] = time.time) -> float:
    """When it started, in seconds since the epoch, as far as the clock has not been set since."""
    running = time.clock_gettime(time.CLOCK_BOOTTIME) - process.start / os.sysconf("SC_CLK_TCK")
    return clock() - running


def started_before(process: Process, path: str, clock: Callable[[], float] = time.time) -> bool:
    """Was the file at `path` (agent path) changed after this process was started? A file that is
    gone was not."""
    try:
        changed = os.lstat(path).st_ctime
    except OSError:
        return False
    return changed > started(process, clock) + _SLACK


def unit_of(cgroup: str) -> str | None:
    """The systemd service that owns a process, from /proc/PID/cgroup (v1 and v2).

    None for what a user's manager runs. The first service on the way is the one that systemd has:
    below it names are chosen by the service, or by the user that the subtree was given to.
    """
    for line in cgroup.splitlines():
        number, _, path = line.partition(":")
        controllers, _, path = path.partition(":")
        if number == "0" or controllers == "name=systemd":
            parts = path.split("/")
            if any(map(_USERS.fullmatch, parts)):
                return None
            if found := next(filter(is_unit, parts), None):
                return found
    return None


def is_unit(text: str) -> bool:
    """A name that may go onto systemctl's command line."""
    return _UNIT.fullmatch(text) is not None and not text.startswith("-")


def boot_id(proc: str = "/proc") -> str:
    """The kernel's id of this boot; empty where it cannot be read."""
    return _read(f"{proc}/sys/kernel/random/boot_id").decode("ascii", "replace").strip()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(budget.PROC.size + 1)
    except OSError:
        return b""
