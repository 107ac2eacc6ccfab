"""The file of `run --ready-file` exists exactly while the last convergence has succeeded."""

from __future__ import annotations

import signal
import time

import pytest

from agent.transaction import restart_limits
from tests.cli.cli_node import CliNode, fails, tells
from tests.cli.daemon import published, running, settle
from tests.conformance import checks

# A name whose part of the time is near its middle.
NAME = next(
    name for name in map("node-{}".format, range(99)) if 0.45 < restart_limits.delay(name, 1) < 0.55
)


class Ready:
    """The ready file of a node."""

    def __init__(self, node: CliNode) -> None:
        self.path = node.directory / "pod/ready"
        self.path.parent.mkdir()
        self.option = f"--ready-file={self.path}"

    def holds(self) -> bool:
        """It is there."""
        return self.path.exists()

    def reason(self) -> str:
        """Why it is not; "" where nobody says so."""
        path = self.path.with_name("ready.reason")
        return path.read_text() if path.exists() else ""


@pytest.fixture
def ready(node: CliNode) -> Ready:
    return Ready(node)


def test_ready_file_comes_with_success_and_goes_with_the_process(
    node: CliNode, ready: Ready
) -> None:
    """Also where an older decision lies on the host already."""
    checks.done(node.agent("apply"))
    with running(node, ready.option) as daemon:
        daemon.until(lambda: "not over" in ready.reason() or ready.holds())
        settle(daemon)
        daemon.until(ready.holds)
        assert ready.path.read_text().split()[0] == str(daemon.process.pid)
        assert ready.reason() == ""
        daemon.end()
        assert list(ready.path.parent.iterdir()) == []


def test_ready_file_goes_when_a_convergence_is_refused(node: CliNode, ready: Ready) -> None:
    """And says why; it comes back with the next success."""
    good = node.config.read_bytes()
    with running(node, ready.option) as daemon:
        daemon.until(ready.holds)
        settle(daemon)
        node.config.write_bytes(good + b"[broken")
        daemon.until(lambda: not ready.holds())
        daemon.until(lambda: f"cannot read {node.config}" in ready.reason())
        assert ready.reason().count("\n") == 1
        assert published(node) is not None, "what was proven before is not taken back"
        node.config.write_bytes(good)
        daemon.until(ready.holds)
        assert ready.reason() == ""


def test_ready_file_goes_when_a_change_is_undone(node: CliNode, ready: Ready) -> None:
    """The runtime is well, on its old files: the rollout that asked for the change has failed."""
    checks.done(node.agent("apply"))
    node.script(die_when={"default": "nvidia"})
    with running(node, ready.option, "--set-as-default=true") as daemon:
        daemon.until(lambda: "cannot apply" in ready.reason())
        tells(node, 5, "ROLLED_BACK")
        # The next tries are refused, because nothing has changed.
        daemon.until(lambda: "failed before" in ready.reason())
        assert not ready.holds()


def test_restart_of_somebody_else_is_waited_for(node: CliNode, ready: Ready) -> None:
    with running(node, ready.option, "--restart-mode=none") as daemon:
        daemon.until(lambda: "restart the runtime" in ready.reason())
        assert not ready.holds()
        node.restart()
        daemon.until(ready.holds)


WRONG = {
    "value": ("--proof-timeout=never", 2),
    "option": ("--no-such-option", 2),
    "directory": ("--state-dir=/proc/none", 3),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_ready_file_of_a_killed_process_is_removed(wrong: str, node: CliNode, ready: Ready) -> None:
    """Whatever becomes of the next one; its option may be wrong."""
    with running(node, ready.option) as daemon:
        daemon.until(ready.holds)
        settle(daemon)
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.wait()
    assert ready.holds()
    option, code = WRONG[wrong]
    fails(node.agent("run", ready.option, option), code)
    assert not ready.holds()


def test_ready_file_of_unknown_origin_is_removed(node: CliNode, ready: Ready) -> None:
    """Whatever is in it, and also where the next process ends at once."""
    for content in (b"", b"1 1\n", b"text", bytes(range(256))):
        ready.path.write_bytes(content)
        checks.done(node.agent("run", ready.option, "--no-daemon"))
        assert not ready.holds()


def test_second_process_does_not_take_the_first_one_s(node: CliNode, ready: Ready) -> None:
    """Somebody tries `run` by hand beside it."""
    with running(node, ready.option) as daemon:
        settle(daemon)
        daemon.until(ready.holds)
        fails(node.agent("run", ready.option), 7, "another toolkit-agent")
        fails(node.agent("run", ready.option, "--no-such-option"), 2)
        assert ready.holds()


def test_ready_file_that_cannot_be_written_is_refused(node: CliNode) -> None:
    fails(node.agent("run", f"--ready-file={node.directory}/none/ready"), 3, "ready file")


def test_link_is_not_followed(node: CliNode, ready: Ready) -> None:
    """It is replaced."""
    other = node.directory / "other"
    other.write_text("text")
    for name in ("ready", "ready.new", "ready.reason", "ready.reason.new"):
        (ready.path.parent / name).symlink_to(other)
    with running(node, ready.option) as daemon:
        daemon.until(ready.holds)
        daemon.until(lambda: not ready.path.is_symlink())
        assert other.read_text() == "text"


def test_put_off_restart_leaves_the_node_untouched(node: CliNode, ready: Ready) -> None:
    """Until its time nothing is touched, nothing runs but the process that waits, and the reason is
    told once. A stop ends the wait."""
    before, starts = node.tree(), node.supervisor.starts
    with running(node, ready.option, "--restart-spread=24h", f"--node-name={NAME}") as daemon:
        daemon.until(lambda: "restart put off until" in ready.reason())
        assert "(restart spread)" in ready.reason()
        daemon.rest()
        tells(node, 0, "RESTART_PUT_OFF")
        assert not ready.holds()
        assert node.tree() == before
        assert node.supervisor.starts == starts
        assert daemon.said().count('"event": "restart put off"') == 1
        daemon.end()


def test_put_off_restart_comes_at_its_time(node: CliNode, ready: Ready) -> None:
    """After a part of the spread that the node's name decides."""
    starts, began = node.supervisor.starts, time.monotonic()
    with running(node, ready.option, "--restart-spread=6s", f"--node-name={NAME}") as daemon:
        daemon.until(ready.holds)
        assert time.monotonic() - began > 0.45 * 6
        assert node.supervisor.starts == starts + 1


def test_node_that_is_right_is_not_held_up(node: CliNode, ready: Ready) -> None:
    """Nor is `apply`."""
    checks.done(node.agent("apply", "--restart-spread=24h", f"--node-name={NAME}"))
    with running(node, ready.option, "--restart-spread=24h", f"--node-name={NAME}") as daemon:
        daemon.until(ready.holds)
        assert '"done": "nothing to do"' in daemon.said()
    checks.done(node.agent("revert", "--restart-spread=24h", f"--node-name={NAME}"))
