"""A convergence that cannot finish takes readiness with it.

The attacker makes the child of `run` die in its middle: by an input that needs more memory than the
pod has (the kernel kills it with SIGKILL), by one that takes for ever (the deadline kills it), or
by one that crashes a library. Nobody has proven the node then. The barrier `toolkit-ready` goes
first, its twin next, by the supervisor, which follows no link on the way; both come back with the
next success.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agent.daemon import supervisor
from tests.cli.cli_node import CliNode
from tests.cli.daemon import Daemon, published, running, settle
from tests.conformance import statusfile
from tests.tools.beside import beside
from tests.tools.runtimes import ROOT

READY, TWIN = statusfile.READY, statusfile.TWIN


@contextmanager
def killing(daemon: Daemon) -> Iterator[list[int]]:
    """Kill every child that the daemon starts, as the kernel does where memory is out."""
    killed: list[int] = []
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children")

    def kill(ended: threading.Event) -> None:
        while not ended.wait(0.002):
            for pid in map(int, children.read_text().split()):
                # Not before it is another program: until then it is the supervisor itself. One that
                # was killed in the last turn may be gone by now.
                with suppress(FileNotFoundError, ProcessLookupError):
                    if b"converge-child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)

    with beside(kill):
        yield killed


def test_readiness_goes_with_a_killed_convergence(tmp_path: Path) -> None:
    """And comes back with the next success; the barrier is never there without its twin."""
    with CliNode(tmp_path) as node, running(node) as daemon:
        settle(daemon)
        before = published(node)
        alone: list[float] = []

        def watch(ended: threading.Event) -> None:
            ready, twin = node.validations / READY, node.validations / TWIN
            while not ended.wait(0.001):
                # Both can come or go between two looks: the barrier has to be there both times.
                if ready.exists() and not twin.exists() and ready.exists():
                    alone.append(time.time())

        with beside(watch):
            with killing(daemon) as killed:
                daemon.process.send_signal(signal.SIGHUP)
                daemon.until(
                    lambda: not any((node.validations / name).exists() for name in (READY, TWIN))
                )
                daemon.until(lambda: len(killed) > 2)
            daemon.until(lambda: published(node) == before)
        assert alone == []
        assert '"code": 137' in daemon.said()


class Operator(Daemon):
    """The entry point of gpu-operator, whose validator owns the barrier."""

    def __init__(self, node: CliNode) -> None:
        self.node = node
        self.log = node.directory / "run.log"
        words = ["-c", "from agent.cli import nvidia_toolkit as main; main()"]
        options = (f"--pid-file={node.directory}/toolkit.pid", "--cdi-enabled=true")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *words, *node.options(), *options],
                env=node.agent_environment(), cwd=ROOT, stderr=log,
            )  # fmt: skip


def test_barrier_of_the_validator_comes_back(tmp_path: Path) -> None:
    """It is never created: it comes back only because it was there when we took it away."""
    with CliNode(tmp_path) as node:
        daemon = Operator(node)
        try:
            daemon.until((node.validations / TWIN).exists)
            assert not (node.validations / READY).exists()
            (node.validations / READY).touch()
            daemon.until(lambda: published(node) is not None)
            with killing(daemon):
                daemon.process.send_signal(signal.SIGHUP)
                daemon.until(lambda: not (node.validations / TWIN).exists())
                assert not (node.validations / READY).exists()
            daemon.until(lambda: published(node) is not None)
        finally:
            daemon.process.terminate()
            daemon.process.wait(30)


def test_killed_children_are_started_ever_more_seldom(tmp_path: Path) -> None:
    """As others do: a child that dies each time is started ever more seldom."""
    with CliNode(tmp_path) as node, running(node) as daemon:
        settle(daemon)
        with killing(daemon) as killed:
            daemon.process.send_signal(signal.SIGHUP)
            daemon.until(lambda: bool(killed))
            time.sleep(7)
        assert 2 <= len(set(killed)) <= 5  # at 0, 0, 2 and 6 seconds


def test_stop_leaves_readiness(tmp_path: Path) -> None:
    """A child that ends by the signal that stops us has left the node as it was."""
    with CliNode(tmp_path) as node, running(node) as daemon:
        settle(daemon)
        before = published(node)
        daemon.process.send_signal(signal.SIGHUP)
        daemon.until(lambda: not daemon.idle())
        daemon.end()
        assert published(node) == before


def supervise(
    directory: Path, script: str, deadline: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run the waiting process with a shell as its child, to a child that ends with 2."""
    return subprocess.run(
        [sys.executable, "-I", "-S", supervisor.__file__, "600", str(deadline), "", "", "",
         str(directory / READY), str(directory / TWIN), "/bin/sh", "-c", script],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def once(mark: Path, first: str) -> str:
    """Give a script that does something the first time, and then says what it is called with."""
    return f'[ -e {mark} ] && {{ echo "$@" >&2; exit 2; }}; touch {mark}; {first}'


@pytest.mark.parametrize(
    ("first", "deadline"),
    [("kill -KILL $$", 60), ("kill -SEGV $$", 60), ("exit 1", 60), ("sleep 50", 1)],
    ids=["out of memory", "crash", "traceback", "deadline"],
)
def test_every_end_before_the_end_counts(tmp_path: Path, first: str, deadline: float) -> None:
    """The next child is told that the barrier was there: gpu-operator's validator owns it, and it
    comes back only where it was."""
    for name in (READY, TWIN):
        (tmp_path / name).touch()
    done = supervise(tmp_path, once(tmp_path / "mark", first), deadline)
    assert done.returncode == 2
    assert not (tmp_path / READY).exists()
    assert not (tmp_path / TWIN).exists()
    assert "--barrier" in done.stderr


def test_barrier_that_was_not_there_is_not_promised(tmp_path: Path) -> None:
    (tmp_path / TWIN).touch()
    done = supervise(tmp_path, once(tmp_path / "mark", "kill -KILL $$"))
    assert not (tmp_path / TWIN).exists()
    assert "--barrier" not in done.stderr


@pytest.mark.parametrize("code", [3, 4, 5, 6, 7])
def test_child_that_finishes_keeps_readiness(tmp_path: Path, code: int) -> None:
    """A refusal leaves readiness: what is published was proven."""
    for name in (READY, TWIN):
        (tmp_path / name).touch()
    supervise(tmp_path, once(tmp_path / "mark", f"exit {code}"))
    assert (tmp_path / READY).exists()
    assert (tmp_path / TWIN).exists()


def test_no_link_is_followed(tmp_path: Path) -> None:
    """A neighbour who may write above the status directory puts a link in its place: what it leads
    to stays. A link under the name of a status file goes itself."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in (READY, TWIN):
        (elsewhere / name).touch()
    (tmp_path / "status").symlink_to(elsewhere)
    done = supervise(tmp_path / "status", once(tmp_path / "mark", "kill -KILL $$"))
    assert (elsewhere / READY).exists()
    assert (elsewhere / TWIN).exists()
    assert "readiness not withdrawn" in done.stderr
    real = tmp_path / "real"
    real.mkdir()
    for name in (READY, TWIN):
        (real / name).symlink_to(elsewhere / name)
    supervisor.withdraw([str(real / READY), str(real / TWIN)])
    assert list(real.iterdir()) == []
    assert (elsewhere / READY).exists()


def test_twin_stays_with_a_barrier_that_stays(tmp_path: Path) -> None:
    """A reader of the barrier finds its twin."""
    (tmp_path / READY).mkdir()
    (tmp_path / TWIN).touch()
    assert not supervisor.withdraw([str(tmp_path / READY), str(tmp_path / TWIN)])
    assert (tmp_path / TWIN).exists()
