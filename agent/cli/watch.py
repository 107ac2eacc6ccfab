"""Looking at a node again and again, for `status --watch` and `status --wait`.

Invariant: time and sleep are parameters. A look can start the runtime for a trial, which is
expensive. So a pause is at least ten times as long as the look before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from agent.reports.node import Report

_PAUSE = 2.0  # seconds between two looks, at least
_SHARE = 10  # a pause is at least so many times as long as a look


def reports(
    look: Callable[[], Report],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    seconds: float = math.inf,
) -> Iterator[Report]:
    """A report again and again for so many seconds, the last one at their end."""
    end = clock() + seconds
    while True:
        begun = clock()
        yield look()
        now = clock()
        if now >= end:
            return
        sleep(min(max(_PAUSE, _SHARE * (now - begun)), end - now))


def until_ready(found: Iterator[Report]) -> Report:
    """The first of these reports in which the node is ready, else the last one."""
    report = next(found)
    while not report.ready and (later := next(found, None)):
        report = later
    return report
