"""The name of a node decides which part of the time it waits before its restart."""

from __future__ import annotations

from agent.transaction import restart_spread


def test_part_is_of_the_name() -> None:
    """The same for ever (a pod that is made anew waits until the same moment), and inside
    the time."""
    assert restart_spread.delay("node-1", 300) == restart_spread.delay("node-1", 300)
    assert round(restart_spread.delay("node-1", 300), 1) == 62.8


def test_parts_are_spread_evenly() -> None:
    """A thousand nodes that are numbered: in each tenth of the time about a tenth of them."""
    parts = [restart_spread.delay(f"gpu-node-{number:04}", 10) for number in range(1000)]
    counts = [sum(tenth <= part < tenth + 1 for part in parts) for tenth in range(10)]
    assert sum(counts) == 1000
    assert all(70 < count < 130 for count in counts), counts


def test_no_time_is_no_wait() -> None:
    assert restart_spread.delay("node-1", 0) == 0
