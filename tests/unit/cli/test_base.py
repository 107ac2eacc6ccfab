"""Work that needs the node's lock waits for it where it is asked to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from agent.cli.base import with_lock
from agent.errors import Locked
from agent.plan.context import Context


@dataclass
class Node:
    """Stands in for a context: a clock that sleeping moves, and a log."""

    now: float = 5.0
    events: list[str] = field(default_factory=list)

    @property
    def log(self) -> Node:
        """The log."""
        return self

    def info(self, event: str, **_: Any) -> None:
        """Take an event."""
        self.events.append(event)

    def clock(self) -> float:
        """The time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time go by."""
        self.now += seconds

    def waited(self, seconds: float | None, free: float) -> float:
        """When the work was done that needs a lock which is free after so many seconds."""
        end = self.now + free

        def work() -> float:
            if self.now < end:
                raise Locked("cannot start")
            return self.now

        return with_lock(cast("Context", self), seconds, work)


def test_without_the_option_nothing_waits() -> None:
    """Exit code 7 comes at once, and nothing is logged."""
    node = Node()
    with pytest.raises(Locked):
        node.waited(None, 0.1)
    assert (node.now, node.events) == (5.0, [])
    assert node.waited(None, 0) == 5.0


@pytest.mark.parametrize("seconds", [60.0, math.inf])
def test_work_is_done_when_the_lock_is_free(seconds: float) -> None:
    """Soon after; the log says once what is waited for."""
    node = Node()
    assert 35 <= node.waited(seconds, 30) < 37
    assert node.events == ["waiting for the lock"]


def test_waiting_has_an_end() -> None:
    """The time that was given, and little more."""
    node = Node()
    with pytest.raises(Locked):
        node.waited(10, 60)
    assert 15 <= node.now < 17
