"""All checks in the order of causes, and their findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.doctor import cdi_checks, config_checks, handler_checks, node_checks, runtime_checks
from agent.doctor.check import ORDER, Check, Symptom
from agent.doctor.node import UNSEEN, Node

# A symptom of an earlier check can be the cause of one of a later check.
CHECKS: tuple[Check, ...] = (
    *config_checks.LOADING,
    *runtime_checks.CHECKS,
    *handler_checks.CHECKS,
    *config_checks.IN_FORCE,
    *cdi_checks.CHECKS,
    *node_checks.CHECKS,
)


@dataclass(frozen=True)
class Finding:
    """A check with a symptom that it saw."""

    check: Check
    symptom: Symptom

    @property
    def remedy(self) -> str:
        return self.symptom.remedy or self.check.remedy


@dataclass(frozen=True)
class Diagnosis:
    """All findings, the worst first. `skipped` are the checks that could not see their part of the
    node, each with the reason."""

    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]
    skipped: tuple[tuple[Check, str], ...]

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that keep the node from working."""
        return tuple(item for item in self.findings if item.symptom.severity == "fault")


def diagnose(node: Node, checks: Sequence[Check] = CHECKS) -> Diagnosis:
    """Run the checks. Findings of one severity stay in the order of the checks."""
    findings: list[Finding] = []
    skipped: list[tuple[Check, str]] = []
    for check in checks:
        try:
            # Symptoms are added one by one, so that those before an exception stay.
            findings.extend(Finding(check, symptom) for symptom in check.find(node))
        except OSError as error:
            name = error.filename or "the node"
            skipped.append((check, f"cannot read {name}: {error.strerror or error}"))
        except UNSEEN as error:
            skipped.append((check, str(error)))
    findings.sort(key=lambda item: ORDER.index(item.symptom.severity))
    return Diagnosis(tuple(checks), tuple(findings), tuple(skipped))
