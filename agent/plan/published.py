"""What is published of a proposal that was proven."""

from __future__ import annotations

from agent.cdi.driver import driver
from agent.cdi.make.hooks import find_program
from agent.errors import AgentError
from agent.host.paths import HostRoot
from agent.options.settings import Settings
from agent.plan.propose import Proposal
from agent.status import Facts
from agent.toolkit import install


def facts(settings: Settings, host: HostRoot, proposal: Proposal) -> Facts:
    """The published facts of a proven proposal."""
    decision = proposal.decision
    driver_root, dev_root = _driver_roots(settings, host, proposal)
    hook = install.cdi_hook(settings, host, proposal.toolkit.found if proposal.toolkit else None)
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
        hook_path=find_program(host, hook).path,
        driver_root=driver_root,
        dev_root=dev_root,
    )


def _driver_roots(
    settings: Settings, host: HostRoot, proposal: Proposal
) -> tuple[str | None, str | None]:
    """Host paths of the driver root and of the root of its device nodes; None where there is no
    driver. It is the driver of the proposed specs; only where there are none it is searched."""
    found = proposal.spec.driver if proposal.spec else None
    try:
        return driver.published_roots(found or driver.find(host, driver.places(settings)))
    except AgentError:
        return None, None
