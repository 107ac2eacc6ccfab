"""The limits of restarts: the budget of `run`, and the spread over the nodes of a cluster.

Invariant: `run` begins `LIMIT` restarts an hour at most, also if `run` itself is restarted in
between, so that a conflict with another program does not restart the runtime for ever. The spread
delays a restart before the first write, so that a first rollout does not restart all runtimes of a
cluster at once. A restart that undoes a change is neither counted nor refused nor delayed. `apply`
and `revert` have no budget, because a person starts them.
"""

from __future__ import annotations

import hashlib
import math
import time

from agent.errors import PutOff, RestartBudget
from agent.host.files import Change
from agent.plan.context import Context

LIMIT = 3  # restarts in one PERIOD
PERIOD = 3600.0  # seconds


def delay(name: str, spread: float) -> float:
    """The delay of a node's restart, in seconds from 0 to `spread`. It depends on the node's name
    only."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return spread * int.from_bytes(digest[:8], "big") / 2**64


def require(ctx: Context, changes: tuple[Change, ...]) -> None:
    """Check that a restart may begin now. Raises PutOff if the spread delays it, RestartBudget if
    `run` has used up its restarts, and Refused if the state cannot be read. `changes` are named in
    the error."""
    now = ctx.clock()
    if now < ctx.restart_after:
        moment = time.gmtime(round(ctx.wall() + ctx.restart_after - now))
        raise PutOff(
            f"cannot be ready yet: restart put off until {time.strftime('%H:%M:%S', moment)} UTC "
            "(restart spread)",
            ctx.restart_after,
        )
    earlier = _recent(ctx) if ctx.has_restart_budget else ()
    if len(earlier) < LIMIT:
        return
    seconds = earlier[-LIMIT] + PERIOD - ctx.uptime()
    moment = time.gmtime(math.ceil(ctx.wall() + seconds))
    names = ", ".join(item.path.host for item in changes) or "the configuration"
    raise RestartBudget(
        f"cannot apply: `run` restarted the runtime {LIMIT} times in the last hour, and does not "
        f"do so again before {time.strftime('%H:%M:%S', moment)} UTC; find the program that "
        f"changes {names} back, or run `toolkit-agent apply`, which has no limit",
        math.ceil(now + seconds),
    )


def count(ctx: Context) -> None:
    """Count a restart that is about to begin, if the context has a budget. Raises Refused."""
    if ctx.has_restart_budget:
        ctx.store.note_restarts(ctx.boot_id, (*_recent(ctx), ctx.uptime())[-LIMIT:])


def _recent(ctx: Context) -> tuple[float, ...]:
    """The times of the restarts in the last hour (seconds since boot), the earliest first."""
    now = ctx.uptime()
    return tuple(at for at in ctx.store.restarts(ctx.boot_id) if 0 <= now - at < PERIOD)
