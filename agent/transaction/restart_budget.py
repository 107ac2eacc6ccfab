"""How often `run` may restart the runtime, so that a fight with another program ends.

Invariant: `run` begins `LIMIT` restarts an hour at most, also where it is started anew in between.
A restart that brings a runtime back is not counted and never refused. `apply` and `revert` have no
budget, because somebody asks for them.
"""

from __future__ import annotations

import math
import time

from agent.errors import RestartBudget
from agent.host.files import Change
from agent.plan.context import Context
from agent.state.store import Store

LIMIT = 3
PERIOD = 3600.0  # seconds


def require(ctx: Context, changes: tuple[Change, ...]) -> None:
    """Raise RestartBudget if `run` has used up its restarts. Raises Refused."""
    if not ctx.has_restart_budget:
        return
    earlier = _recent(ctx.store, ctx.boot_id, ctx.uptime())
    if len(earlier) < LIMIT:
        return
    left = earlier[-LIMIT] + PERIOD - ctx.uptime()
    moment = time.strftime("%H:%M:%S", time.gmtime(math.ceil(ctx.wall() + left)))
    what = ", ".join(item.path.host for item in changes) or "the configuration"
    raise RestartBudget(
        f"cannot apply: `run` restarted the runtime {LIMIT} times in the last hour, and does not "
        f"do so again before {moment} UTC; find out what changes {what} back, or run "
        "`toolkit-agent apply`, which has no limit",
        math.ceil(ctx.clock() + left),
    )


def use(ctx: Context) -> None:
    """Count a restart that is about to begin. Raises Refused."""
    if ctx.has_restart_budget:
        now = ctx.uptime()
        times = (*_recent(ctx.store, ctx.boot_id, now), now)
        ctx.store.note_restarts(ctx.boot_id, times[-LIMIT:])


def _recent(store: Store, boot_id: str, now: float) -> tuple[float, ...]:
    """The restarts of the hour before `now` (seconds since the boot), the earliest first."""
    return tuple(at for at in store.restarts(boot_id) if 0 <= now - at < PERIOD)
