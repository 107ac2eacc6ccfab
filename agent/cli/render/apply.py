"""The output of `apply` and `revert`.

Invariant: pure functions of an `Outcome` or a `Reverted`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.cli.render.base import Screen, Tone
from agent.cli.render.plan import decision_data, head, spec_lines, warning_lines

if TYPE_CHECKING:
    from agent.transaction.converge import Outcome
    from agent.transaction.revert import Reverted


def outcome_data(outcome: Outcome) -> dict[str, Any]:
    """The outcome of an apply for JSON."""
    return {
        "decision": decision_data(outcome.proposal.decision),
        "changed": list(outcome.changed),
        "restarted": outcome.restarted,
        "pending": outcome.pending,
        "recovered": outcome.recovered,
        "pods": outcome.pods or None,
        "warnings": [*outcome.proposal.warnings, *outcome.down],
    }


def outcome_text(outcome: Outcome, screen: Screen) -> str:
    """The outcome of an apply for a person."""
    label, words, tone = _end(outcome)
    lines = [*screen.entry(label, words, tone), "", *head(outcome.proposal, screen)]
    changed = dict.fromkeys(outcome.changed)
    for path in changed:
        lines += screen.entry("Changed:", path)
    lines += spec_lines(outcome.proposal, screen)
    if outcome.recovered:
        lines += screen.entry("Earlier:", f"an unfinished change was {outcome.recovered}")
    if outcome.pods:
        lines += screen.entry("Pods:", outcome.pods)
    lines += warning_lines(outcome.proposal, screen, *outcome.down)
    return "\n".join(lines)


def _end(outcome: Outcome) -> tuple[str, str, Tone]:
    """The first line of the text: its label, its words and its colour."""
    if outcome.pending:
        return "Pending:", "files are written; restart the runtime, then run apply again", "warn"
    if outcome.restarted and outcome.down:
        words = "the runtime answers as desired, but other units do not run again"
        return "Restarted:", words, "warn"
    if outcome.restarted:
        return "Proven:", "the runtime was restarted and answers as desired", "good"
    if outcome.changed:
        return "Done:", "files are written; no restart was needed", "good"
    return "Nothing to do:", "the node is configured as decided", "good"


def reverted_data(done: Reverted) -> dict[str, Any]:
    """The result of a revert for JSON."""
    return {
        "changed": list(done.changed),
        "removed": list(done.removed),
        "restarted": done.restarted,
        "pending": done.pending,
        "warnings": list(done.notes),
    }


def reverted_text(done: Reverted, screen: Screen) -> str:
    """The result of a revert for a person."""
    removed = set(done.removed)
    lines = []
    if done.pending:
        lines += screen.entry("Pending:", "files are restored; restart the runtime", "warn")
    elif done.restarted:
        words = "the runtime was restarted on its old configuration"
        lines += screen.entry("Proven:", words, "good")
    for path in done.changed:
        lines += screen.entry("Removed:" if path in removed else "Restored:", path)
    if not lines:
        words = "nothing was ever applied, or all is reverted"
        lines = screen.entry("Nothing to do:", words, "good")
    for text in dict.fromkeys(done.notes):
        lines += screen.entry("Warning:", text, "warn")
    return "\n".join(lines)
