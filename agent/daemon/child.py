"""One convergence of `run`, in a child process of `agent.daemon.supervisor`.

Invariant: the report to the supervisor is always written, even after an error, so that the right
paths are watched. The last line of the log has the state of the node, always with the same keys; if
no decision was made, the keys of the decision are missing.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from agent.daemon.repeat_filter import FAILED, RepeatFilter
from agent.daemon.supervisor import ASIDE, NOT_YET
from agent.errors import (
    AgentError,
    PutOff,
    RestartBudget,
    RollbackFailed,
    RolledBack,
    StoodAside,
)
from agent.log import failed
from agent.plan.context import Context
from agent.plan.propose import Proposal
from agent.plan.watch import watch_paths
from agent.runtimes import registry
from agent.runtimes.base import RestartHazard
from agent.transaction import restart_limits, stand_aside
from agent.transaction.converge import PENDING, Outcome, converge, publish_failure

_RECOVERED = {
    "committed": "finished an earlier change",
    "undone": "undid an earlier change",
}


def work(
    ctx: Context, *, lock: int, pipe: int, logged: int, since: float, refresh: bool = False,
    barrier: bool = False,
) -> int:  # fmt: skip
    """Converge once, and return the exit code of the child.

    `lock`, `pipe` and `logged` are descriptors from the supervisor: of the node's lock, of the pipe
    for the report, and of the file of `RepeatFilter`. `since` is the monotonic time at which the
    supervisor started. `refresh` and `barrier` as in the protocol in `agent.daemon.supervisor`.
    """
    for fd in (lock, pipe, logged):
        os.set_inheritable(fd, False)
    repeats = RepeatFilter(logged, ctx.log, ctx.clock)
    settings = ctx.settings
    proposals: list[Proposal | None] = [None]
    name = settings.node_name or os.uname().nodename
    ctx = replace(
        ctx, lock_fd=lock, log=repeats, refresh=refresh, barrier=barrier,
        restart_after=since + restart_limits.delay(name, settings.restart_spread),
        has_restart_budget=True, on_proposal=proposals.append,
    )  # fmt: skip
    node, spec, code, reason = None, None, 0, ""
    entries: tuple[str, ...] = ()
    try:
        stand_aside.yield_to_revert(ctx.store, ctx.log, lock, os.getppid())
        outcome = converge(ctx)
        node, spec = outcome.proposal.node, outcome.proposal.spec
        if outcome.pending:
            code, reason = NOT_YET, PENDING
        repeats.forget(FAILED)
        ctx.log.info("converged", **success_fields(outcome))
    except StoodAside as error:
        code, reason = ASIDE, error.message
        publish_failure(ctx, error)
        ctx.log.info("standing aside", reason=error.message)
    except AgentError as error:
        code, reason, entries = error.exit_code, error.message, _error_entries(error)
        fields = _failure_fields(error, proposals[-1])
        if isinstance(error, PutOff):
            code = NOT_YET
            ctx.log.info("restart put off", **fields)
        else:
            ctx.log.error(FAILED, **fields)
    finally:
        watched = watch_paths(ctx, node, spec)
        _report((reason, *entries, *watched), pipe)
    return code


def _error_entries(error: AgentError) -> tuple[str, ...]:
    """The further entries of the watch list whose change can end this error."""
    if isinstance(error, PutOff | RestartBudget):
        return (f"@{error.until}",)
    return (error.path.agent,) if isinstance(error, RestartHazard) else ()


def _report(parts: tuple[str, ...], pipe: int) -> None:
    data = b"".join(os.fsencode(part.replace("\0", " ")) + b"\0" for part in parts)
    try:
        with open(pipe, "wb") as file:
            file.write(data)
    except BrokenPipeError:
        return  # the supervisor was killed, but the convergence is complete


def success_fields(outcome: Outcome) -> dict[str, Any]:
    """The fields of the log line for a convergence that succeeded."""
    parts = [_RECOVERED[outcome.recovered]] if outcome.recovered in _RECOVERED else []
    if outcome.changed:
        parts.append(f"changed {len(outcome.changed)} files")
    if outcome.restarted:
        parts.append("restarted the runtime")
    if outcome.pending:
        parts.append("the restart is somebody else's")
    return {
        **_decision(outcome.proposal),
        "ready": not outcome.pending,
        "done": ", ".join(parts) or "nothing to do",
        "changed": list(outcome.changed),
    }


def _failure_fields(error: AgentError, proposal: Proposal | None) -> dict[str, Any]:
    """The fields of the log line for a convergence that was refused, undone or put off. `proposal`
    is the last proposal, None if none was made."""
    done = "nothing"
    if isinstance(error, RollbackFailed):
        done = "changed the node and could not undo it"
    elif isinstance(error, RolledBack):
        done = "undid its change"
    put_off = isinstance(error, PutOff)
    why = {"ready": False, "reason": error.message} if put_off else failed(error)
    return {**_decision(proposal), **why, "done": done}


def _decision(proposal: Proposal | None) -> dict[str, Any]:
    if proposal is None:
        return {}
    return {
        "runtime": proposal.runtime.answer.name,
        "version": proposal.runtime.version,
        "row": proposal.decision.row,
        "native": proposal.decision.native,
        "default": registry.shown_handler_names(proposal.runtime.answer)[0],
    }
