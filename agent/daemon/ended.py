"""The last line of a convergence in the log of `run`: how the node is, and what was done.

Invariant: pure; its keys are the same whatever was done.
"""

from __future__ import annotations

from typing import Any

from agent.engine import kinds
from agent.engine.converge import Outcome

_RECOVERED = {
    "committed": "finished an earlier change",
    "undone": "undid an earlier change",
}


def ended(outcome: Outcome) -> dict[str, Any]:
    """The keys of a convergence that succeeded."""
    proposal = outcome.proposal
    default, _ = kinds.shown(proposal.runtime.answer)
    return {
        "runtime": proposal.runtime.answer.name,
        "version": proposal.runtime.version,
        "row": proposal.decision.row,
        "native": proposal.decision.native,
        "default": default,
        "ready": not outcome.pending,
        "done": _done(outcome),
        "changed": list(outcome.changed),
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
