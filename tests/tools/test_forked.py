"""A forked process is what an executed one is, in all that tests look at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.namespace import Namespace
from tests.doubles.runtime.install import make_program, start_program
from tests.tools import forked
from tests.tools.forked import Program
from tests.tools.waiting import SOON, wait_until

ENV = {"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1", "WORD": "a b\u00fc"}

# What a process knows of itself.
_PROBE = """
import json, os, signal, sys, threading
numbers = [n for n in signal.valid_signals() if n not in (signal.SIGKILL, signal.SIGSTOP)]
print(json.dumps({
    "argv": sys.argv[1:],
    "command line": open("/proc/self/cmdline").read().split("\\0"),
    "environment": dict(os.environ),
    "shown environment": sorted(open("/proc/self/environ").read().split("\\0")),
    "directory": os.getcwd(),
    "umask": os.umask(0),
    "descriptors": sorted(os.listdir("/proc/self/fd")),
    "input": sys.stdin.read(),
    "signals": {str(n): str(signal.getsignal(n)).partition(" at ")[0] for n in numbers},
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "threads": threading.active_count(),
    "leads": os.getsid(0) == os.getpid(),
    "bytecode": sys.dont_write_bytecode,
    "streams": [(s.encoding, s.errors, s.line_buffering) for s in (sys.stdout, sys.stderr)],
    "main": sys.modules["__main__"].__name__,
}))
print("to the log", file=sys.stderr)
"""


def executed(code: str) -> Program:
    """Python text as a program that only exec can start."""
    return Program((sys.executable, "-c", code), "raise SystemExit('it was forked')")


def forking(code: str) -> Program:
    """The same as a program that the server forks."""
    return Program((sys.executable, "-c", code), code)


def by_exec(
    monkeypatch: pytest.MonkeyPatch, code: str, place: Path, data: bytes = b""
) -> subprocess.CompletedProcess[str]:
    """How it ends when it is executed."""
    with monkeypatch.context() as patch:
        patch.setenv(forked.VARIABLE, "1")
        return forked.run(executed(code), ["x", "y z"], ENV, place, data=data)


def test_forked_process_is_like_an_executed_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Arguments, environment, directory, descriptors, signals, streams."""
    real = by_exec(monkeypatch, _PROBE, tmp_path, b"input")
    fork = forked.run(forking(_PROBE), ["x", "y z"], ENV, tmp_path, data=b"input")
    assert (fork.returncode, fork.stderr) == (real.returncode, real.stderr) == (0, "to the log\n")
    assert json.loads(fork.stdout) == json.loads(real.stdout)


@pytest.mark.parametrize(
    "code",
    [
        "",
        "raise SystemExit",
        "raise SystemExit(3)",
        "raise SystemExit(True)",
        "raise SystemExit('a word')",
        "import os; os._exit(77)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "print('no end of line', end='')",
        "import sys; sys.exit(-1)",
    ],
)
def test_forked_process_ends_as_an_executed_one(
    monkeypatch: pytest.MonkeyPatch, code: str, tmp_path: Path
) -> None:
    """Exit codes, signals, and what was printed by then."""
    real = by_exec(monkeypatch, code, tmp_path)
    fork = forked.run(forking(code), ["x", "y z"], ENV, tmp_path)
    assert (fork.returncode, fork.stdout, fork.stderr) == (
        real.returncode,
        real.stdout,
        real.stderr,
    )


def test_uncaught_error_ends_with_a_traceback_and_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A traceback and 1: tests look for tracebacks."""
    for done in (
        by_exec(monkeypatch, "1 / 0", tmp_path),
        forked.run(forking("1 / 0"), [], ENV, tmp_path),
    ):
        assert done.returncode == 1
        assert done.stderr.startswith("Traceback (most recent call last):")
        assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_forked_agent_does_what_an_executed_one_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The program under test, executed and forked."""
    words = (["config", "-o", "json", "--proof-timeout=7"], ["plan", "--no"], ["--version"])
    for command in words:
        fork = forked.run(forked.AGENT, command, ENV, tmp_path)
        with monkeypatch.context() as patch:
            patch.setenv(forked.VARIABLE, "1")
            real = forked.run(forked.AGENT, command, ENV, tmp_path)
        assert vars(fork) == vars(real)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_forked_process_can_be_killed_by_its_pid(number: signal.Signals, tmp_path: Path) -> None:
    """By a signal to its pid, as any process."""
    process = forked.start_logged(
        forking("import time; print('up', flush=True); time.sleep(60)"),
        [], ENV, tmp_path, tmp_path / "log",
    )  # fmt: skip
    wait_until(lambda: (tmp_path / "log").read_text() == "up\n")
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(SOON) == -number
    told = "KeyboardInterrupt" in (tmp_path / "log").read_text()
    assert told == (number == signal.SIGINT)
    process.kill()  # is free by now


def test_slow_process_is_ended_with_the_librarys_exception(tmp_path: Path) -> None:
    """It is ended, and the exception is the one of the library."""
    with pytest.raises(subprocess.TimeoutExpired):
        forked.run(forking("import time; time.sleep(60)"), [], ENV, tmp_path, timeout=0.2)


def test_forgotten_process_is_ended(tmp_path: Path) -> None:
    """A process that nobody can wait for any more is ended."""
    process = forked.start_logged(
        forking("import time; time.sleep(60)"), [], ENV, tmp_path, tmp_path / "log"
    )
    pid = process.pid
    del process
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root: run tests/run as root")
def test_forked_process_enters_the_mount_namespace(tmp_path: Path, namespace: Namespace) -> None:
    """It enters the namespace that `nsenter` would; other commands are executed."""
    (tmp_path / "empty").mkdir()
    namespace.mount("-t", "tmpfs", "tmpfs", str(tmp_path / "empty"))
    code = "import os; print(os.path.ismount('empty'), os.getcwd())"
    for prefix, mounted in (((), False), (namespace.prefix, True)):
        done = forked.run(forking(code), [], ENV, tmp_path, prefix=prefix)
        assert done.stdout == f"{mounted} {tmp_path}\n", done
    done = forked.run(executed("print(1)"), [], ENV, tmp_path, prefix=("env", "A=b"))
    assert done.stdout == "1\n"


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A mount namespace of its own."""
    found = Namespace()
    yield found
    found.close()


@pytest.mark.parametrize("served", [True, False])
def test_written_program_does_the_same_with_a_server(served: bool, tmp_path: Path) -> None:
    """A written program does the same with a server and without it."""
    call = "print(sys.argv[1:], sys.stdin.read(), open(3).read(), os.getcwd())\nsys.exit(5)"
    (tmp_path / "three").write_text("third")
    server = forked.address() if served else ""
    program = make_program(tmp_path / "program", sys.executable, call, server=server)
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 3<three', "sh", program, "a", "b c"], env=ENV, cwd=tmp_path,
        input="input", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == f"['a', 'b c'] input third {tmp_path}\n", done.stderr
    assert (done.returncode, done.stderr) == (5, "")


def test_program_that_is_killed_takes_the_forked_one_along(tmp_path: Path) -> None:
    """A runtime's command that hangs does not outlive the one who killed it."""
    call = "open('pid', 'w').write(str(os.getpid()))\nimport time\ntime.sleep(60)"
    program = make_program(tmp_path / "p", sys.executable, call, server=forked.address())
    with subprocess.Popen([program], env=ENV, cwd=tmp_path) as process:
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        pid = int((tmp_path / "pid").read_text())
        assert pid != process.pid
        process.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_forked_daemon_has_a_session_of_its_own(tmp_path: Path) -> None:
    """It has the written program's command line and a session of its own."""
    call = "print(os.getsid(0) == os.getpid(), flush=True)\nimport time\ntime.sleep(60)"
    program = make_program(tmp_path / "p", sys.executable, call)
    with (tmp_path / "log").open("wb") as log:
        argv = [str(program), "-c", "file"]
        process = start_program(argv, ENV, tmp_path, log.fileno())
    wait_until(lambda: (tmp_path / "log").read_text() != "")
    assert (tmp_path / "log").read_text() == "True\n"
    words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
    assert [word.decode() for word in words] == [sys.executable, *argv, ""]
    process.terminate()
    assert process.wait(SOON) == -signal.SIGTERM
