"""Delaying restarts, so that a first rollout does not restart all runtimes of a cluster at once.

Invariant: pure. The same node name always gives the same delay. Only a change that needs a restart
is delayed, before anything is touched. A restart that brings a runtime back is never delayed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from agent.errors import PutOff


def delay(name: str, spread: float) -> float:
    """The delay in seconds, between 0 and `spread`, that a node's name decides."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return spread * int.from_bytes(digest[:8], "big") / 2**64


def check_time(restart_after: float, clock: Callable[[], float], wall: Callable[[], float]) -> None:
    """Raises PutOff where a restart is due before `restart_after`, a time of `clock`."""
    left = restart_after - clock()
    if left <= 0:
        return
    moment = time.strftime("%H:%M:%S", time.gmtime(round(wall() + left)))
    text = f"cannot be ready yet: restart put off until {moment} UTC (restart spread)"
    raise PutOff(text, restart_after)
