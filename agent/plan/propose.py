"""The proposal: the decision, all changes that bring the node to the desired state, and everything
that forbids them.

Invariant: reads only. `plan` shows the same proposal that `apply` carries out. It is made from one
observation of the node, so that a decision and its edits are based on the same moment.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.cdi.driver import driver
from agent.cdi.specs import own_specs, readers
from agent.decide import Decision, Evidence, PodNeeds, Question, decide
from agent.errors import AgentError, CandidateFailed, NoToolkit, Refused, TrialFailed
from agent.host.files import Change
from agent.plan import garbled_files, in_force, pod_guard, toolkit_users
from agent.plan.candidate import known_failure, loaded_digest
from agent.plan.context import Context
from agent.plan.toolkit_users import ChangedNode, MovedToolkit
from agent.runtimes import find, low_level, registry
from agent.runtimes.base import CannotSwitch, ConfiguredRuntime, EditRequest, Edits, Runtime
from agent.runtimes.desired_state import Desired
from agent.state.store import Memory, current_memory
from agent.status import is_publishable
from agent.toolkit import device_nodes, install, programs
from agent.toolkit.device_nodes import MissingNode

if TYPE_CHECKING:
    from agent.runtimes.preflight import Preflight
    from agent.runtimes.restart import Restart
    from agent.runtimes.trial import Trial


@dataclass(frozen=True)
class Proposal:
    """The changes of one convergence, with the decision behind them and all checks of them.

    `node`, `edits`: None if the options forbid a change of the runtime's configuration.
    `unproven`: the differences between the desired state and the running runtime, in words.
    `restart`: the way to restart the runtime, None if no restart is due.
    `preflight`, `trial`: the result of the executable's check, and the verdict of the trial start;
    None if they were not needed.
    `blocked`: the error with which `apply` refuses.
    `cdi_refused`: does the runtime fail to start with native CDI switched on?
    `repairs`: the repairs of our garbled files, which are written first.
    `toolkit`: None if the node has no toolkit and needs none. `spec`: None if the options want no
    CDI specs.
    `nodes`: the device nodes to create.
    `moved_toolkits`: directories in which we installed the toolkit under other options."""

    runtime: Runtime
    node: ConfiguredRuntime | None
    decision: Decision
    warnings: tuple[str, ...]
    edits: Edits | None = None
    unproven: tuple[str, ...] = ()
    restart: Restart | None = None
    preflight: Preflight | None = None
    trial: Trial | None = None
    blocked: AgentError | None = None
    cdi_refused: bool = False
    repairs: tuple[Change, ...] = ()
    toolkit: install.ToolkitProposal | None = None
    spec: own_specs.SpecProposal | None = None
    nodes: tuple[MissingNode, ...] = ()
    moved_toolkits: tuple[MovedToolkit, ...] = ()

    @property
    def config_changes(self) -> tuple[Change, ...]:
        """The changes of the runtime's files."""
        return self.edits.changes if self.edits else ()

    @property
    def changes(self) -> tuple[Change, ...]:
        """All changes of files, without the toolkit's programs."""
        specs = self.spec.changes if self.spec else ()
        config = (self.toolkit.config,) if self.toolkit and self.toolkit.config else ()
        return (*self.repairs, *specs, *self.config_changes, *config)

    @property
    def changed_node(self) -> ChangedNode | None:
        """The node after the changes, None if the options forbid a change of the runtime's
        configuration."""
        if self.node is None or self.edits is None:
            return None
        return ChangedNode(self.node, self.edits.changes, self.edits.files)

    @property
    def is_default(self) -> bool:
        """Will one of our handlers be the default runtime? If the options forbid edits, the
        runtime's answer counts."""
        if self.edits is None:
            return registry.shows_nvidia(self.runtime.answer)
        return self.decision.is_default

    @property
    def is_configured(self) -> bool:
        """Are the runtime and its files as desired?"""
        return not self.config_changes and self.restart is None

    @property
    def refusals(self) -> tuple[AgentError, ...]:
        """All errors with which `apply` refuses. A problem of the specs does not count while device
        nodes are to be created, because the driver may be found after that."""
        problem = self.spec.problem if self.spec and not self.nodes else None
        errors = (self.blocked, self.toolkit.problem if self.toolkit else None, problem)
        return tuple(error for error in errors if error is not None)

    @property
    def nothing_to_do(self) -> bool:
        """Is there nothing to write, nothing to restart and no obstacle?"""
        return not (
            self.refusals
            or (self.toolkit and not self.toolkit.is_installed)
            or self.nodes
            or self.changes
            or not all(item.needed_by for item in self.moved_toolkits)
            or self.restart
        )


def propose(ctx: Context, memory: Memory, *, may_enable: bool | None = None) -> Proposal:
    """Observe the node and make the proposal. `memory` is what the agent remembers of the node.
    `may_enable` overrides --enable-cdi-in-runtime. Raises Unreachable or Refused."""
    return _observe(ctx, memory).propose(may_enable)


def preview(ctx: Context, obstacle: AgentError | None = None) -> Proposal:
    """The proposal for `plan`. If no change can be planned, it has the decision, and the error as
    `blocked`. `obstacle` is an error that the caller knows already. Raises Unreachable, and Refused
    if the runtime cannot be asked."""
    memory = Memory()
    try:
        memory = current_memory(ctx.store)
        proposal = propose(ctx, memory)
    except Refused as error:
        return _decision_only(ctx, memory, obstacle or error)
    return replace(proposal, blocked=obstacle) if obstacle else proposal


def _decision_only(ctx: Context, memory: Memory, refusal: AgentError) -> Proposal:
    """The proposal without changes, with a refusal as `blocked`."""
    settings, host = ctx.settings, ctx.host
    runtime = find.find_runtime(settings, host)
    adapter = registry.adapter(runtime.kind)
    evidence = adapter.evidence(runtime.answer)
    if not settings.no_runtime_config:
        with contextlib.suppress(Refused):
            evidence = adapter.configured_runtime(settings, host, runtime, {}).evidence()
    proposer = _Proposer(ctx, memory, runtime, evidence)
    decision = proposer.decision(may_enable=settings.may_enable_cdi)
    spec = proposer.specs(decision, None)
    return Proposal(
        runtime, None, decision, decision.warnings, blocked=refusal,
        spec=replace(spec, changes=()) if spec else None,
    )  # fmt: skip


def _observe(ctx: Context, memory: Memory) -> _Proposer:
    """Observe the node. Raises Unreachable or Refused."""
    settings, host = ctx.settings, ctx.host
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
        return _Proposer(ctx, memory, runtime, evidence, None, toolkit, warning)
    repairs = tuple(item.repair for item in garbled_files.find_garbled(settings, host, memory))
    overlay = {change.path.host: change.after for change in repairs}
    node = adapter.configured_runtime(settings, host, runtime, overlay)
    return _Proposer(ctx, memory, runtime, node.evidence(), node, toolkit, repairs=repairs)


@dataclass(frozen=True)
class _Proposer:
    """Makes a proposal from one observation.

    `memory`: what the agent remembers of the node. `evidence`: of CDI, the best source first.
    `node`: None if the options forbid a change of the runtime's configuration. `toolkit`: None if
    the node has none and needs none; then `toolkit_warning` is the reason. `repairs`: the repairs
    of our garbled files; the other fields have the state after these repairs."""

    ctx: Context
    memory: Memory
    runtime: Runtime
    evidence: tuple[Evidence, ...]
    node: ConfiguredRuntime | None = None
    toolkit: install.Toolkit | None = None
    toolkit_warning: str | None = None
    repairs: tuple[Change, ...] = ()

    def propose(self, may_enable: bool | None) -> Proposal:
        """As the function `propose`."""
        settings, host = self.ctx.settings, self.ctx.host
        draft = self._configuration(may_enable)
        self._log(draft)
        decision, blocked, changed = draft.decision, draft.blocked, draft.changed_node
        root = driver.likely_root(host, settings)
        hook = install.cdi_hook(settings, host, self.toolkit)
        low_levels, kept_warning = self._low_level(draft.edits)
        warnings = [*draft.warnings, kept_warning]
        if changed is not None and draft.restart is not None:
            pods = pod_guard.apply_refusal(settings, changed.node, changed.files, low_levels)
            blocked = blocked or pods
        warnings += [
            self.toolkit_warning,
            _unpublishable("NVIDIA_CDI_HOOK_PATH", hook, "--toolkit-install-dir"),
            _unpublishable("NVIDIA_DRIVER_ROOT", root.host_path if root else None, "--driver-root"),
        ]
        toolkit, moved_toolkits = None, tuple[MovedToolkit, ...]()
        if self.toolkit is not None:  # its config.toml depends on the future default runtime
            future = replace(decision, is_default=draft.is_default)
            toolkit = install.propose(settings, host, self.toolkit, future, low_levels, root)
            warnings += toolkit.warnings
            if changed is not None:
                moved_toolkits = toolkit_users.moved_toolkits(
                    settings, changed, self.memory, self.toolkit.directory
                )
        spec = self.specs(decision, hook)
        nodes, refused = device_nodes.possible(device_nodes.missing(settings, host, root))
        warnings += [*(spec.warnings if spec else ()), *refused]
        warnings += [item.warning for item in moved_toolkits]
        proposal = replace(
            draft, warnings=tuple(filter(None, warnings)), blocked=blocked, toolkit=toolkit,
            spec=spec, nodes=nodes, moved_toolkits=moved_toolkits,
        )  # fmt: skip
        if proposal.nothing_to_do or proposal.refusals:
            return proposal
        from agent.plan import obstacles

        blocked = obstacles.change_refusal(
            self.ctx, proposal.config_changes,
            transaction=not proposal.is_configured, spec=spec, toolkit=toolkit,
        )  # fmt: skip
        return replace(proposal, blocked=blocked) if blocked else proposal

    def _log(self, draft: Proposal) -> None:
        """Log the observation and the decision."""
        runtime, decision, restart = draft.runtime, draft.decision, draft.restart
        self.ctx.log.debug(
            "runtime observed",
            runtime=runtime.answer.name,
            version=runtime.version,
            socket=runtime.socket.host,
            pid=runtime.process.pid if runtime.process else None,
            unit=runtime.endpoint.unit,
            files=[file.path.host for file in draft.node.files] if draft.node else [],
        )
        self.ctx.log.debug(
            "decided",
            row=decision.row,
            rule=decision.rule,
            evidence=list(decision.evidence),
            changes=[change.path.host for change in draft.config_changes],
            unproven=list(draft.unproven),
            restart=restart.kind if restart else None,
        )

    def specs(self, decision: Decision, hook: str | None) -> own_specs.SpecProposal | None:
        """The proposal of CDI specs, None if the options want none and none of ours is there. If
        the runtime does not inject devices itself, NVIDIA's runtime reads the specs, and it can
        read all of ours. `hook` is the host path of NVIDIA's program for hooks."""
        ctx, settings, host = self.ctx, self.ctx.settings, self.ctx.host
        runtime = self.runtime
        if not settings.cdi_enabled or settings.cdi_output_dir is None:
            spec_dirs = (*decision.spec_dirs, *find.spec_directories(runtime))
            return own_specs.removal(settings, host, spec_dirs)
        # Much to load, for nodes with specs only.
        from agent.cdi.driver.known_gpus import KnownGpus
        from agent.plan import spec_proposal

        program, reader = None, readers.UNKNOWN_READER
        if decision.native:
            program = find.program(settings, host, runtime)
            reader = readers.reader_of(runtime.answer.name, runtime.version)
        gpus = KnownGpus(ctx.store, host, ctx.boot_id, refresh=ctx.refresh)
        dirs = decision.spec_dirs
        return spec_proposal.propose(settings, host, gpus, dirs, hook, reader, program)

    def _low_level(self, edits: Edits | None) -> tuple[tuple[str, ...], str | None]:
        """The low-level runtimes that NVIDIA's runtime will call, and a warning or None."""
        node = self.node
        if self.toolkit is None:
            return (), None
        effective, base, current = None, self.memory.default, None
        if node is not None and edits is not None:
            effective = node.effective(edits.files)
            # The default of the present files, because these edits may make ours the default.
            base = edits.base or base or node.effective(node.files).default
            current = edits.low_level
        low_levels = low_level.runtimes(
            self.ctx.settings, self.ctx.host, self.runtime.kind, effective, base, current
        )
        if node is None:
            return low_levels, None
        return pod_guard.kept_low_level(self.ctx.settings, node, low_levels)

    def _configuration(self, may_enable: bool | None) -> Proposal:
        """The part of the proposal about the runtime: the decision, the edits, the restart and
        their checks. If native CDI cannot be switched on, row 5 holds. `may_enable` as in
        `propose`."""
        memory, node = self.memory, self.node
        if node is None:
            decision = self.decision(may_enable=False)
            return Proposal(self.runtime, None, decision, decision.warnings)
        allowed = self.ctx.settings.may_enable_cdi if may_enable is None else may_enable
        allowed = allowed and memory.cdi_refused != loaded_digest(self.runtime, node.files)
        draft = self._with_edits(node, allowed)
        does_not_start = isinstance(draft.blocked, TrialFailed | CandidateFailed)
        if not does_not_start or draft.decision.row != 4 or memory.enabled_cdi:
            return draft
        without = self._with_edits(node, False)
        text = f"native CDI cannot be switched on: {draft.blocked}"
        return replace(without, cdi_refused=True, warnings=(*without.warnings, text))

    def _with_edits(self, node: ConfiguredRuntime, may_enable: bool) -> Proposal:
        """The decision, its edits, the restart if one is due, and the results of all checks.
        `may_enable` allows row 4."""
        ctx, memory, settings = self.ctx, self.memory, self.ctx.settings
        assert self.toolkit is not None
        decision = self._kept_decision(node, may_enable)
        available, left_out = (
            ((), ()) if decision.hook else install.binaries(settings, self.toolkit)
        )
        hook = self.toolkit.path(programs.RUNTIME_HOOK)
        request = EditRequest(settings, ctx.store, memory, decision, available, hook)
        try:
            edits, notes = node.edits(request)
        except CannotSwitch:
            if memory.enabled_cdi:
                raise
            # No edit can switch native CDI on here, so row 5 holds.
            decision = self._kept_decision(node, False)
            edits, notes = node.edits(replace(request, decision=decision))
        unproven = tuple(node.adapter.unproven(edits.desired, self.runtime.answer))
        unproven = unproven or in_force.unproven_after_reload(
            node, edits, memory, ctx.boot_id, ctx.wall
        )
        restart = None
        if unproven:
            restart = ctx.choose_restart(
                settings.restart_mode, self.runtime.process, self.ctx.host, self.runtime.kind
            )
        hard_links = (
            f"{item.path} has {item.before.links} names (hard links): the others keep the old "
            "content"
            for item in edits.changes
            if item.before is not None and item.before.links > 1
        )
        warnings = (*decision.warnings, *left_out, *notes, *hard_links)
        draft = Proposal(
            self.runtime, node, decision, warnings + (restart.warnings if restart else ()), edits,
            unproven, restart, repairs=self.repairs,
        )  # fmt: skip
        return self._with_checks(draft, node, edits)

    def _kept_decision(self, node: ConfiguredRuntime, may_enable: bool) -> Decision:
        """The decision, adapted to the needs of running pods. Pods are listed only if the decision
        would take something from them."""
        decision = self.decision(may_enable=may_enable)
        booted = pod_guard.recent_boot(self.ctx.wall(), self.ctx.uptime())
        needs = pod_guard.pod_needs(self.ctx.settings, node, decision, booted)
        return self.decision(may_enable=may_enable, needs=needs) if needs else decision

    def decision(self, *, may_enable: bool, needs: PodNeeds | None = None) -> Decision:
        """The decision for this runtime under these settings. `needs` are those of running pods."""
        settings, runtime = self.ctx.settings, self.runtime
        return decide(
            Question(
                cdi=settings.cdi_enabled,
                runtime=runtime.answer.name,
                version=runtime.version,
                evidence=self.evidence,
                may_enable=may_enable,
                enabled_by_agent=self.memory.enabled_cdi,
                forced={"true": True, "false": False}.get(settings.native_cdi),
                set_as_default=settings.set_as_default,
                default_negotiable=settings.default_is_negotiable,
                mode=settings.mode,
                strategy=settings.device_list_strategy,
                prefixes=settings.annotation_prefixes,
                kubelet=settings.kubelet_version,
                crio_mode=settings.crio_config_mode,
                needs=needs,
            )
        )

    def _with_checks(self, draft: Proposal, node: ConfiguredRuntime, edits: Edits) -> Proposal:
        """The draft with the results of all checks: does the runtime survive a restart, does its
        executable accept the files, has the candidate failed before, does a trial start succeed?"""
        ctx, warnings = self.ctx, [*draft.warnings]
        hazard = node.restart_hazard(edits.files)
        if hazard is not None and draft.restart is None:
            warnings.append(hazard.later)
        checked = tried = None
        if not draft.is_configured:
            from agent.runtimes.preflight import Candidate

            names = tuple(edits.desired.handlers)
            ours = (*names, *edits.desired.absent)
            checked = node.preflight(Candidate(edits.files, names, ours))
            if not checked.done:
                warnings.append(f"not pre-flighted: {checked.note}")
        blocked: AgentError | None = hazard if draft.restart else None
        if draft.restart and blocked is None:
            if not ctx.retry:
                blocked = known_failure(ctx.store, node, edits, ctx.wall())
            if blocked is None:
                tried = trial_verdict(ctx, self.memory, node, edits.changes, edits.desired, "apply")
                blocked = tried.refusal
                warnings += tried.warnings
        return replace(
            draft, preflight=checked, warnings=tuple(warnings), blocked=blocked, trial=tried
        )


def _unpublishable(key: str, path: str | None, option: str) -> str | None:
    """A warning if the status file leaves this path out, because the path has a character that the
    file cannot hold. `key` is its key, `option` sets the path."""
    if path is None or is_publishable(path):
        return None
    return (
        f"{key} is not published because {path} has a character that the status file cannot hold: "
        f"set the variable of the device plugin by hand, or give another {option}"
    )


def trial_verdict(
    ctx: Context, memory: Memory, node: ConfiguredRuntime,
    changes: tuple[Change, ...], desired: Desired, purpose: str,
) -> Trial:  # fmt: skip
    """The verdict of a trial start on the files after these changes. If no trial start is possible
    and the running runtime has not loaded one of its files, the verdict is a refusal. `purpose` is
    "apply" or "revert"."""
    unloaded = in_force.first_unloaded(memory, node, ctx.wall)
    from agent.runtimes import trial  # needed only before a restart

    warn = unloaded is not None
    verdict = trial.judge(node, desired, changes, purpose, ctx.start_trial, warn=warn)
    if unloaded is None or verdict.done:
        return verdict
    return replace(verdict, refusal=in_force.refusal(unloaded, purpose, verdict.note))
