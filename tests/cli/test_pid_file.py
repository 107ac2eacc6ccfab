"""The pid file of `run` exists, with its pid and its lock, exactly as long as it runs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.cli.cli_node import CliNode, fails
from tests.cli.daemon import Daemon, published, running, settle


def _option(node: CliNode) -> tuple[Path, str]:
    path = node.directory / "run/toolkit.pid"
    return path, f"--pid-file={path}"


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _waiting(daemon: Daemon) -> bool:
    waits = b"supervisor.py" in _command_line(daemon.process.pid)
    return waits and published(daemon.node) is not None


def _open_files(pid: int) -> set[Path]:
    return {link.resolve() for link in Path(f"/proc/{pid}/fd").iterdir()}


def test_pid_file_is_held_to_the_end(node: CliNode) -> None:
    """A second one ends with 7, whatever state directory it has; SIGTERM takes the file away."""
    path, option = _option(node)
    with running(node, option) as daemon:
        daemon.until(lambda: _waiting(daemon))
        assert path.read_text() == f"{daemon.process.pid}\n"
        before = path.stat()
        other = f"--state-dir={node.directory}/other"
        for words in ((option, other), (option, other, "--no-daemon")):
            fails(node.agent("run", *words), 7, "another toolkit holds", str(path))
        assert (path.read_text(), path.stat()) == (f"{daemon.process.pid}\n", before)
        daemon.end()
        assert not path.exists()


def test_pid_file_of_a_killed_process_is_taken_over(node: CliNode) -> None:
    """By one that comes and goes."""
    path, option = _option(node)
    with running(node, option) as daemon:
        settle(daemon)  # a child would go on, and hold the lock
        assert _waiting(daemon)
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.wait()
        assert path.read_text() == f"{daemon.process.pid}\n"
    done = node.agent("run", option, "--no-daemon")
    assert done.returncode == 0, done.stderr
    assert not path.exists()


def test_child_does_not_hold_it(node: CliNode) -> None:
    """A convergence that outlives a killed daemon must not be in the way of the next."""
    path, option = _option(node)
    with running(node, option) as daemon:
        pid = daemon.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        daemon.until(lambda: bool(children.read_text().strip()))
        child = int(children.read_text().split()[0])
        # Before its exec a child has all files of its parent.
        daemon.until(lambda: _command_line(child) != _command_line(pid))
        os.kill(child, signal.SIGSTOP)  # until it was looked at
        try:
            assert path in _open_files(pid)
            assert path not in _open_files(child)
        finally:
            os.kill(child, signal.SIGCONT)


def test_no_pid_file_is_made_unless_asked_for(node: CliNode) -> None:
    """Under our own name there is none by default; what is in the way of one is told."""
    with running(node) as daemon:
        daemon.until(lambda: _waiting(daemon))
        assert list(node.directory.rglob("toolkit.pid")) == []
        daemon.end()
    path, option = _option(node)
    path.mkdir(parents=True)
    fails(node.agent("run", option), 3, "cannot use the pid file", str(path))
    assert node.error()["TOOLKIT_ERROR_CODE"] == "REFUSED"
