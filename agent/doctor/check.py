"""A check and what it finds.

Invariant: pure. A check whose facts are missing is not a check that found nothing: it says why it
did not look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from agent.doctor.facts import Facts, NotSeen

Severity = Literal["fault", "warning", "info"]
ORDER: Sequence[Severity] = ("fault", "warning", "info")


@dataclass(frozen=True)
class Found:
    """What a check found: a sentence, the evidence for it, and what to do where that is not what
    the check says in general."""

    severity: Severity
    text: str
    evidence: tuple[str, ...] = ()
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """An entry of the table. `id` never changes its meaning; `why` says what comes of such a
    finding, and `remedy` what to do. `find` may raise NotSeen."""

    id: str
    title: str
    why: str
    remedy: str
    find: Callable[[Facts], Iterable[Found]]


@dataclass(frozen=True)
class Finding:
    """A finding with everything that a person needs."""

    check: Check
    found: Found

    @property
    def remedy(self) -> str:
        """What to do."""
        return self.found.remedy or self.check.remedy


@dataclass(frozen=True)
class Diagnosis:
    """All findings, the worst first, and the checks that did not look, each with the reason."""

    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]
    skipped: tuple[tuple[Check, str], ...]

    @property
    def faults(self) -> tuple[Finding, ...]:
        """What keeps the node from working."""
        return tuple(item for item in self.findings if item.found.severity == "fault")


def diagnose(facts: Facts, checks: Sequence[Check]) -> Diagnosis:
    """Make all checks. Of one severity the order of the table counts: causes come before what
    follows from them."""
    findings, skipped = [], []
    for check in checks:
        try:
            findings += [Finding(check, found) for found in check.find(facts)]
        except NotSeen as error:
            skipped.append((check, str(error)))
    findings.sort(key=lambda item: ORDER.index(item.found.severity))
    return Diagnosis(tuple(checks), tuple(findings), tuple(skipped))
