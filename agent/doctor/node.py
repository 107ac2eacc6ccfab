"""The node as the checks see it.

Invariant: reads only. Each part of the node is examined once, when the first check needs it. A part
that cannot be seen raises one of `UNSEEN` in each check that needs it; other checks still run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

from agent.cri import process
from agent.decide import Evidence, Switch
from agent.doctor import surroundings
from agent.doctor.surroundings import Driver, Kubelet, Plugin
from agent.doctor.toolkit import Toolkit
from agent.errors import AgentError
from agent.plan import garbled_files, in_force
from agent.plan.context import Context
from agent.reports import specs as reports
from agent.reports.node import Report
from agent.reports.specs import Inventory
from agent.runtimes import find, registry, trial
from agent.runtimes.base import ConfiguredRuntime, Runtime
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.desired_state import LINUX, Effective, is_nvidia, programs_of

_Value = TypeVar("_Value")
_NO_RUNTIME = "no runtime answers"


class NotSeen(Exception):
    """A part of the node cannot be seen; the message says why."""


UNSEEN = (NotSeen, AgentError, OSError)


def value_or_none(look: Callable[[], _Value]) -> _Value | None:
    """The result of `look`; None if it raises one of `UNSEEN`."""
    try:
        return look()
    except UNSEEN:
        return None


class Node:
    """The node that a report describes. Tests replace a part by setting the attribute of that
    name."""

    def __init__(self, ctx: Context, report: Report) -> None:
        self.ctx, self.report = ctx, report
        self.settings, self.host = ctx.settings, ctx.host
        self.is_root = os.geteuid() == 0

    @property
    def managed(self) -> bool:
        """Has this agent changed the node?"""
        return bool(self.report.memory.files) or bool(self.report.published)

    @cached_property
    def answering(self) -> Runtime | AgentError:
        """The runtime that answers, or the error why none does."""
        proposal = self.report.proposal
        try:
            return proposal.runtime if proposal else find.find_runtime(self.settings, self.host)
        except AgentError as error:
            return error

    @property
    def error(self) -> AgentError | None:
        """Why no runtime answers; None if one does."""
        return self.answering if isinstance(self.answering, AgentError) else None

    @cached_property
    def runtime(self) -> Runtime:
        """The runtime that answers. Raises NotSeen."""
        if isinstance(self.answering, AgentError):
            raise NotSeen(_NO_RUNTIME)
        return self.answering

    @property
    def title(self) -> str:
        """The display name of the runtime that answers. Raises NotSeen."""
        return registry.adapter(self.runtime.kind).title

    @cached_property
    def executable(self) -> str:
        """Host path of the executable that a restart will run; "" if it is unknown."""
        look = find.executable
        return value_or_none(lambda: look(self.settings, self.host, self.runtime.process)) or ""

    @cached_property
    def evidence(self) -> Evidence:
        """The best evidence of CDI: the first source that the runtime shows."""
        found = registry.adapter(self.runtime.kind).evidence(self.runtime.answer)
        return next((item for item in found if item.seen), found[0])

    @property
    def native(self) -> bool | None:
        """Does the runtime inject CDI devices itself? None if the evidence does not tell."""
        switch = self.evidence.switch
        if switch in (Switch.ABSENT, Switch.UNSEEN) and self.evidence.spec_dirs is not None:
            return True
        return None if switch is Switch.UNSEEN else switch in (Switch.TRUE, Switch.NULL)

    @cached_property
    def silent_runtime(self) -> tuple[Runtime, str] | None:
        """The runtime that does not answer but is installed, and its executable (host path); None
        if there is none."""
        return value_or_none(lambda: find.silent_runtime(self.settings, self.host))

    @cached_property
    def _files(self) -> tuple[ConfiguredRuntime | None, str]:
        """The runtime with its present files, or (None, reason) if the files cannot be used."""
        settings, runtime, proposal = self.settings, self.answering, self.report.proposal
        if proposal and proposal.node and not proposal.repairs:  # its files must be the real ones
            return proposal.node, ""
        if isinstance(runtime, AgentError):
            if self.silent_runtime is None:
                return None, ""
            runtime, program = self.silent_runtime
            settings = replace(settings, executable_path=program)
        try:
            return registry.adapter(runtime.kind).configured_runtime(
                settings, self.host, runtime
            ), ""
        except AgentError as error:
            find_garbled = garbled_files.find_garbled
            garbled = value_or_none(lambda: find_garbled(settings, self.host, self.report.memory))
            for item in garbled or ():  # `apply` repairs a file of ours
                why = item.fault.partition(";")[0]
                path = item.repair.path
                return None, f"cannot use {path}: {why}; `toolkit-agent apply` writes it again"
            return None, error.message

    @cached_property
    def refused(self) -> str:
        """Why the runtime's files cannot be used; "" if they can."""
        return self._files[1]

    @cached_property
    def configured(self) -> ConfiguredRuntime:
        """The runtime with its files, even if it does not answer. Raises NotSeen."""
        found, refused = self._files
        if found is None:
            raise NotSeen(refused.partition(";")[0] or _NO_RUNTIME)
        return found

    @cached_property
    def loaded(self) -> tuple[str, ...]:
        """Host paths of the existing files that the runtime loads, in its order."""
        return tuple(f.path.host for f in self.configured.files if f.state is not None)

    @cached_property
    def effective(self) -> Effective:
        """The configuration that the runtime makes of its files."""
        return self.configured.effective(self.configured.files)

    @cached_property
    def nvidia_handlers(self) -> tuple[str, ...]:
        """The handlers that run NVIDIA's runtime."""
        return tuple(name for name in self.effective.runtimes if is_nvidia(self.effective, name))

    @property
    def nvidia_default(self) -> bool:
        """Is the default handler NVIDIA's?"""
        return self.effective.default in self.nvidia_handlers

    def programs(self, handler: str) -> tuple[str, ...]:
        """The programs in a handler's settings; without any, the program that the v1.linux shim
        runs."""
        table, linux = self.effective.table(handler), self.effective.linux_runtime
        named = tuple(programs_of(table))
        return (linux,) if not named and table.get("runtime_type") == LINUX and linux else named

    def passes(self, prefix: str) -> bool:
        """Do the handlers pass annotations with this prefix to NVIDIA's runtime?"""
        return self.configured.passes_annotation(self.effective, prefix)

    @cached_property
    def start_failure(self) -> str:
        """Why a trial start of the runtime fails; "" if it succeeds, or if no trial is possible."""
        start = self.ctx.start_trial
        found = value_or_none(lambda: trial.start_on_present(self.configured, start))
        return found.failure if found else ""

    @cached_property
    def dormant(self) -> str:
        """Why the running runtime would not start again on its files; "" if it would."""
        return "" if self.error else self.start_failure

    @cached_property
    def unloaded(self) -> str:
        """Host path of a file that was changed after the runtime started and is not fully in force;
        "" if there is none. If the runtime would not start now, every changed file counts."""
        if self.error:
            return ""
        memory, wall = self.report.memory, self.ctx.wall
        found = in_force.first_unloaded(memory, self.configured, wall)
        if found is None and self.dormant:
            found = next(self.changed_files(), None)
        return found.path.host if found else ""

    def changed_files(self) -> Iterator[ConfigFile]:
        """The files that were changed after the runtime started."""
        running, wall = self.configured.runtime.process, self.ctx.wall
        for file in self.configured.files if running else ():
            if running and process.changed_since_start(running, file.path.agent, wall):
                yield file

    @cached_property
    def specs(self) -> Inventory:
        """The CDI specs as the runtime sees them."""
        runtime = None if self.error else self.runtime
        return reports.inventory(self.settings, self.host, runtime)

    @cached_property
    def toolkit(self) -> Toolkit:
        """The config.toml that NVIDIA's handlers read. Raises NotSeen."""
        programs = [path for name in self.nvidia_handlers for path in self.programs(name)]
        if not programs:
            raise NotSeen("no handler runs NVIDIA's runtime")
        if found := Toolkit.read(self.host, programs):
            return found
        raise NotSeen("there is no config.toml of NVIDIA's toolkit")

    @cached_property
    def kubelet(self) -> Kubelet:
        return surroundings.kubelet(self.host)

    @cached_property
    def plugins(self) -> tuple[Plugin, ...]:
        return surroundings.plugins(self.host)

    @cached_property
    def driver(self) -> Driver:
        return surroundings.driver(self.settings, self.host)

    @cached_property
    def installers(self) -> dict[int, str]:
        """Running installers of other toolkits: a description by pid."""
        return surroundings.installers(self.host)
