"""Start the program under test, or a scripted runtime, by fork instead of exec.

    done = forked.run(forked.AGENT, ["plan"], env, directory)

Each test process has one server (`fork_server.py`), from the first use to the end of the process.
What the server cannot do is executed: a command before the program, an interpreter with an
environment of its own. TOOLKIT_AGENT_EXEC=1 executes everything, which shows whether the server
causes a failure.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.tools import documents, fork_client

VARIABLE = "TOOLKIT_AGENT_EXEC"
_ROOT = Path(__file__).resolve().parents[2]

# The only command before a program that the server can do by itself.
_NSENTER = re.compile(r"--mount=(/proc/\d+/ns/mnt)")
# What an interpreter reads at its start; the server was started with these.
_INTERPRETERS = ("PYTHON", "LC_", "LANG")
_SERVER = (sys.executable, "-m", "tests.tools.fork_server")
_SERVER_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class Program:
    """A program of Python's: the words that execute it, and the code that a fork of the server
    runs instead."""

    words: tuple[str, ...]
    code: str


AGENT = Program((sys.executable, "-m", "agent"), "from agent.cli import main; main()")


class Process:
    """A forked process, with what the tests use of subprocess.Popen."""

    def __init__(self, argv: Sequence[str], connection: int) -> None:
        self.args = list(argv)
        self.returncode: int | None = None
        self._connection = connection
        self._reading = threading.Lock()
        self.pid = fork_client.receive(connection)

    def __del__(self) -> None:
        os.close(self._connection)

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self._poll_exit_code(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        code = self._poll_exit_code(None if timeout is None else timeout * 1000)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def _poll_exit_code(self, milliseconds: float | None) -> int | None:
        if self.returncode is None:
            waiting = select.poll()
            waiting.register(self._connection, select.POLLIN)
            ready = waiting.poll(milliseconds)
            with self._reading:  # another thread may wait, too
                if ready and self.returncode is None:
                    self.returncode = fork_client.receive(self._connection)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it, unless it has ended."""
        if self.poll() is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                self.wait(10)  # the server is about to say so

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


Started = Process | subprocess.Popen[bytes]


def start(
    program: Program,
    words: Sequence[str | os.PathLike[str]],
    env: Mapping[str, str],
    directory: Path,
    streams: tuple[int, int, int],
    *,
    prefix: Sequence[str | os.PathLike[str]] = (),
    session: bool = False,
) -> Started:
    """Start `program` with the arguments `words`.

    streams: the descriptors that are its standard streams.
    prefix: what is put before the command line, such as `nsenter`.
    session: whether it leads a session of its own.
    """
    argv = [*program.words, *(os.fspath(word) for word in words)]
    before = [os.fspath(word) for word in prefix]
    if not _can_fork(before, env):
        return subprocess.Popen(
            [*before, *argv],
            env=dict(env),
            cwd=directory,
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            start_new_session=session,
        )
    mounts = _NSENTER.fullmatch(before[1]) if before else None
    opened = os.open(mounts[1], os.O_RDONLY) if mounts else None
    try:
        connection = fork_client.request_process(
            address(),
            program.code,
            argv,
            dict(env),
            os.fspath(directory),
            dict(enumerate(streams)),
            interpreter=len(program.words) - 1,
            mounts=opened,
            session=session,
        )
    finally:
        if opened is not None:
            os.close(opened)
    return Process([*before, *argv], connection)


def start_logged(
    program: Program,
    words: Sequence[str | os.PathLike[str]],
    env: Mapping[str, str],
    directory: Path,
    log: Path,
    *,
    prefix: Sequence[str | os.PathLike[str]] = (),
) -> Started:
    """Start `program` without input; its output and errors are appended to `log`."""
    with open(os.devnull, "rb") as nothing, log.open("ab") as file:
        streams = nothing.fileno(), file.fileno(), file.fileno()
        return start(program, words, env, directory, streams, prefix=prefix)


def run(
    program: Program,
    words: Sequence[str | os.PathLike[str]],
    env: Mapping[str, str],
    directory: Path,
    *,
    prefix: Sequence[str | os.PathLike[str]] = (),
    data: bytes = b"",
    timeout: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Run `program` with `data` for its input; returns what it printed.

    Raises subprocess.TimeoutExpired, and AssertionError for a document without a schema.
    """
    with ExitStack() as stack:
        streams = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        streams[0].write(data)
        streams[0].seek(0)
        numbers = streams[0].fileno(), streams[1].fileno(), streams[2].fileno()
        process = start(program, words, env, directory, numbers, prefix=prefix)
        try:
            code = process.wait(timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        for file in streams:
            file.seek(0)
        _, output, error = (file.read().decode() for file in streams)
    documents.check_output(output)
    return subprocess.CompletedProcess(process.args, code, output, error)


def _can_fork(prefix: Sequence[str], env: Mapping[str, str]) -> bool:
    if os.environ.get(VARIABLE) == "1":
        return False
    if prefix and not (
        len(prefix) == 3
        and prefix[0] == "nsenter"
        and _NSENTER.fullmatch(prefix[1])
        and prefix[2] == "--"
    ):
        return False
    special = {name: value for name, value in env.items() if name.startswith(_INTERPRETERS)}
    return special.items() <= _SERVER_ENVIRONMENT.items()


def address() -> str:
    """Where the server of this test process listens; empty where everything is executed."""
    return "" if os.environ.get(VARIABLE) == "1" else _start_server(os.getpid())


@functools.cache
def _start_server(owner: int) -> str:
    """Start it for the process `owner`, which is this one; gives its address."""
    folder = tempfile.mkdtemp(prefix="fork-")  # nobody else may enter it
    found = f"{folder}/server"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(found)
        listener.listen(64)
        reading, lifeline = os.pipe()  # the end that stays open here ends with this process
        with (Path(folder) / "log").open("wb") as log:
            server = subprocess.Popen(
                [*_SERVER, str(listener.fileno()), str(reading)],
                env={"PATH": os.defpath, **_SERVER_ENVIRONMENT},
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(listener.fileno(), reading),
                start_new_session=True,  # a Ctrl-C is for the tests
            )
        os.close(reading)
    atexit.register(_stop, owner, server, lifeline, folder)
    return found


def _stop(owner: int, server: subprocess.Popen[bytes], lifeline: int, folder: str) -> None:
    if os.getpid() == owner:
        os.close(lifeline)
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)
