"""`status --wait` and `status --watch`, with a made-up clock."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

from agent.cli import base
from agent.reports.node import Report


class Clock:
    """A clock that only sleep and looks move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Made:
    """All that is asked of a report."""

    def __init__(self, ready: bool) -> None:
        self.ready = ready


def reports(clock: Clock, *ready: bool, takes: float = 0.0) -> Any:
    """Looks that take so long and find these."""
    found: Iterator[bool] = iter(ready)

    def look() -> Report:
        clock.now += takes
        return cast("Report", Made(next(found)))

    return look


def waited(clock: Clock, look: Any, seconds: float = math.inf) -> Report:
    """What `status --wait` shows."""
    return base.until_ready(base.reports(look, clock, clock.sleep, seconds))


def test_wait_ends_when_the_node_is_ready() -> None:
    clock = Clock()
    found = waited(clock, reports(clock, False, False, True))
    assert found.ready
    assert clock.now == 4


def test_wait_ends_at_its_timeout_with_the_last_look() -> None:
    """The look at the very end counts: the node may just have become ready."""
    clock = Clock()
    found = waited(clock, reports(clock, False, False, True), 3)
    assert (found.ready, clock.now) == (True, 3)
    found = waited(clock, reports(clock, False, False, False), 3)
    assert not found.ready


def test_timeout_of_zero_looks_once() -> None:
    clock = Clock()
    assert not waited(clock, reports(clock, False), 0).ready
    assert clock.now == 0


def test_slow_looks_are_rare() -> None:
    """A look that starts the runtime once is not made all the time."""
    clock = Clock()
    found = base.reports(reports(clock, False, False, takes=1.0), clock, clock.sleep)
    assert [clock.now for _, _ in zip(range(2), found, strict=False)] == [1.0, 12.0]
