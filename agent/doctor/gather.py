"""One look at a node, for the checks.

Invariant: reads only, and never raises for a broken node: each part is gathered by itself, and is
missing with a reason where that fails. Nothing of a file's content is kept but names and paths.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from agent import status
from agent.cri import process
from agent.cri.process import Process
from agent.cri.versions import parse_version
from agent.doctor import look_config, look_node
from agent.doctor.facts import (
    AgentFacts,
    ConfigFacts,
    Down,
    Facts,
    NotSeen,
    Part,
    RuntimeFacts,
)
from agent.errors import AgentError, NoDriver, NoToolkit, Refused
from agent.host import budget, trust
from agent.host.paths import HostRoot
from agent.options.settings import Settings
from agent.plan import garbled_files, in_force, propose
from agent.plan.context import Context, Reach
from agent.plan.propose import Proposal
from agent.reports.node import Report
from agent.runtimes import find, registry
from agent.runtimes.base import ConfiguredRuntime, Runtime
from agent.runtimes.config_file import ConfigFile
from agent.state.store import Memory
from agent.status import Publisher
from agent.systemd.units import SystemdError

_Value = TypeVar("_Value")


def gather(ctx: Context, report: Report) -> Facts:
    """Look at the node of a report."""
    settings, host = ctx.settings, ctx.host
    runtime, error = _runtime(settings, host, report.proposal)
    known, settings = (runtime, settings) if runtime else _asleep(settings, host)
    node, refused = _node(settings, host, known, report.proposal)
    if refused:
        refused = _garbled(settings, host, report.memory) or refused
    why = refused.partition(";")[0] or ("no runtime answers" if error else "")

    def start_failure() -> str:
        looked = part(lambda: propose.start_failure(ctx.start_trial, node) if node else "")
        return looked.value or ""

    def config() -> ConfigFacts:
        there = _present(node, why)
        if runtime is None:
            return look_config.config(host, there)
        unloaded = in_force.first_unloaded(report.memory, there, ctx.wall)
        reloaded = _reloaded(ctx, report.memory, there)
        if (failure := start_failure()) and unloaded is None:
            unloaded = _changed(ctx, there)  # in what the runtime does not show
        return look_config.config(host, there, unloaded, reloaded, failure)

    return Facts(
        machine=look_node.machine(settings, host, runtime),
        runtime=part(lambda: _runtime_facts(settings, host, _present(runtime, why))),
        down=_down(settings, host, ctx.reach, known, error, start_failure())
        if error is not None
        else None,
        config=part(config),
        refused=refused,
        specs=part(lambda: look_node.specs(settings, host, runtime)),
        agent=part(lambda: _agent(report, host, ctx.publisher)),
        toolkit=part(lambda: look_config.toolkit(host, _present(node, why))),
        kubelet=part(lambda: look_node.kubelet(host)),
        plugins=part(lambda: look_node.plugins(host)),
        driver=part(lambda: look_node.driver_facts(settings, host)),
        units=part(lambda: look_node.units(host, ctx.reach, _present(runtime, why))),
    )


def part(look: Callable[[], _Value]) -> Part[_Value]:
    """What a look gives, or the reason why it gives nothing."""
    try:
        return Part(look())
    except NotSeen as error:
        return Part(why=str(error))
    except AgentError as error:
        return Part(why=error.message)
    except OSError as error:
        return Part(why=f"cannot read {error.filename or 'the node'}: {error.strerror or error}")


def _present(value: _Value | None, why: str) -> _Value:
    if value is None:
        raise NotSeen(why or "there is no runtime")
    return value


def _runtime(
    settings: Settings, host: HostRoot, proposal: Proposal | None
) -> tuple[Runtime | None, AgentError | None]:
    """The runtime of the report's proposal; where that could not be made, the one that answers."""
    try:
        return proposal.runtime if proposal else find.find_runtime(settings, host), None
    except AgentError as error:
        return None, error


def _asleep(settings: Settings, host: HostRoot) -> tuple[Runtime | None, Settings]:
    """The runtime that would answer; the settings name its executable then."""
    found = part(lambda: find.asleep(settings, host)).value
    if found is None:
        return None, settings
    runtime, program = found
    return runtime, replace(settings, executable_path=program)


def _node(
    settings: Settings, host: HostRoot, runtime: Runtime | None, proposal: Proposal | None
) -> tuple[ConfiguredRuntime | None, str]:
    """The runtime with its files as they are, or why they cannot be used."""
    if runtime is None:
        return None, ""
    if proposal and proposal.node and not proposal.repairs:  # otherwise it counts as repaired
        return proposal.node, ""
    try:
        return registry.adapter(runtime.kind).look(settings, host, runtime), ""
    except AgentError as error:
        return None, error.message


def _garbled(settings: Settings, host: HostRoot, memory: Memory) -> str:
    """The error for a file of ours that somebody garbled, which is no reason to refuse."""
    found = part(lambda: garbled_files.find_garbled(settings, host, memory)).value or ()
    for item in found:
        why = item.fault.partition(";")[0]
        return f"cannot use {item.repair.path}: {why}; `toolkit-agent apply` writes it anew"
    return ""


def _changed(ctx: Context, node: ConfiguredRuntime) -> ConfigFile | None:
    """The first file that was changed after the runtime was started."""
    running = node.runtime.process
    if running is None:
        return None
    changed = (f for f in node.files
               if process.changed_since_start(running, f.path.agent, ctx.wall))  # fmt: skip
    return next(changed, None)


def _reloaded(ctx: Context, memory: Memory, node: ConfiguredRuntime) -> str:
    """A file with handlers of NVIDIA's that the runtime may only have reloaded: it shows them, and
    pods get what it had at its start."""
    running = node.runtime.process
    if not node.adapter.shows_reloaded or running is None:
        return ""
    if memory.proven == (ctx.boot_id, *running.identity):
        return ""
    for file in node.files:
        ours = any(True for _ in node.own_keys(file.data, switch=False))
        if ours and process.changed_since_start(running, file.path.agent, ctx.wall):
            return file.path.host
    return ""


def _down(
    settings: Settings, host: HostRoot, reach: Reach, runtime: Runtime | None, error: AgentError,
    start_failure: str,
) -> Down:  # fmt: skip
    unit = _unit(host, reach, f"{runtime.kind}.service") if runtime else ""
    there = tuple(item.socket.host for item in find.sockets(settings, host))
    denied = os.geteuid() != 0 and "permission denied" in error.message
    return Down(error.message, there, unit, start_failure, denied)


def _unit(host: HostRoot, reach: Reach, name: str) -> str:
    if os.geteuid() != 0:
        return ""
    try:
        return str(reach(host, name)[1])
    except SystemdError:
        return ""


def _runtime_facts(settings: Settings, host: HostRoot, runtime: Runtime) -> RuntimeFacts:
    adapter, running = registry.adapter(runtime.kind), runtime.process
    default, handlers = registry.shown(runtime.answer)
    seen = adapter.evidence(runtime.answer)
    found = next((item for item in seen if item.seen), seen[0])
    dirs = found.spec_dirs
    program = part(lambda: find.executable(settings, host, running)).value or ""
    after = find.executable_version(host, program) if program else None
    return RuntimeFacts(
        title=adapter.title,
        version=runtime.version,
        socket=runtime.socket.host,
        ready=runtime.answer.ready,
        process=str(running.pid) if running else "",
        unit=(running.unit if running else None) or "",
        executable=program,
        next_version=after or "",
        gone=running is not None and _is_gone(host, running, program),
        default=default,
        handlers=handlers,
        switch=found.switch.value,
        spec_dirs=dirs,
        tells_cgroups=(parse_version(runtime.version) or (0,)) >= adapter.cgroup_driver_since,
    )


def _is_gone(host: HostRoot, running: Process, program: str) -> bool:
    """Was the executable of a process deleted, and nothing put in its place?"""
    try:
        deleted = os.readlink(f"{running.proc}/{running.pid}/exe").endswith(" (deleted)")
    except OSError:
        return False
    return deleted and bool(program) and not os.path.lexists(host.agent_path(program))


def _agent(report: Report, host: HostRoot, publisher: Publisher) -> AgentFacts:
    """What the agent did, and what it would do."""
    proposal, problem = report.proposal, report.problem
    without = isinstance(problem, NoToolkit | NoDriver)
    return AgentFacts(
        managed=bool(report.memory.files) or bool(report.published),
        problem=problem.message if problem else "",
        code=problem.status_code if problem and without else "",
        published=report.published,
        not_published=report.not_published or "",
        specs_gone=any(not spec.file for spec in report.specs),
        barrier=_barrier(host, publisher) if report.published else "",
        error=_published_error(host, publisher),
        drift=report.drift,
        unfinished=report.unfinished or "",
        failed=report.failed or "",
        left=tuple((item.path, item.what, item.remedy) for item in report.left_over_files),
        warnings=proposal.warnings if proposal else (),
        restart="; ".join(proposal.unproven) if proposal else "",
    )


def _barrier(host: HostRoot, publisher: Publisher) -> str:
    """What is wrong with the barrier, where its twin is right."""
    try:
        barrier, twin = (
            _status_file(host, publisher, name) for name in (status.READY, status.TWIN)
        )
    except (Refused, OSError) as error:
        return str(error)
    path = os.path.join(publisher.directory, status.READY)
    if barrier is None:
        return f"cannot read {path}: it is not there, although {status.TWIN} is"
    return f"{path} does not say what {status.TWIN} says" if barrier != twin else ""


def _status_file(host: HostRoot, publisher: Publisher, name: str) -> bytes | None:
    """A file of the status directory, None where there is none. Raises Refused, OSError."""
    path = os.path.join(publisher.directory, name)
    found = trust.read_file(host, path, budget.STATUS_FILE.size, allow_sticky=True, links=False)[1]
    return found.data if found else None


def _published_error(host: HostRoot, publisher: Publisher) -> str:
    """The reason in the published error file; "" where there is no such file, or where another
    user than root can write it."""
    try:
        found = _status_file(host, publisher, status.ERROR)
        values = status.parse(found, status.ERROR) if found else {}
    except (Refused, OSError):
        return ""
    return values.get("TOOLKIT_ERROR_REASON", "").replace("_", " ")
