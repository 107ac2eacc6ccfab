"""The report of `status`: the runtime, the decision, the files, the published status, and drift.

Invariant: reads only and needs no lock. Where one part cannot be read, the others are still
reported.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from agent import status
from agent.cdi.specs.provider import OURS
from agent.cdi.specs.spec_ownership import SpecStatus
from agent.errors import AgentError, Refused
from agent.host import files
from agent.host.paths import HostRoot
from agent.options.settings import Settings
from agent.plan import own_specs
from agent.plan.context import Context
from agent.plan.propose import Proposal, preview
from agent.plan.published import lines
from agent.reports.left_over import LeftOver, left_over
from agent.runtimes import registry
from agent.runtimes.key_ownership import condition
from agent.state import store
from agent.state.store import TIDYING, Memory, Original
from agent.status import Publisher
from agent.toolkit.tree import CONFIG

OUT_OF_DATE = "the published decision is out of date"


@dataclass(frozen=True)
class Report:
    """The state of a node. `problem` is the error because of which other parts are missing. `ready`
    means that the published decision is valid and up to date. `default` and `handlers` are those
    that the running runtime shows. `specs` are the CDI specs on disk. `error` is the published
    reason of the last failure. `memory` is what is remembered, empty where it cannot be read."""

    ready: bool
    proposal: Proposal | None
    problem: AgentError | None
    published: dict[str, str]
    not_published: str | None
    error: str | None
    files: tuple[tuple[str, bool, str], ...]
    unfinished: str | None
    failed: str | None
    drift: tuple[str, ...]
    default: str | None
    handlers: tuple[str, ...]
    specs: tuple[SpecStatus, ...]
    left_over_files: tuple[LeftOver, ...]
    memory: Memory


def report(ctx: Context) -> Report:
    """The report of this node. A broken node is reported, and raises nothing."""
    proposal, problem = None, None
    memory, unfinished, failed = Memory(), None, None
    try:
        memory = store.current_memory(ctx.store)
        journal = ctx.store.journal()
        if journal is not None and journal.stage != TIDYING:
            unfinished = f"{journal.purpose} ({journal.stage})"
        failed = next((item.reason for item in reversed(ctx.store.failures().values())), None)
        proposal = preview(ctx)
        problem = next(iter(proposal.refusals), None)
    except AgentError as error:
        problem = error
    drift: list[str] = []
    if proposal is not None:
        drift += [
            f"{change.path.host} is missing or differs from what `apply` writes"
            for change in proposal.changes
        ]
        drift += _toolkit_drift(proposal)
        drift += [f"running runtime: {text}" for text in proposal.unproven]
    published, missing = _published(ctx.host, ctx.publisher, ctx.boot_id)
    if proposal is not None and published:
        now = dict(lines(ctx.settings, ctx.host, proposal, ctx.boot_id, ctx.wall()))
        if now["TOOLKIT_CONFIG_HASH"] != published.get("TOOLKIT_CONFIG_HASH"):
            drift.append(OUT_OF_DATE)
    touched = tuple(
        (
            name,
            item.digest is not None,
            _condition(ctx.host.agent_path(name), name, item)
            + _stale(ctx.host, proposal, name, item),
        )
        for name, item in sorted(memory.files.items())
    )
    ready = bool(published) and problem is None and not drift and unfinished is None
    default, handlers = registry.shown(proposal.runtime.answer) if proposal else (None, ())
    return Report(
        ready, proposal, problem, published, missing,
        status.read_error(ctx.host, ctx.publisher.directory), touched, unfinished, failed,
        tuple(drift), default, tuple(handlers),
        _on_disk(proposal.spec) if proposal and proposal.spec else (),
        _left_over(ctx.settings, ctx.host, proposal, memory), memory,
    )  # fmt: skip


def _on_disk(proposed: own_specs.SpecProposal) -> tuple[SpecStatus, ...]:
    """The specs on disk. A spec of ours that is not written yet has no writer."""
    fresh = [change.path.host for change in proposed.changes if change.before is None]
    return tuple(
        replace(spec, file="", writer="", problem=spec.problem or "it is not written yet")
        if spec.writer == OURS and spec.file in fresh
        else spec
        for spec in proposed.specs
    )


def _toolkit_drift(proposal: Proposal) -> list[str]:
    """The drift of the toolkit's programs. config.toml is not one of them, because it is among the
    changes of the proposal."""
    if proposal.toolkit is None:
        return []
    directory, different = proposal.toolkit.found.directory, proposal.toolkit.difference
    names = [name for name in different.write if name != CONFIG]
    return [
        *(f"{directory}/{name} is missing or differs from what `apply` writes" for name in names),
        *(f"{directory}/{name} should be gone" for name in different.remove),
    ]


def _condition(agent: str, host: str, original: Original) -> str:
    """The condition of a file that we wrote, in words. An edit by others is not a fault."""
    try:
        return condition(original, files.read(agent, host))
    except Refused as error:
        return error.message


def _stale(host: HostRoot, proposal: Proposal | None, name: str, original: Original) -> str:
    """A note where the runtime does not load a configuration file that we made, because another
    toolkit replaced the file that imported it."""
    node = proposal.node if proposal else None
    ours = original.digest is None and name.endswith((".toml", ".conf"))
    if node is None or not ours or not os.path.lexists(host.agent_path(name)):
        return ""
    loaded = {file.path.host for file in node.files}
    return "" if name in loaded else ", and the runtime does not load it"


def _left_over(
    settings: Settings, host: HostRoot, proposal: Proposal | None, memory: Memory
) -> tuple[LeftOver, ...]:
    """The left-over files, none where they cannot be determined."""
    try:
        return left_over(settings, host, proposal.node, memory) if proposal else ()
    except AgentError:
        return ()


def _published(
    host: HostRoot, publisher: Publisher, boot_id: str
) -> tuple[dict[str, str], str | None]:
    try:
        return status.read_valid(host, publisher.directory, boot_id), None
    except Refused as error:
        return {}, error.message
