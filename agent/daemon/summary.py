"""The fields of the log line that ends a convergence of `run`: the node's state, and what was done.

Invariant: pure. The keys are the same whatever was done, but without a decision its keys are
missing.
"""

from __future__ import annotations

from typing import Any

from agent.errors import AgentError, PutOff, RollbackFailed, RolledBack
from agent.log import failed
from agent.plan.propose import Proposal
from agent.runtimes import registry
from agent.transaction.converge import Outcome

_RECOVERED = {
    "committed": "finished an earlier change",
    "undone": "undid an earlier change",
}


def success_fields(outcome: Outcome) -> dict[str, Any]:
    """The fields of a convergence that succeeded."""
    return {
        **_decision(outcome.proposal),
        "ready": not outcome.pending,
        "done": _done(outcome),
        "changed": list(outcome.changed),
    }


def failure_fields(error: AgentError, proposal: Proposal | None) -> dict[str, Any]:
    """The fields of a convergence that was refused, undone or put off. `proposal` is the last one,
    if there was any."""
    done = "nothing"
    if isinstance(error, RollbackFailed):
        done = "changed the node and could not undo it"
    elif isinstance(error, RolledBack):
        done = "undid its change"
    why = failed(error)
    if isinstance(error, PutOff):
        why = {"ready": False, "reason": error.message}
    return {**_decision(proposal), **why, "done": done}


def _decision(proposal: Proposal | None) -> dict[str, Any]:
    if proposal is None:
        return {}
    default, _ = registry.shown(proposal.runtime.answer)
    return {
        "runtime": proposal.runtime.answer.name,
        "version": proposal.runtime.version,
        "row": proposal.decision.row,
        "native": proposal.decision.native,
        "default": default,
    }


def _done(outcome: Outcome) -> str:
    parts = [_RECOVERED[outcome.recovered]] if outcome.recovered in _RECOVERED else []
    if outcome.changed:
        parts.append(f"changed {len(outcome.changed)} files")
    if outcome.restarted:
        parts.append("restarted the runtime")
    if outcome.pending:
        parts.append("the restart is somebody else's")
    return ", ".join(parts) or "nothing to do"
