"""What is published of a proposal that was proven."""

from __future__ import annotations

from agent.cdi.driver import driver
from agent.cdi.make import generate, hooks
from agent.plan.context import Context
from agent.plan.propose import Proposal
from agent.status import Facts
from agent.toolkit import install


def facts(ctx: Context, proposal: Proposal) -> Facts:
    """The published facts of a proven proposal."""
    decision, settings = proposal.decision, ctx.settings
    driver_root, dev_root = driver.published(ctx.host, generate.places(settings)) or (None, None)
    hook = install.cdi_hook(
        ctx.settings, ctx.host, proposal.toolkit.found if proposal.toolkit else None
    )
    return Facts(
        runtime=proposal.runtime.answer.name,
        runtime_version=proposal.runtime.version,
        socket=proposal.runtime.socket.host,
        cdi_enabled=settings.cdi_enabled,
        native=bool(decision.native),
        source=decision.source,
        reason=decision.reason,
        spec_dirs=decision.spec_dirs,
        cri_field=decision.cri_field,
        runtime_name="" if decision.hook else settings.runtime_name,
        mode=decision.mode,
        is_default=proposal.is_default,
        strategy=decision.strategy,
        annotation_prefix=decision.annotation_prefix,
        hook_path=hooks.program(ctx.host, hook).path,
        driver_root=driver_root,
        dev_root=dev_root,
    )
