"""The lines of the status file for a proposal that was proven."""

from __future__ import annotations

import contextlib

from agent import status
from agent.cdi.driver import driver
from agent.errors import AgentError
from agent.plan.context import Context
from agent.plan.propose import Proposal
from agent.status import Lines
from agent.toolkit import install, programs


def lines(ctx: Context, proposal: Proposal) -> Lines:
    """The lines of the status file. Never raises for a missing driver: its lines are then empty."""
    settings, host = ctx.settings, ctx.host
    hook = install.cdi_hook(settings, host, proposal.toolkit.found if proposal.toolkit else None)
    described = proposal.spec.driver if proposal.spec else None
    driver_root = dev_root = None
    with contextlib.suppress(AgentError):  # there may be no driver
        # A search is needed only if no spec describes the driver.
        driver_root, dev_root = driver.published_roots(described or driver.find(host, settings))
    return status.lines(
        proposal.decision,
        runtime=proposal.runtime.answer.name,
        version=proposal.runtime.version,
        socket=proposal.runtime.socket.host,
        cdi_enabled=settings.cdi_enabled,
        runtime_name=settings.runtime_name,
        is_default=proposal.is_default,
        paths={
            "NVIDIA_CDI_HOOK_PATH": None if programs.judged(host, hook)[0] else hook,
            "NVIDIA_DRIVER_ROOT": driver_root,
            "NVIDIA_DEV_ROOT": dev_root,
        },
        boot_id=ctx.boot_id,
        now=ctx.wall(),
    )
