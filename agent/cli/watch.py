"""Repeated status reports, for `status --watch` and `status --wait`.

Invariant: time and sleep are parameters. A report can need a trial start of the runtime, which is
expensive. So each pause is at least ten times as long as the report before it took.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from agent.reports.node import Report

_PAUSE = 2.0  # the shortest pause between two reports, in seconds
_SHARE = 10  # the shortest pause, in multiples of the time for a report


def reports(
    look: Callable[[], Report],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    seconds: float = math.inf,
) -> Iterator[Report]:
    """Reports by `look`, with pauses, for `seconds`. The last report is made at the end of that
    time; with 0 seconds it is the only one."""
    end = clock() + seconds
    while True:
        start = clock()
        yield look()
        now = clock()
        if now >= end:
            return
        sleep(min(max(_PAUSE, _SHARE * (now - start)), end - now))


def until_ready(all_reports: Iterator[Report]) -> Report:
    """The first report in which the node is ready, else the last one."""
    report = next(all_reports)
    while not report.ready and (later := next(all_reports, None)):
        report = later
    return report
