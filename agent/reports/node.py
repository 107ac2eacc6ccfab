"""The report of `status`: the runtime, the decision, the files, the published status, and drift.

Invariant: reads only and needs no lock. If one part cannot be read, the other parts are still
reported.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from agent import status
from agent.cdi.specs import own_specs
from agent.cdi.specs.provider import OURS
from agent.cdi.specs.spec_ownership import SpecStatus
from agent.errors import AgentError, Refused
from agent.host import files
from agent.host.paths import HostRoot, is_below
from agent.options.settings import Settings
from agent.plan.context import Context
from agent.plan.propose import Proposal, preview
from agent.plan.published import lines
from agent.runtimes import find, registry
from agent.runtimes.base import ConfiguredRuntime
from agent.runtimes.desired_state import is_ours, programs_of
from agent.runtimes.key_ownership import condition
from agent.state import store
from agent.state.journal import TIDYING
from agent.state.store import Memory, Original
from agent.toolkit import install
from agent.toolkit.config import CONFIG

OUT_OF_DATE = "the published decision is out of date"
_REMEDY = "toolkit-agent revert --keep-edits --toolkit"


@dataclass(frozen=True)
class LeftOver:
    """An unused file or directory of ours (host path), its kind in words, and the command that
    removes it."""

    path: str
    what: str
    remedy: str = _REMEDY


@dataclass(frozen=True)
class Report:
    """The state of a node.

    `ready`: the published decision is valid and up to date. `problem` is the error because of which
    other parts are missing. `published` has the lines of the status file; `not_published` says why
    there are none. `error` is the published reason of the last failure. `files` are (host path,
    existed before?, condition in words) of each file that we wrote. `unfinished` is the change in
    the journal, and `failed` the reason why the last change failed. `drift` has sentences about
    differences from the desired state. `default` and `handlers` are those that the running runtime
    shows. `specs` are the CDI specs on disk. `memory` is the agent's memory, empty if it cannot be
    read.
    """

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
    """The report of this node. Errors become parts of the report."""
    settings, host, directory = ctx.settings, ctx.host, ctx.publisher.directory
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
    published: dict[str, str] = {}
    not_published = None
    try:
        published = status.read_valid(host, directory, ctx.boot_id)
    except Refused as error:
        not_published = error.message
    drift: list[str] = []
    left_over: tuple[LeftOver, ...] = ()
    default, handlers = None, tuple[str, ...]()
    if proposal is not None:
        drift += _drift(proposal)
        now = dict(lines(ctx, proposal)) if published else {}
        if now.get("TOOLKIT_CONFIG_HASH") != published.get("TOOLKIT_CONFIG_HASH"):
            drift.append(OUT_OF_DATE)
        default, handlers = registry.shown_handler_names(proposal.runtime.answer)
        with contextlib.suppress(AgentError):
            left_over = tuple(_left_over(settings, host, proposal.node, memory))
    touched = tuple(
        (name, item.digest is not None, _condition(host, proposal, name, item))
        for name, item in sorted(memory.files.items())
    )
    ready = bool(published) and problem is None and not drift and unfinished is None
    return Report(
        ready, proposal, problem, published, not_published, status.read_error(host, directory),
        touched, unfinished, failed, tuple(drift), default, tuple(handlers),
        _on_disk(proposal.spec) if proposal and proposal.spec else (), left_over, memory,
    )  # fmt: skip


def _drift(proposal: Proposal) -> Iterator[str]:
    """A sentence about each difference between the node and the proposal. config.toml is among the
    changes, not among the toolkit's programs."""
    for change in proposal.changes:
        yield f"{change.path.host} is missing or differs from what `apply` writes"
    if proposal.toolkit is not None:
        directory, difference = proposal.toolkit.found.directory, proposal.toolkit.difference
        for name in difference.write:
            if name != CONFIG:
                yield f"{directory}/{name} is missing or differs from what `apply` writes"
        for name in difference.remove:
            yield f"{directory}/{name} should not exist"
    for text in proposal.unproven:
        yield f"running runtime: {text}"


def _on_disk(proposed: own_specs.SpecProposal) -> tuple[SpecStatus, ...]:
    """The specs that exist on disk. A spec of ours that is yet to be written has no file and no
    writer."""
    new_files = [change.path.host for change in proposed.changes if change.before is None]
    return tuple(
        replace(spec, file="", writer="", problem=spec.problem or "it is not written yet")
        if spec.writer == OURS and spec.file in new_files
        else spec
        for spec in proposed.specs
    )


def _condition(host: HostRoot, proposal: Proposal | None, name: str, original: Original) -> str:
    """The condition of a file that we wrote, in words. An edit by others is no fault.

    A file that we made is not loaded if another toolkit replaced the file that imported it.
    """
    agent = host.agent_path(name)
    try:
        text: str = condition(original, files.read(agent, name))
    except Refused as error:
        text = error.message
    node = proposal.node if proposal else None
    made = original.digest is None and name.endswith((".toml", ".conf"))
    if node is None or not made or not os.path.lexists(agent):
        return text
    loaded = any(file.path.host == name for file in node.files)
    return text if loaded else f"{text}, and the runtime does not load it"


def _left_over(
    settings: Settings, host: HostRoot, node: ConfiguredRuntime | None, memory: Memory
) -> Iterator[LeftOver]:
    """Our specs and toolkit directories, if handlers or hooks run NVIDIA's programs and none of
    these programs is ours. Raises Refused."""
    current = install.installed_paths(settings, host)
    directories = (*current, *memory.moved)
    if node is None or not memory.files or not directories:
        return
    programs = [path for _, path in node.hook_programs({})]
    for name, table in node.effective(node.files).runtimes.items():
        programs += programs_of(table) if is_ours(name, table) else ()
    programs = [path for path in programs if path.startswith("/")]
    if not programs or any(is_below(path, *directories) for path in programs):
        return
    for path in own_specs.written_by_us(settings, host, find.spec_directories(node.runtime)):
        yield LeftOver(path.host, "CDI spec")
    for directory in (*current[:1], *memory.moved):
        yield LeftOver(directory, "toolkit")
