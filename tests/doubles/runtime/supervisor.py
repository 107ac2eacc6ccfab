"""Keep one program running, as a service manager does: what ends is started again.

Tests and the demo run the real containerd and the scripted one under it. The child dies with the
process that supervises it, also when that is killed, so no runtime outlives its test.

As a program, until SIGTERM: `supervisor.py --pidfile FILE --delay SECONDS -- ARGV...`
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# From util-linux, which every Debian and Ubuntu has; it executes the program in its own place, so
# the pid is the program's. The kernel's "parent" is the thread that started the child: the one
# that entered the context, later the supervising one. Both outlive it.
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")


class Child(Protocol):
    """A running process, as subprocess.Popen has it."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""

    def send_signal(self, number: int, /) -> None:
        """Send it, unless it has ended."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it at once."""


def execute(argv: Sequence[str], env: Mapping[str, str] | None, directory: Path, log: int) -> Child:
    """Execute a program that dies with this thread; what it says goes to the descriptor `log`."""
    return subprocess.Popen(
        [*_DIE_WITH_PARENT, *argv],
        env=None if env is None else dict(env),
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a Ctrl-C is for the tests, not for the runtime
    )


@dataclass(frozen=True)
class Start:
    """One start of the child: its pid, and the seconds since the epoch at that moment."""

    pid: int
    at: float


class Supervisor:
    """Run `argv` with `env` from entering to leaving, and again `delay` seconds after it ends.

    `argv`, `env` and `delay` are looked at anew for each start, so a test can change what comes
    next; `delay` None means that it never comes back. Standard output and error are appended to
    `log`, which lies in `directory`. Without `env` the child gets this process's environment.
    `start` starts the child.
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None = None,
        directory: Path | str = ".",
        delay: float | None = 0.05,
        start: Callable[[Sequence[str], Mapping[str, str] | None, Path, int], Child] = execute,
    ) -> None:
        self.argv = [os.fspath(word) for word in argv]
        self.env = env
        self.delay = delay
        self.log = Path(directory) / f"{Path(self.argv[0]).name}.log"
        self.history: list[Start] = []
        self._start = start
        self._child: Child | None = None
        self._running = False
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="supervisor", daemon=True)

    def __enter__(self) -> Supervisor:
        self._launch()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def starts(self) -> int:
        """How often the child has been started."""
        return len(self.history)

    @property
    def pid(self) -> int:
        """The pid of the latest start, whether or not that process still runs."""
        return self.history[-1].pid

    @property
    def running(self) -> bool:
        """Whether the child runs. When it does no more, `log` says so already."""
        return self._running

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the child, if it still runs."""
        if self._child is not None:
            self._child.send_signal(number)

    def wait_until(self, holds: Callable[[Supervisor], bool], timeout: float = 10.0) -> bool:
        """Wait until `holds(self)`, which is asked after each start and end; False if it never did.

        For example `wait_until(lambda s: s.starts >= 2)`.
        """
        with self._changed:
            return self._changed.wait_for(lambda: holds(self), timeout)

    def stop(self, grace: float = 5.0) -> None:
        """End the child for good: SIGTERM, after `grace` seconds SIGKILL. A second call is free."""
        with self._changed:
            self._stopping.set()
            child = self._child
        if child is not None:
            child.terminate()
            try:
                child.wait(grace)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        while self._child is not None:
            code = self._child.wait()
            self._note(f"{self._child.pid} ended with {code}")
            with self._changed:
                self._running = False
                self._changed.notify_all()
            # `delay` may be set while we wait for it, so None is no endless wait.
            while self.delay is None and not self._stopping.wait(0.05):
                pass
            if self._stopping.wait(self.delay):
                return
            self._launch()

    def _launch(self) -> None:
        with self._changed:
            if self._stopping.is_set():
                return
            with self.log.open("ab") as log:
                self._child = self._start(self.argv, self.env, Path.cwd(), log.fileno())
            self._running = True
            self.history.append(Start(self._child.pid, time.time()))
            self._note(f"{self._child.pid} started")
            self._changed.notify_all()

    def _note(self, text: str) -> None:
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"supervisor: {text}\n")


def main() -> None:
    """Supervise the program of the command line until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--pidfile", type=Path, help="gets the pid of the supervisor itself")
    parser.add_argument("--directory", type=Path, default=Path(), help="where the log is written")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds before a new start")
    parser.add_argument("argv", nargs="+", help="the program and its arguments, after --")
    options = parser.parse_args()
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    with Supervisor(options.argv, directory=options.directory, delay=options.delay):
        if options.pidfile:
            options.pidfile.write_text(f"{os.getpid()}\n", encoding="ascii")
        ending.wait()


if __name__ == "__main__":
    main()
