"""All checks, in the order of causes: what comes first explains what comes later."""

from __future__ import annotations

from agent.doctor import cdi_checks, config_checks, node_checks, runtime_checks
from agent.doctor.check import Check

CHECKS: tuple[Check, ...] = (
    *config_checks.LOADING,
    *runtime_checks.CHECKS,
    *config_checks.HANDLERS,
    *cdi_checks.CHECKS,
    *node_checks.CHECKS,
)
