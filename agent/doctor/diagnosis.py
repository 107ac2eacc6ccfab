"""All checks, in the order of causes, and what they find together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.doctor import cdi_checks, config_checks, handler_checks, node_checks, runtime_checks
from agent.doctor.check import ORDER, Check, Found
from agent.doctor.node import UNSEEN, Node

# What comes first explains what comes later.
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


def diagnose(node: Node, checks: Sequence[Check] = CHECKS) -> Diagnosis:
    """Make the checks. Findings of one severity stay in the order of the checks."""
    findings: list[Finding] = []
    skipped: list[tuple[Check, str]] = []
    for check in checks:
        try:
            # Lazily, because what was found stays if a later part of the node is not seen.
            findings.extend(Finding(check, found) for found in check.find(node))
        except OSError as error:
            name = error.filename or "the node"
            skipped.append((check, f"cannot read {name}: {error.strerror or error}"))
        except UNSEEN as error:
            skipped.append((check, str(error)))
    findings.sort(key=lambda item: ORDER.index(item.found.severity))
    return Diagnosis(tuple(checks), tuple(findings), tuple(skipped))
