"""Run the agent and write down each step that changes something, or kill it before the k-th.

    python steps.py LOG K COMMAND [OPTION...]

A step is an operation that others can see: opening a file for writing, writing, syncing, renaming,
linking, removing, making a directory, setting a mode or an owner, starting a program, sending a
signal. LOG gets one line per step. With K > 0 the process kills itself with SIGKILL just before
step K; with 0 it runs to its end. No hook in the agent is needed: Python reports these operations
itself (sys.addaudithook), and the few that it does not are wrapped.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Steps:
    """Counts and logs steps; ends the process before step `kill_at`."""

    def __init__(self, log: int, kill_at: int) -> None:
        self.log = log
        self.kill_at = kill_at
        self.count = 0
        self._write = os.write
        self._inside = False

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """For sys.addaudithook."""
        if event in _EVENTS:
            self.take(f"{event} {args!r}")
        elif event == "open" and isinstance(args[2], int) and args[2] & _WRITING:
            self.take(f"open {args!r}")

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as a step, except for the standard streams."""

        def stepping(descriptor: int, *args: Any, **keywords: Any) -> Any:
            if descriptor > sys.stderr.fileno():
                self.take(f"{name} {descriptor}")
            return function(descriptor, *args, **keywords)

        return stepping

    def take(self, what: str) -> None:
        """Count one step that is about to happen."""
        if self._inside:
            return
        self._inside = True
        self.count += 1
        self._write(self.log, f"{what}\n".encode())
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self._inside = False


def read(log: Path) -> list[str]:
    """The steps in a log."""
    return log.read_text(encoding="utf-8", errors="replace").splitlines()


def main() -> None:
    """Run the agent with the rest of the command line."""
    log, kill_at = sys.argv[1], int(sys.argv[2])
    steps = Steps(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), kill_at)
    sys.argv = ["toolkit-agent", *sys.argv[3:]]
    for name in ("write", "fsync", "fdatasync"):
        setattr(os, name, steps.wrap(f"os.{name}", getattr(os, name)))
    signal.pidfd_send_signal = steps.wrap("pidfd_send_signal", signal.pidfd_send_signal)
    sys.addaudithook(steps.audit)
    runpy.run_module("agent", run_name="__main__")


if __name__ == "__main__":
    main()
