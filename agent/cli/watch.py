"""Looking at a node again and again, for `status --watch` and `status --wait`.

Invariant: time and sleep are parameters. A look can start the runtime for a trial, which is
expensive. So a pause is at least ten times as long as the look before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from agent.reports.node import Report

_PAUSE = 2.0  # seconds between two looks, at least
_SHARE = 10  # a pause is at least so many times as long as a look


def until_ready(
    look: Callable[[], Report],
    timeout: float | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Report:
    """The first report of a ready node. The last report if the node is not ready within
    `timeout` seconds (None: wait for ever)."""
    end = None if timeout is None else clock() + timeout
    while True:
        begun = clock()
        found = look()
        now = clock()
        if found.ready or (end is not None and now >= end):
            return found
        pause = _pause(now - begun)
        sleep(pause if end is None else min(pause, end - now))


def for_ever(
    look: Callable[[], Report],
    show: Callable[[Report], None],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> NoReturn:
    """Show each report."""
    while True:
        begun = clock()
        show(look())
        sleep(_pause(clock() - begun))


def _pause(taken: float) -> float:
    return max(_PAUSE, _SHARE * taken)
