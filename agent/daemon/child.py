"""One convergence of `run`, in a process of its own: the child of `agent.daemon.supervisor`.

Invariant: however the convergence ends, its report to the supervisor is written, so that the right
paths are watched. The last line in the log says what state the node is in.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from agent.daemon.repeat_filter import FAILED, RepeatFilter
from agent.daemon.summary import failure_fields, success_fields
from agent.daemon.supervisor import ASIDE, NOT_YET
from agent.errors import AgentError, PutOff, RestartBudget, StoodAside
from agent.plan.context import Context
from agent.plan.propose import Proposal
from agent.plan.watch import watch_paths
from agent.runtimes.base import RestartHazard
from agent.transaction import restart_spread, stand_aside
from agent.transaction.converge import PENDING, converge, publish_failure


@dataclass(frozen=True)
class Inherited:
    """What the supervisor hands down.

    `lock`, `pipe` and `logged` are descriptors: of the lock, of the pipe for the report, and of the
    file of `RepeatFilter`. `since` is the monotonic time at which the supervisor started. `refresh`
    and `barrier` are explained in `agent.daemon.supervisor`.
    """

    lock: int
    pipe: int
    logged: int
    since: float
    refresh: bool
    barrier: bool = False


def work(ctx: Context, inherited: Inherited) -> int:
    """Converge once; gives the exit code."""
    for fd in (inherited.lock, inherited.pipe, inherited.logged):
        os.set_inheritable(fd, False)
    repeats = RepeatFilter(inherited.logged, ctx.log, ctx.clock)
    settings = ctx.settings
    proposals: list[Proposal | None] = [None]
    name = settings.node_name or os.uname().nodename
    ctx = replace(
        ctx, lock_fd=inherited.lock, log=repeats, refresh=inherited.refresh,
        restart_after=inherited.since + restart_spread.delay(name, settings.restart_spread),
        has_restart_budget=True, barrier=inherited.barrier, on_proposal=proposals.append,
    )  # fmt: skip
    node, spec, code, reason = None, None, 0, ""
    entries: tuple[str, ...] = ()
    try:
        stand_aside.yield_to_revert(ctx.store, ctx.log, inherited.lock, os.getppid())
        outcome = converge(ctx)
        node, spec = outcome.proposal.node, outcome.proposal.spec
        if outcome.pending:
            code, reason = NOT_YET, PENDING
        repeats.forget(FAILED)
        ctx.log.info("converged", **success_fields(outcome))
    except PutOff as error:
        code, reason, entries = NOT_YET, error.message, _watched_for(error)
        ctx.log.info("restart put off", **failure_fields(error, proposals[-1]))
    except StoodAside as error:
        code, reason = ASIDE, error.message
        publish_failure(ctx.publisher, ctx.log, error)
        ctx.log.info("standing aside", reason=error.message)
    except AgentError as error:
        code, reason = error.exit_code, error.message
        entries = _watched_for(error)
        ctx.log.error(FAILED, **failure_fields(error, proposals[-1]))
    finally:
        _report(
            (reason, *entries, *watch_paths(settings, ctx.host, ctx.publisher, node, spec)),
            inherited.pipe,
        )
    return code


def _watched_for(error: AgentError) -> tuple[str, ...]:
    """What ends this error, besides what is watched anyway."""
    if isinstance(error, PutOff | RestartBudget):
        return (f"@{error.until}",)
    return (error.path.agent,) if isinstance(error, RestartHazard) else ()


def _report(parts: tuple[str, ...], pipe: int) -> None:
    data = b"".join(os.fsencode(part.replace("\0", " ")) + b"\0" for part in parts)
    try:
        with open(pipe, "wb") as file:
            file.write(data)
    except BrokenPipeError:
        return  # the supervisor was killed; the work is done all the same
