"""A `run` on a node, and what shows how far it is."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from tests.cli.cli_node import CliNode
from tests.conformance import cri, statusfile
from tests.tools import forked
from tests.tools.waiting import SOON, holds_steadily, wait_until


class Daemon:
    """A running `run` on a node; what it says is in `log`."""

    def __init__(self, node: CliNode, *options: str) -> None:
        self.node = node
        self.log = node.directory / "run.log"
        self.process = forked.start_logged(
            forked.AGENT,
            ["run", *node.options(), *options],
            node.agent_environment(),
            node.directory,
            self.log,
        )

    def said(self) -> str:
        """What it said so far."""
        return self.log.read_text()

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until it holds; an assertion fails otherwise, or when the process ends."""
        wait_until(holds, self.said, lambda: self.process.poll() is None)

    def idle(self) -> bool:
        """No child runs."""
        pid = self.process.pid
        return not Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()

    def rest(self) -> None:
        """Wait until no child has run for a while: a child may follow from what one wrote."""
        self.until(holds_steadily(self.idle, 40))

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop it; it does not wait for what it waits for."""
        self.process.send_signal(number)
        assert self.process.wait(SOON) == 0, self.said()


@contextmanager
def running(node: CliNode, *options: str) -> Iterator[Daemon]:
    """`run` on a node, stopped in the end, after its child: that one writes below directories that
    are about to go."""
    daemon = Daemon(node, *options)
    try:
        yield daemon
    finally:
        daemon.process.terminate()
        try:
            daemon.process.wait(SOON)
        except subprocess.TimeoutExpired:
            daemon.process.kill()
            daemon.process.wait()


def read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def has_handler(node: CliNode) -> bool:
    """The runtime answers, and with our handler."""
    try:
        return "nvidia" in cri.ask(node.socket, 2.0).runtimes
    except grpc.RpcError:
        return False


def published(node: CliNode) -> bytes | None:
    """What both files say, without the time of it; None where they do not agree."""
    ready, twin = (read(node.validations / n) for n in (statusfile.READY, statusfile.TWIN))
    return re.sub(rb"TIMESTAMP=\d+", b"", ready) if ready and ready == twin else None


def files(node: CliNode) -> tuple[bytes | None, bytes | None]:
    return read(node.config), read(node.drop_in)


def settle(daemon: Daemon) -> None:
    """Right, and nothing more to do."""
    daemon.until(lambda: published(daemon.node) is not None and has_handler(daemon.node))
    daemon.rest()
