"""Wait for something that another process does."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds. The agent is faster (tests/bench/waiting.py measures it), but a busy machine is not, and
# only a failure waits for so long.
SOON = 60.0
_PAUSE = 0.02


def wait_until(
    condition: Callable[[], bool],
    explain: Callable[[], object] = lambda: "it never held",
    alive: Callable[[], bool] = lambda: True,
) -> None:
    """Wait until the condition holds.

    `explain` gives the words of the AssertionError that is raised if it does not hold after SOON
    seconds, or not yet when `alive` is false.
    """
    end = time.monotonic() + SOON
    while not holds_now(condition):
        assert alive(), explain()
        assert time.monotonic() < end, explain()
        time.sleep(_PAUSE)


def holds_steadily(condition: Callable[[], bool], looks: int) -> Callable[[], bool]:
    """A condition that holds if the given one has held at more than so many looks in a row."""
    count = 0

    def holds() -> bool:
        nonlocal count
        count = count + 1 if condition() else 0
        return count > looks

    return holds


def holds_now(condition: Callable[[], bool]) -> bool:
    """Whether it holds. It does not while a file of it cannot be read: one that is being replaced
    may be gone, or have no permissions yet."""
    try:
        return condition()
    except OSError:
        return False
