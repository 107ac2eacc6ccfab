"""Running a program of the host in namespaces in which nothing that it writes reaches the host.

Invariant: mounts, network and processes of the program are its own. It sees the host's files
read-only, but for directories that are empty for it and files that it is to find instead of the
real ones. It ends with its context at the latest, also where this process is killed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agent.host.paths import HostRoot

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_CHILD = "import sys; sys.path.append(sys.argv[1]); from agent.host.isolated import main; main()"

_MOST_SAID = 1 << 20  # bytes of output that are kept in mind


class CannotIsolate(Exception):
    """No such namespaces can be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class View:
    """What the program finds in the file system. All paths are the host's.

    work: a directory that is there; empty and writable for the program, as are those of `writable`.
    visible: what stays to be seen below these.
    files: their content by their names without links; None: there is no such file.
    programs: executable files that are there, empty ones where the host has none.
    """

    work: str
    writable: tuple[str, ...] = ()
    visible: tuple[str, ...] = ()
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    programs: tuple[str, ...] = ()


class Isolated:
    """A program that was started; `pid` is its process as we see it."""

    def __init__(self, child: subprocess.Popen[str], pid: int, log: int) -> None:
        self.pid = pid
        self._child = child
        self._log = log

    def path(self, host_path: str) -> str:
        """Agent path of what the program sees under a host path."""
        return f"/proc/{self.pid}/root{host_path}"

    def has_ended(self) -> bool:
        """Has the program ended?"""
        return self._child.poll() is not None

    def output(self) -> str:
        """What the program has written to its standard output and error."""
        return os.pread(self._log, _MOST_SAID, 0).decode("utf-8", "replace")

    def end(self) -> None:
        """End it and everything that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # process 1 of its namespace takes all others along
        self._child.wait()


@contextlib.contextmanager
def started(
    host: HostRoot, argv: Sequence[str], env: Mapping[str, str], view: View
) -> Iterator[Isolated]:
    """Start a program, by its host path, and end it when the context is left.

    Raises CannotIsolate where namespaces, the view or the program cannot be had.
    """
    log = os.memfd_create("toolkit-agent-output")
    try:
        child = _start(log)
        try:
            yield Isolated(child, _prepared(child, _described(host, argv, env, view, log)), log)
        finally:
            _end(child)
    finally:
        os.close(log)


def _start(log: int) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-S", "-c", _CHILD, _ROOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            pass_fds=[log],
        )
    except OSError as error:
        raise CannotIsolate(
            f"no process can be started: {os.strerror(error.errno or 0)}"
        ) from error


def _described(
    host: HostRoot, argv: Sequence[str], env: Mapping[str, str], view: View, log: int
) -> str:
    files = {
        path: None if content is None else base64.b64encode(content).decode()
        for path, content in view.files.items()
    }
    return json.dumps({
        "root": host.root, "argv": list(argv), "env": dict(env), "log": log, "work": view.work,
        "writable": view.writable, "visible": view.visible, "files": files,
        "programs": view.programs,
    })  # fmt: skip


def _prepared(child: subprocess.Popen[str], description: str) -> int:
    """The pid of the program, once it runs. Raises CannotIsolate."""
    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(description)
        child.stdin.close()
    word, _, rest = child.stdout.readline().strip().partition(" ")
    if word == "pid":
        return int(rest)
    raise CannotIsolate(rest or "the process that makes the namespaces ended")


def _end(child: subprocess.Popen[str]) -> None:
    """The child takes the program along: it asked the kernel for it."""
    child.kill()
    child.wait()
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
