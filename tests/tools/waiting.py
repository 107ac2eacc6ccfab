"""Wait for something that another process does."""

from __future__ import annotations

from collections.abc import Callable

# Seconds. The agent is faster (tests/bench/waiting.py measures it), but a busy machine is not.
SOON = 20.0


def holds_now(condition: Callable[[], bool]) -> bool:
    """Whether it holds. It does not while a file of it cannot be read: one that is being replaced
    may be gone, or have no permissions yet."""
    try:
        return condition()
    except OSError:
        return False
