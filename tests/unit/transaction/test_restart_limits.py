"""`run` restarts the runtime three times an hour at most, and first at the node's own time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.cri import process
from agent.errors import Refused, RestartBudget
from agent.plan.context import Context
from agent.transaction import restart_limits
from agent.transaction.change import NotAccepted
from tests.unit.support.made_node import Node


class BudgetNode(Node):
    """The made-up node with a `run`, whose machine started `uptime` seconds ago."""

    uptime = 100.0

    def run(self) -> Context:
        """The context of `run`."""
        return replace(
            Node.context(self),
            has_restart_budget=True,
            uptime=lambda: self.uptime,
            wall=lambda: 7200.0,
        )  # fmt: skip

    def restart_at(self, *times: float) -> None:
        """`run` restarts the runtime at these times."""
        for self.uptime in times:
            restart_limits.require(self.run(), ())
            restart_limits.count(self.run())


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BudgetNode:
    return BudgetNode(tmp_path, monkeypatch)


def test_fourth_restart_in_an_hour_is_refused(node: BudgetNode) -> None:
    """The error names what is to be written, and when the next restart is allowed."""
    node.restart_at(100, 200, 300)
    node.uptime, node.clock = 400, 50
    with pytest.raises(RestartBudget) as refused:
        restart_limits.require(node.run(), node.changes())
    assert str(node.etc / "config.toml") in str(refused.value)
    assert "before 02:55:00 UTC" in str(refused.value)
    assert refused.value.until == 50 + 3300
    node.restart_at(100 + restart_limits.PERIOD)
    with pytest.raises(RestartBudget):
        node.restart_at(199 + restart_limits.PERIOD)
    node.restart_at(200 + restart_limits.PERIOD)


def test_restarts_of_another_boot_do_not_count(
    node: BudgetNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.restart_at(100, 200, 300)
    monkeypatch.setattr(process, "boot_id", lambda: "another")
    node.restart_at(310, 320, 330)
    with pytest.raises(RestartBudget):
        node.restart_at(340)


def test_apply_is_neither_counted_nor_refused(node: BudgetNode) -> None:
    for _ in range(restart_limits.LIMIT + 1):
        restart_limits.count(node.context())
    node.restart_at(100, 200, 300)
    restart_limits.require(node.context(), ())


def test_rollback_is_not_counted(node: BudgetNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change is, although it failed."""
    node.verdict = "bad"
    monkeypatch.setattr(node, "context", node.run)
    with pytest.raises(NotAccepted):
        node.apply()
    assert node.restarts == 2
    assert node.run().store.restarts(process.boot_id()) == (100.0,)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1, "boot_id": "b", "times": ["1"]}'])
def test_damaged_count_is_named(text: str, node: BudgetNode) -> None:
    path = node.directory / "state/restarts.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(Refused, match=r"restarts\.json"):
        restart_limits.require(node.run(), ())


def test_part_is_of_the_name() -> None:
    """The same for ever (a pod that is made anew waits until the same moment), and inside
    the time."""
    assert restart_limits.delay("node-1", 300) == restart_limits.delay("node-1", 300)
    assert round(restart_limits.delay("node-1", 300), 1) == 62.8


def test_parts_are_spread_evenly() -> None:
    """A thousand nodes that are numbered: in each tenth of the time about a tenth of them."""
    parts = [restart_limits.delay(f"gpu-node-{number:04}", 10) for number in range(1000)]
    counts = [sum(tenth <= part < tenth + 1 for part in parts) for tenth in range(10)]
    assert sum(counts) == 1000
    assert all(70 < count < 130 for count in counts), counts


def test_no_time_is_no_wait() -> None:
    assert restart_limits.delay("node-1", 0) == 0
