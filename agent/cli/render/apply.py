"""What `apply` and `revert` print at their end.

Invariant: pure functions of what was done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.cli.render.plan import decision_data, head, spec_lines
from agent.runtimes.restart import down_message

if TYPE_CHECKING:
    from agent.transaction.converge import Outcome
    from agent.transaction.revert import Reverted


def outcome_data(outcome: Outcome) -> dict[str, Any]:
    """The end of an apply for JSON."""
    return {
        "decision": decision_data(outcome.proposal.decision),
        "changed": list(outcome.changed),
        "restarted": outcome.restarted,
        "pending": outcome.pending,
        "recovered": outcome.recovered,
        "pods": outcome.pods or None,
        "warnings": [*outcome.proposal.warnings, *_down_messages(outcome)],
    }


def outcome_text(outcome: Outcome) -> str:
    """The end of an apply for a person."""
    lines = head(outcome.proposal)
    lines += [f"Changed:  {path}" for path in outcome.changed]
    lines += spec_lines(outcome.proposal)
    if outcome.recovered:
        lines.append(f"Earlier:  an unfinished change was {outcome.recovered}")
    if outcome.pending:
        lines.append("Pending:  files are written; restart the runtime, then run apply again")
    elif outcome.restarted and outcome.down:
        lines.append("Restarted: the runtime answers as wanted, but not all that ran is back")
    elif outcome.restarted:
        lines.append("Proven:   the runtime was restarted and answers as wanted")
    elif not outcome.changed:
        lines.append("Nothing to do: the node is right")
    if outcome.pods:
        lines.append(f"Pods:     {outcome.pods}")
    warnings = (*outcome.proposal.warnings, *_down_messages(outcome))
    return "\n".join([*lines, *(f"Warning:  {text}" for text in warnings)])


def _down_messages(outcome: Outcome) -> list[str]:
    return [down_message(name) for name in outcome.down]


def reverted_data(done: Reverted) -> dict[str, Any]:
    """The end of a revert for JSON."""
    return {
        "changed": list(done.changed),
        "removed": list(done.removed),
        "restarted": done.restarted,
        "pending": done.pending,
        "warnings": list(done.notes),
    }


def reverted_text(done: Reverted) -> str:
    """The end of a revert for a person."""
    gone = set(done.removed)
    lines = [f"{'Removed: ' if path in gone else 'Restored:'} {path}" for path in done.changed]
    if done.pending:
        lines.append("Pending:  files are restored; restart the runtime")
    elif done.restarted:
        lines.append("Proven:   the runtime was restarted on its old configuration")
    lines = lines or ["Nothing to do: nothing was ever applied, or all is reverted"]
    return "\n".join([*lines, *(f"Warning:  {text}" for text in done.notes)])
