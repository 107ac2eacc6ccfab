"""Running a program of the host in namespaces from which no write reaches the host.

Invariant: the program has its own mounts, network and processes. It sees the host's files
read-only, except for some directories, which are empty and writable in the namespaces, and some
files, whose content is replaced. The program ends with its context at the latest, also if this
process is killed. `agent.host.isolation_child` makes the namespaces.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agent.host import own_process
from agent.host.paths import HostRoot

_MOST_OUTPUT = 1 << 20  # bytes of output that are read


class CannotIsolate(Exception):
    """The namespaces cannot be made here. The message is the reason."""


@dataclass(frozen=True)
class View:
    """The differences between the host's files and the files that the program sees. All paths are
    host paths.

    `work`: an existing directory, which is empty and writable for the program.
    `writable`: further directories that are empty and writable.
    `visible`: paths in these directories that keep their content.
    `files`: contents by path (without links); None hides the file.
    `programs`: executable files that must exist; the program sees an empty file if the host has
    none.
    """

    work: str
    writable: tuple[str, ...] = ()
    visible: tuple[str, ...] = ()
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    programs: tuple[str, ...] = ()


class IsolatedProgram:
    """A program that was started. `pid` is its pid in our own pid namespace."""

    def __init__(self, child: subprocess.Popen[str], pid: int, log: int) -> None:
        self.pid = pid
        self._child = child
        self._log = log

    def path(self, host_path: str) -> str:
        """The agent path of the file that the program sees at a host path."""
        return f"/proc/{self.pid}/root{host_path}"

    def has_ended(self) -> bool:
        """Has the program ended?"""
        return self._child.poll() is not None

    def output(self) -> str:
        """The program's standard output and error so far."""
        return os.pread(self._log, _MOST_OUTPUT, 0).decode("utf-8", "replace")

    def end(self) -> None:
        """End the program and all processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # the kernel kills the whole pid namespace
        self._child.wait()


@contextlib.contextmanager
def start(
    host: HostRoot, argv: Sequence[str], env: Mapping[str, str], view: View
) -> Iterator[IsolatedProgram]:
    """Start a program in namespaces, and end it when the context ends. `argv` has the host path of
    the program first; `env` is its whole environment.

    Raises CannotIsolate if the namespaces cannot be made, or the program cannot be started.
    """
    with (
        open(os.memfd_create("toolkit-agent-output"), "rb") as log,
        open(os.memfd_create("toolkit-agent-input"), "w+b") as given,
    ):
        program = {"root": host.root, "argv": list(argv), "env": dict(env), "log": log.fileno()}
        marshal.dump({**vars(view), **program, "files": dict(view.files)}, given)
        given.seek(0)
        try:
            child = subprocess.Popen(
                own_process.command("agent.host.isolation_child", "-S"),
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                pass_fds=[log.fileno()],
            )
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise CannotIsolate(f"no process can be started: {why}") from error
        with child:
            try:
                yield IsolatedProgram(child, _pid(child), log.fileno())
            finally:
                child.kill()  # the kernel then kills the program (PR_SET_PDEATHSIG)


def _pid(child: subprocess.Popen[str]) -> int:
    """The pid of the started program, which the child prints. Raises CannotIsolate."""
    assert child.stdout is not None
    word, _, rest = child.stdout.readline().strip().partition(" ")
    if word == "pid":
        return int(rest)
    raise CannotIsolate(rest or "the process that makes the namespaces ended")
