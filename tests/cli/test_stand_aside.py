"""A `run` lets a `revert` have the lock, and leaves the node alone afterwards."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode, fails, tells
from tests.cli.daemon import files, has_handler, published, running, settle
from tests.cli.interrupted import PlainNode
from tests.cli.test_ready_file import Ready
from tests.conformance import checks


@pytest.fixture
def ready(node: CliNode) -> Ready:
    return Ready(node)


def left(node: CliNode) -> set[str]:
    """What is in the state directory of requests."""
    return {name.name for name in node.state.iterdir() if name.name.startswith("aside")}


def test_run_stays_aside(node: CliNode, ready: Ready) -> None:
    """Whatever changes, and whatever signal comes; another command gets the lock; the next `run`
    makes the node right."""
    before = files(node)
    with running(node, ready.option) as daemon:
        settle(daemon)
        daemon.until(ready.holds)
        checks.done(node.agent("revert"))
        assert files(node) == before
        daemon.until(lambda: "`revert` undid" in ready.reason())
        assert not ready.holds()
        tells(node, 0, "REVERTED")
        daemon.until(daemon.idle)
        daemon.process.send_signal(signal.SIGHUP)
        node.config.write_bytes(node.config.read_bytes() + b"# touched\n")
        time.sleep(2)
        daemon.rest()
        assert published(node) is None
        assert not has_handler(node)
        checks.done(node.agent("revert"))
        assert left(node) == {"aside.reverted"}
        daemon.end()
    with running(node) as daemon:
        settle(daemon)
        assert left(node) == set()


def test_run_goes_on_after_a_refusal(node: CliNode, ready: Ready) -> None:
    with running(node, ready.option) as daemon:
        settle(daemon)
        daemon.until(ready.holds)
        edited = node.config.read_bytes() + b"# edited\n"
        node.config.write_bytes(edited)
        fails(node.agent("revert"), 3, "somebody edited it since")
        settle(daemon)
        daemon.until(ready.holds)
        assert left(node) == set()
        fails(node.agent("apply"), 7, "another toolkit-agent")
        daemon.until(lambda: not (node.validations / ".toolkit-ctr-error").exists())


@pytest.mark.parametrize("who", ["revert", "run"])
def test_killed_revert_or_run_leaves_the_node_to_the_other(who: str, place: Path) -> None:
    """A revert that is killed leaves the node to `run`; if `run` is killed the revert goes on."""
    with PlainNode(place) as node:
        before = files(node)
        with running(node) as daemon:
            settle(daemon)
            right = files(node)
            process = node.start_in_steps("revert", "stop:@pidfd_send")
            node.stopped(process)
            assert files(node) == before, "it is in the middle"
            if who == "revert":
                process.kill()
                process.wait()
                settle(daemon)
                daemon.until(lambda: files(node) == right)
                daemon.until(lambda: left(node) == set())
                fails(node.agent("apply"), 7, "another toolkit-agent")
                return
            daemon.process.kill()
            daemon.process.wait()
            node.go.touch()
            assert node.finish(process).returncode == 0
            time.sleep(1)  # for a child that outlived it
            assert files(node) == before
            assert published(node) is None


def test_request_of_a_dead_revert_is_none(node: CliNode) -> None:
    """It is removed, and costs one look."""
    with running(node) as daemon:
        settle(daemon)
        (node.state / "aside").write_text("1\n")
        daemon.until(lambda: left(node) == set())
        settle(daemon)


def test_child_in_progress_ends_first(node: CliNode) -> None:
    """A convergence that begins all the time does not keep a revert waiting."""
    before = files(node)
    with running(node, "--interval=1s") as daemon:
        settle(daemon)
        daemon.process.send_signal(signal.SIGHUP)
        checks.done(node.agent("revert"))
        assert files(node) == before
        said = [json.loads(line)["event"] for line in daemon.said().splitlines()]
        daemon.until(lambda: "standing aside" in daemon.said())
        assert "convergence not finished" not in said
