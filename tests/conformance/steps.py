"""Run the agent and write down each step that changes something; at the k-th, let something happen.

    python steps.py LOG FAULT COMMAND [OPTION...]

A step is an operation that others can see: opening a file for writing, writing, syncing, renaming,
linking, removing, making a directory, setting a mode or an owner, starting a program, sending a
signal. What only this process sees (memory files, `/dev/null`) is none. LOG gets one line per step.
No hook in the agent is needed: Python reports these operations itself (sys.addaudithook), and the
few that it does not are wrapped (a rename of two directories in one step is the agent's own call of
the kernel). FAULT is one of

    0                nothing happens
    K                SIGKILL just before step K; where that writes, half of it is written
    stop:K           just before step K it waits: LOG.waiting has its pid, LOG.go lets it go on
    fail:K:ENOSPC    step K fails so (where it writes, after half of it); a step that is not on the
                     disk is made
    since:K:EROFS    from step K on, everything fails that this error forbids

Instead of K, `@WORD` is the first step whose line has that word.

The environment: STEPS_DISK is a directory to which failures are confined, STEPS_BOOT_ID what the
kernel is to say of this boot, STEPS_CLOCK=1 makes the wall clock jump by years with each look.
`run` is made here up to its first child, which is what is counted; later children are left alone.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.host import trees
from tests.tools.forked import Program

_EVENTS = frozenset(
    {
        "os.rename",  # os.replace too
        "os.link",
        "os.symlink",
        "os.remove",
        "os.rmdir",
        "os.mkdir",
        "os.truncate",
        "os.chmod",
        "os.chown",
        "os.setxattr",
        "os.kill",
        "os.posix_spawn",
        "subprocess.Popen",
    }
)
# Where an event has the path that changes, and the directory (a descriptor) that this is below of.
_PLACES = {
    "os.rename": (0, 2),
    "os.link": (1, 3),
    "os.symlink": (1, 2),
    "os.remove": (0, 1),
    "os.rmdir": (0, 1),
    "os.mkdir": (0, 2),
    "os.chmod": (0, 2),
    "os.chown": (0, 3),
}
_NOT_ON_DISK = frozenset({"os.kill", "os.posix_spawn", "subprocess.Popen", "pidfd_send_signal"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NEEDS_ROOM = frozenset({"os.write", "os.mkdir", "os.symlink", "os.mknod", "creating"})
_SYNCING = frozenset({"os.fsync", "os.fdatasync"})
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_TEN_YEARS = 315_360_000
CHILD = "converge-child"
PROGRAM = Program((sys.executable, __file__), "from tests.conformance.steps import main; main()")


@dataclass(frozen=True)
class Fault:
    """What happens, at which step; `code` is an errno."""

    kind: str = "kill"
    at: int = 0
    word: str = ""
    code: int = 0
    disk: str = "/"

    @classmethod
    def parse(cls, text: str, disk: str) -> Fault:
        """The fault of a command line."""
        kind, _, rest = text.partition(":") if ":" in text else ("kill", "", text)
        number, _, name = rest.partition(":")
        word = number[1:] if number.startswith("@") else ""
        at = 0 if word else int(number)
        return cls(kind, at, word, getattr(errno, name) if name else 0, disk)

    def hits(self, step: int, name: str, path: str) -> bool:
        """Does this step fail? (`at` is known by now.)"""
        if name in _NOT_ON_DISK or not f"{path}/".startswith(self.disk.rstrip("/") + "/"):
            return False
        if self.kind == "fail":
            return step == self.at
        if self.kind != "since" or not 0 < self.at <= step:
            return False
        if self.code in _NO_ROOM:
            return name in _NEEDS_ROOM
        return self.code == errno.EIO or name not in _SYNCING


class Steps:
    """Counts and logs steps, and lets the fault happen."""

    def __init__(self, log: int, fault: Fault) -> None:
        self.log = log
        self.fault = fault
        self.count = 0
        self._write = os.write
        self._open = os.open
        self._mknod = os.mknod
        self._exchange = trees.exchange
        # The two dumps of a check are asked for at once, each in a thread of its own.
        self._thread = threading.local()
        self._turn = threading.Lock()

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """For sys.addaudithook."""
        if event in _EVENTS:
            self.take(event, args, args[_PLACES[event][1]] if event in _PLACES else -1)
        elif event == "open" and isinstance(args[2], int) and args[2] & _WRITING:
            name = "creating" if args[2] & os.O_CREAT else "open"
            self.take(name, args, getattr(self._thread, "above", -1))

    def open(self, *args: Any, dir_fd: int | None = None, **keywords: Any) -> int:
        """For os.open, whose event does not tell the directory."""
        self._thread.above = -1 if dir_fd is None else dir_fd
        try:
            return self._open(*args, dir_fd=dir_fd, **keywords)
        finally:
            self._thread.above = -1

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as a step, except for the standard streams."""

        def stepping(descriptor: int, *args: Any, **keywords: Any) -> Any:
            if descriptor > sys.stderr.fileno():
                self.take(name, (descriptor, *args))
            return function(descriptor, *args, **keywords)

        return stepping

    def mknod(self, path: str, *args: Any, dir_fd: int | None = None, **keywords: Any) -> None:
        """For os.mknod, which has no event."""
        self.take("os.mknod", (path,), -1 if dir_fd is None else dir_fd)
        self._mknod(path, *args, dir_fd=dir_fd, **keywords)

    def exchange(self, one: str, other: str) -> None:
        """For the agent's own call of the kernel."""
        self.take("exchange", (one, other))
        self._exchange(one, other)

    def take(self, name: str, args: tuple[Any, ...], above: int = -1) -> None:
        """Count one step that is about to happen; its path may be below a directory descriptor."""
        if getattr(self._thread, "inside", False):
            return
        self._thread.inside = True
        try:
            at = _PLACES[name][0] if name in _PLACES else 0
            path = "" if name in _NOT_ON_DISK else _path(args[at], above)
            if name in _NOT_ON_DISK or _is_seen(path):
                with self._turn:
                    self._take(name, path, args)
        finally:
            self._thread.inside = False

    def _wait(self) -> None:
        """Not SIGSTOP: the kernel continues a stopped process whose parent has died."""
        log = os.readlink(f"/proc/self/fd/{self.log}")
        Path(f"{log}.new").write_text(str(os.getpid()), encoding="ascii")
        Path(f"{log}.new").rename(f"{log}.waiting")
        while not os.path.exists(f"{log}.go"):
            time.sleep(0.01)

    def _take(self, name: str, path: str, args: tuple[Any, ...]) -> None:
        self.count += 1
        target = f" -> {_path(args[1], args[3])}" if name == "os.rename" else ""
        line = f"{name} {path or args!r}{target}\n"
        self._write(self.log, line.encode())
        if self.fault.word and not self.fault.at and self.fault.word in line:
            self.fault = replace(self.fault, at=self.count)
        fault, here = self.fault, self.count == self.fault.at
        hit = fault.hits(self.count, name, path)
        if name == "os.write" and (hit or (here and fault.kind == "kill")):
            self._write(args[0], bytes(args[1])[: len(args[1]) // 2])
        if hit:
            raise OSError(fault.code, os.strerror(fault.code), path)
        if here and fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if here and fault.kind == "stop":
            self._wait()


def _path(target: object, above: int) -> str:
    """What a path or a descriptor leads to."""
    if isinstance(target, int):
        try:
            return os.readlink(f"/proc/self/fd/{target}")
        except OSError:
            return ""
    below = _path(above, -1) if above >= 0 else os.getcwd()
    return os.path.normpath(os.path.join(below, os.fsdecode(target)))  # type: ignore[arg-type]


def _is_seen(path: str) -> bool:
    """Memory files, pipes and devices are nobody's business."""
    return path.startswith("/") and not path.startswith(("/dev/", "/proc/", "/memfd:"))


def read(log: Path) -> list[str]:
    """The steps in a log."""
    return log.read_text(encoding="utf-8", errors="replace").splitlines()


def seen(log: Path) -> list[int]:
    """The numbers of the steps in a log, but for syncing: between a write and the next step that
    others see nothing happens that outlives the process."""
    return [k for k, step in enumerate(read(log), 1) if not step.startswith("os.fsync")]


def _count(log: str, fault: Fault) -> None:
    command = sys.argv[3]
    mode = os.O_EXCL if command == CHILD else os.O_TRUNC
    try:
        steps = Steps(os.open(log, os.O_WRONLY | os.O_CREAT | mode, 0o600), fault)
    except FileExistsError:
        return  # a later child
    for name in ("write", "fsync", "fdatasync"):
        setattr(os, name, steps.wrap(f"os.{name}", getattr(os, name)))
    os.open = steps.open
    os.mknod = steps.mknod  # type: ignore[assignment]
    trees.exchange = steps.exchange
    signal.pidfd_send_signal = steps.wrap("pidfd_send_signal", signal.pidfd_send_signal)
    sys.addaudithook(steps.audit)


def _follow_child(log: str, fault: str) -> None:
    """Put ourselves into the command line of the children of `run`."""
    execve = os.execve

    def replaced(path: str, argv: list[str], env: Any) -> None:
        at = argv.index("-P")  # then -c, the program and its root
        execve(path, [*argv[:at], __file__, log, fault, *argv[at + 4 :]], env)

    os.execve = replaced  # type: ignore[assignment]


def _another_boot(boot_id: str) -> None:
    real = builtins.open

    def opening(file: Any, *args: Any, **keywords: Any) -> Any:
        if isinstance(file, str) and file.endswith(_BOOT_ID):
            return io.BytesIO(f"{boot_id}\n".encode())
        return real(file, *args, **keywords)

    builtins.open = opening


def _jumping_clock() -> None:
    """Not for gRPC, whose C part compares with its own look at the clock."""
    real, looks = time.time, [0]

    def jumping() -> float:
        if str(sys._getframe(1).f_globals.get("__name__")).startswith("grpc"):
            return real()
        looks[0] += 1
        return real() + (_TEN_YEARS if looks[0] % 2 else -_TEN_YEARS)

    time.time = jumping
    time.time_ns = lambda: int(jumping() * 10**9)


def main() -> None:
    """Run the agent with the rest of the command line."""
    log, text, command = sys.argv[1:4]
    if command == "run":
        _follow_child(log, text)
    else:
        _count(log, Fault.parse(text, os.environ.get("STEPS_DISK", "/")))
    if boot_id := os.environ.get("STEPS_BOOT_ID"):
        _another_boot(boot_id)
    if os.environ.get("STEPS_CLOCK"):
        _jumping_clock()
    sys.argv = ["toolkit-agent", *sys.argv[3:]]
    runpy.run_module("agent", run_name="__main__")


if __name__ == "__main__":
    main()
