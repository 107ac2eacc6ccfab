"""The observation of the node from which a proposal is made.

Invariant: reads only. One observation is used for a whole proposal, so that a decision and its
edits are based on the same moment. A new one is made only after a write of ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.decide import Evidence
from agent.errors import NoToolkit
from agent.host.files import Change
from agent.host.paths import HostRoot
from agent.options.settings import Settings
from agent.plan import garbled_files
from agent.runtimes import find, registry
from agent.runtimes.base import ConfiguredRuntime, Runtime
from agent.state.store import Memory
from agent.toolkit import install


@dataclass(frozen=True)
class Observation:
    """The state of the node at one moment.

    `memory`: what the agent remembers of the node. `toolkit`: None if the node has none and needs
    none; then `toolkit_warning` is the reason. `node`: None if the options forbid a change of the
    runtime's configuration. `evidence`: of CDI, the best source first. `repairs`: the repairs of
    our garbled files; the other fields have the state after these repairs."""

    memory: Memory
    toolkit: install.Toolkit | None
    toolkit_warning: str | None
    runtime: Runtime
    node: ConfiguredRuntime | None
    evidence: tuple[Evidence, ...]
    repairs: tuple[Change, ...] = ()


def observe(settings: Settings, host: HostRoot, memory: Memory) -> Observation:
    """Observe the node. Raises Unreachable or Refused."""
    toolkit, warning = None, None
    try:
        toolkit = install.find_toolkit(settings, host)
    except NoToolkit as error:
        if not settings.no_runtime_config:
            raise
        warning = error.message  # no handler is registered, so the node can do without
    runtime = find.find_runtime(settings, host)
    adapter = registry.adapter(runtime.kind)
    if settings.no_runtime_config:
        evidence = adapter.evidence(runtime.answer)
        return Observation(memory, toolkit, warning, runtime, None, evidence)
    repairs = tuple(item.repair for item in garbled_files.find_garbled(settings, host, memory))
    overlay = {change.path.host: change.after for change in repairs}
    node = adapter.configured_runtime(settings, host, runtime, overlay)
    return Observation(memory, toolkit, warning, runtime, node, node.evidence(), repairs)
