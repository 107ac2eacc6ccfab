"""One convergence of `run`, in a process of its own.

Invariant: whatever comes of it, the watch list is written before it ends, so that the supervisor
waits for the right things; and its last line in the log says how the node is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from agent.daemon.repeated_causes import FAILED, Told
from agent.daemon.summary import ended, refused
from agent.daemon.supervisor import ASIDE, NOT_YET
from agent.errors import AgentError, PutOff, StoodAside
from agent.plan.context import Context
from agent.plan.propose import Proposal
from agent.plan.watch import watched
from agent.runtimes.base import RestartHazard
from agent.transaction import restart_spread, stand_aside
from agent.transaction.converge import PENDING, converge, tell


@dataclass(frozen=True, slots=True)
class Inherited:
    """What the supervisor hands down: descriptors of the lock, of the watch list's pipe and of what
    was said in the log, the monotonic time of its start, whether to look at everything afresh, and
    whether it took `toolkit-ready` away because a convergence did not finish."""

    lock: int
    pipe: int
    told: int
    since: float
    afresh: bool
    barrier: bool = False


def work(ctx: Context, inherited: Inherited) -> int:
    """Converge once; gives the exit code."""
    for fd in (inherited.lock, inherited.pipe, inherited.told):
        os.set_inheritable(fd, False)
    told = Told(inherited.told, ctx.log, ctx.clock)
    settings = ctx.settings
    proposals: list[Proposal | None] = [None]
    name = settings.node_name or os.uname().nodename
    ctx = replace(
        ctx, lock_fd=inherited.lock, log=told.log, ask_again=inherited.afresh,
        restart_after=inherited.since + restart_spread.part(name, settings.restart_spread),
        barrier=inherited.barrier, proposed=proposals.append,
    )  # fmt: skip
    node, spec, code, reason = None, None, 0, ""
    entries: tuple[str, ...] = ()
    try:
        stand_aside.stand(ctx, inherited.lock, os.getppid())
        outcome = converge(ctx)
        node, spec = outcome.proposal.node, outcome.proposal.spec
        if outcome.pending:
            code, reason = NOT_YET, PENDING
        told.forget(FAILED)
        ctx.log("converged", **ended(outcome))
    except PutOff as error:
        code, reason, entries = NOT_YET, error.message, (f"@{error.until}",)
        ctx.log("restart put off", **refused(error, proposals[-1]))
    except StoodAside as error:
        code, reason = ASIDE, error.message
        tell(ctx, error)
        ctx.log("standing aside", reason=error.message)
    except AgentError as error:
        code, reason = error.exit_code, error.message
        entries = (error.path.agent,) if isinstance(error, RestartHazard) else ()
        ctx.log(FAILED, **refused(error, proposals[-1]))
    finally:
        _report((reason, *entries, *watched(ctx, node, spec)), inherited.pipe)
    return code


def _report(parts: tuple[str, ...], pipe: int) -> None:
    data = b"".join(os.fsencode(part.replace("\0", " ")) + b"\0" for part in parts)
    try:
        with open(pipe, "wb") as file:
            file.write(data)
    except BrokenPipeError:
        return  # the supervisor was killed; the work is done all the same
