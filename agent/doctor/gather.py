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
from agent.doctor import look_config, look_node
from agent.doctor.facts import AgentFacts, Down, Facts, NotSeen, Part, RuntimeFacts
from agent.errors import AgentError, NoDriver, NoToolkit, Refused
from agent.host import budget, trust
from agent.plan import propose
from agent.plan.context import Context
from agent.reports.node import Report
from agent.runtimes import find, registry
from agent.runtimes.base import ConfiguredRuntime, Runtime
from agent.state.store import Memory
from agent.systemd.units import SystemdError

_Value = TypeVar("_Value")


def gather(ctx: Context, report: Report) -> Facts:
    """Look at the node of a report."""
    runtime, error = _runtime(ctx)
    known, ctx = (runtime, ctx) if runtime else _asleep(ctx)
    node, refused = _node(ctx, known)
    down = _down(ctx, known, node, error) if error is not None else None
    why = refused.partition(";")[0] or ("no runtime answers" if error else "")
    memory = part(ctx.store.memory).value or Memory()
    config = part(lambda: look_config.config(ctx, _present(node, why), alive=runtime is not None))
    toolkit = part(lambda: look_config.toolkit(ctx, _present(node, why)))
    return Facts(
        machine=look_node.machine(ctx, runtime),
        runtime=part(lambda: _runtime_facts(ctx, _present(runtime, why))),
        down=down,
        config=config,
        refused=refused,
        specs=part(lambda: look_node.specs(ctx)),
        agent=part(lambda: _agent(ctx, report, memory)),
        toolkit=toolkit,
        kubelet=part(lambda: look_node.kubelet(ctx.host)),
        plugins=part(lambda: look_node.plugins(ctx.host)),
        driver=part(lambda: look_node.driver_facts(ctx)),
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


def _runtime(ctx: Context) -> tuple[Runtime | None, AgentError | None]:
    try:
        return find.find_runtime(ctx.settings, ctx.host), None
    except AgentError as error:
        return None, error


def _asleep(ctx: Context) -> tuple[Runtime | None, Context]:
    """The runtime that would answer; the context names its executable then."""
    found = part(lambda: find.asleep(ctx.settings, ctx.host)).value
    if found is None:
        return None, ctx
    runtime, program = found
    return runtime, replace(ctx, settings=replace(ctx.settings, executable_path=program))


def _node(ctx: Context, runtime: Runtime | None) -> tuple[ConfiguredRuntime | None, str]:
    """The runtime with its files, or why they cannot be used."""
    if runtime is None:
        return None, ""
    try:
        return registry.adapter(runtime.kind).look(ctx.settings, ctx.host, runtime), ""
    except AgentError as error:
        return None, error.message


def _down(
    ctx: Context, runtime: Runtime | None, node: ConfiguredRuntime | None, error: AgentError
) -> Down:
    reason = part(lambda: propose.start_failure(ctx, node) if node else "").value or ""
    unit = f"{runtime.kind}.service" if runtime else ""
    there = tuple(item.socket.host for item in find.sockets(ctx.settings, ctx.host))
    denied = os.geteuid() != 0 and "permission denied" in error.message
    return Down(error.message, there, _unit(ctx, unit), reason, denied)


def _unit(ctx: Context, name: str) -> str:
    if not name or os.geteuid() != 0:
        return ""
    try:
        return str(ctx.reach(ctx.host, name)[1])
    except SystemdError:
        return ""


def _runtime_facts(ctx: Context, runtime: Runtime) -> RuntimeFacts:
    adapter, running = registry.adapter(runtime.kind), runtime.process
    default, handlers = registry.shown(runtime.answer)
    seen = adapter.evidence(runtime.answer)
    found = next((item for item in seen if item.seen), seen[0])
    dirs = found.spec_dirs if isinstance(found.spec_dirs, tuple) else None
    program = part(lambda: find.executable(ctx.settings, ctx.host, running)).value or ""
    after = find.executable_version(ctx.host, program) if program else None
    return RuntimeFacts(
        title=adapter.title,
        version=runtime.version,
        socket=runtime.socket.host,
        ready=runtime.answer.ready,
        process=str(running.pid) if running else "",
        unit=(running.unit if running else None) or "",
        executable=program,
        next_version=after or "",
        default=default,
        handlers=handlers,
        switch=found.switch.value,
        spec_dirs=dirs,
    )


def _agent(ctx: Context, report: Report, memory: Memory) -> AgentFacts:
    """What the agent did, and what it would do."""
    proposal, problem = report.proposal, report.problem
    without = isinstance(problem, NoToolkit | NoDriver)
    return AgentFacts(
        managed=bool(memory.files) or bool(report.published),
        problem=problem.message if problem else "",
        code=problem.status_code if problem and without else "",
        published=report.published,
        not_published=report.not_published or "",
        error=_published_error(ctx),
        drift=report.drift,
        unfinished=report.unfinished or "",
        failed=report.failed or "",
        left=tuple((item.path, item.what, item.remedy) for item in report.left_over_files),
        warnings=proposal.warnings if proposal else (),
        restart="; ".join(proposal.unproven) if proposal else "",
    )


def _published_error(ctx: Context) -> str:
    """The reason in the published error file; "" where there is no such file, or where another
    user than root can write it."""
    name = os.path.join(ctx.publisher.directory, status.ERROR)
    try:
        size = budget.STATUS_FILE.size
        found = trust.read_file(ctx.host, name, size, allow_sticky=True, links=False)[1]
        values = status.parse(found.data, name) if found else {}
    except (Refused, OSError):
        return ""
    return values.get("TOOLKIT_ERROR_REASON", "").replace("_", " ")
