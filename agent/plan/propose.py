"""What would be done to make the node right: decide, plan, and find what prevents it.

Invariant: reads only. The plan that is shown and the change that is made are the same proposal,
made from one observation.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.cdi.driver import driver
from agent.cdi.driver.known_gpus import KnownGpus
from agent.cdi.driver.root import DriverRoot
from agent.cdi.specs import readers
from agent.cdi.specs.readers import Reader
from agent.cri.client import Sandbox
from agent.decide import Decision, Evidence, PodNeeds, Question, decide
from agent.errors import AgentError, CandidateFailed, Refused, TrialFailed
from agent.host.files import Change
from agent.host.paths import HostRoot
from agent.log import Log
from agent.options.settings import Settings
from agent.plan import in_force, obstacles, own_specs, pod_guard, toolkit_users
from agent.plan.candidate import known_failure, loaded_digest
from agent.plan.context import Context, StartTrial
from agent.plan.observe import Observation, observe
from agent.plan.toolkit_users import ChangedNode, MovedToolkit
from agent.runtimes import find, low_level, registry
from agent.runtimes.base import CannotSwitch, ConfiguredRuntime, EditRequest, Edits, Runtime
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.desired_state import Desired
from agent.runtimes.preflight import Candidate, Preflight
from agent.runtimes.restart import Restart
from agent.state.store import Memory, Store, current_memory
from agent.status import Publisher, is_publishable
from agent.toolkit import device_nodes, install, programs
from agent.toolkit.device_nodes import MissingNode

if TYPE_CHECKING:
    from agent.runtimes.trial import Trial


@dataclass(frozen=True)
class Proposal:
    """What a plan shows.

    `node` and `edits` are None where the options forbid a change of the runtime's configuration.
    `unproven` lists what the running runtime lacks, and `restart` is the way to restart it; it is
    None where no restart is due. `trial` is the verdict of the trial start before a restart.
    `cdi_refused` means that the runtime does not start with native CDI on. `blocked` is the reason
    for which `apply` refuses. `repairs` are our own files that somebody made unusable; they are
    written first. `toolkit` is None where the node has none and needs none, `spec` where no CDI
    specs are asked for. `nodes` are the device nodes to create. `moved_toolkits` are directories in
    which we installed the toolkit under other options."""

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
        """Every file that would be written, without the toolkit's programs."""
        spec, toolkit = self.spec, self.toolkit
        found = (
            *self.repairs,
            *(spec.changes if spec else ()),
            *self.config_changes,
            toolkit.config if toolkit else None,
        )
        return tuple(change for change in found if change is not None)

    @property
    def changed_node(self) -> ChangedNode | None:
        """The runtime's files as they will be, None where the options forbid a change of them."""
        if self.node is None or self.edits is None:
            return None
        return ChangedNode(self.node, self.edits.changes, self.edits.files)

    @property
    def is_default(self) -> bool:
        """Will a handler of ours be the default runtime? Without edits, because the options forbid
        them, the runtime's own answer counts."""
        if self.edits is None:
            return registry.shows_nvidia(self.runtime.answer)
        return self.decision.is_default

    @property
    def is_configured(self) -> bool:
        """Are the runtime and its files as desired?"""
        return not self.config_changes and self.restart is None

    @property
    def refusal(self) -> AgentError | None:
        """Why an apply refuses."""
        parts = (self.toolkit, self.spec)
        problems = (part.problem for part in parts if part is not None)
        return self.blocked or next((found for found in problems if found is not None), None)

    @property
    def refusals(self) -> tuple[AgentError, ...]:
        """Every reason for which an apply refuses. A driver may be found once its device nodes are
        there."""
        problem = self.spec.problem if self.spec and not self.nodes else None
        found = (self.blocked, self.toolkit.problem if self.toolkit else None, problem)
        return tuple(error for error in found if error is not None)

    @property
    def nothing_to_do(self) -> bool:
        """Is there nothing to write, nothing to restart and no obstacle?"""
        installed = self.toolkit is None or self.toolkit.right
        return (
            self.refusal is None
            and installed
            and not self.nodes
            and not self.changes
            and all(item.needed_by for item in self.moved_toolkits)
            and self.restart is None
        )


def _log_decision(log: Log, seen: Observation, proposal: Proposal) -> None:
    """Log what the decision is made from, and what it is."""
    runtime, decision, restart = seen.runtime, proposal.decision, proposal.restart
    log.debug(
        "runtime observed",
        runtime=runtime.answer.name,
        version=runtime.version,
        socket=runtime.socket.host,
        pid=runtime.process.pid if runtime.process else None,
        unit=runtime.endpoint.unit,
        files=[file.path.host for file in seen.node.files] if seen.node else [],
    )
    log.debug(
        "decided",
        row=decision.row,
        rule=decision.rule,
        evidence=list(decision.evidence),
        changes=[change.path.host for change in proposal.config_changes],
        unproven=list(proposal.unproven),
        restart=restart.kind if restart else None,
    )


def propose(ctx: Context, seen: Observation, *, may_enable: bool | None = None) -> Proposal:
    """What would be done, without doing it. `may_enable` overrides the option that allows native
    CDI to be switched on. Raises Unreachable or Refused."""
    settings, host = ctx.settings, ctx.host
    begun = _configuration(ctx, seen, may_enable)
    _log_decision(ctx.log, seen, begun)
    root = driver.root_of(host, driver.places(settings))
    calls, kept = _low_level(settings, host, seen, begun.edits)
    pods = _pods_in_the_way(settings, host, begun, calls)
    toolkit = _toolkit(settings, host, seen.toolkit, begun, calls, root)
    hook = install.cdi_hook(settings, host, seen.toolkit)
    gpus = KnownGpus(ctx.store, host, ctx.boot_id, refresh=ctx.refresh)
    spec = _specs(settings, host, gpus, begun, hook)
    notes = (
        kept,
        *_refusals(pods),
        seen.toolkit_warning,
        _unpublishable_warning("NVIDIA_CDI_HOOK_PATH", hook, "--toolkit-install-dir"),
        _unpublishable_warning(
            "NVIDIA_DRIVER_ROOT", root.host_path if root else None, "--driver-root"
        ),
    )
    nodes, refused = device_nodes.possible(device_nodes.missing(settings, host, root))
    moved_toolkits: tuple[MovedToolkit, ...] = ()
    if begun.changed_node is not None and seen.toolkit is not None:
        moved_toolkits = toolkit_users.moved_toolkits(
            settings, host, begun.changed_node, seen.memory, seen.toolkit.directory
        )
    proposal = replace(
        begun,
        warnings=(
            *begun.warnings,
            *(text for text in notes if text),
            *(toolkit.warnings if toolkit else ()),
            *(spec.warnings if spec else ()),
            *refused,
            *(item.warning for item in moved_toolkits),
        ),
        blocked=begun.blocked or pods,
        toolkit=toolkit,
        spec=spec,
        nodes=nodes,
        moved_toolkits=moved_toolkits,
    )
    if (blocked := _unwritable(host, ctx.store, ctx.publisher, proposal)) is None:
        return proposal
    return replace(proposal, blocked=blocked, warnings=(*proposal.warnings, *_refusals(blocked)))


def preview(ctx: Context, obstacle: AgentError | None = None) -> Proposal:
    """The proposal for a person. Where no change can be planned, it has the decision and the
    reason. `obstacle` is a reason of the caller's. Raises Unreachable, and Refused where the
    runtime cannot even be asked."""
    memory = Memory()
    try:
        memory = current_memory(ctx.store)
        proposal = propose(ctx, observe(ctx.settings, ctx.host, memory))
    except Refused as error:
        return _decision_only(ctx, memory, obstacle or error)
    if obstacle is None:
        return proposal
    warnings = (*proposal.warnings, *_refusals(obstacle))
    return replace(proposal, blocked=obstacle, warnings=warnings)


def _decision_only(ctx: Context, memory: Memory, refusal: AgentError) -> Proposal:
    """The proposal that changes nothing because of a refusal."""
    settings, host = ctx.settings, ctx.host
    runtime = find.find_runtime(settings, host)
    adapter = registry.adapter(runtime.kind)
    evidence = adapter.evidence(runtime.answer)
    if not settings.no_runtime_config:
        with contextlib.suppress(Refused):
            evidence = adapter.look(settings, host, runtime, {}).evidence(host)
    decision = _decide(
        settings, runtime, evidence, enabled_by_agent=memory.enabled_cdi,
        may_enable=settings.may_enable_cdi,
    )  # fmt: skip
    decided = Proposal(runtime, None, decision, decision.warnings, blocked=refusal)
    spec = _specs(
        settings, host, KnownGpus(ctx.store, host, ctx.boot_id, refresh=False), decided, None
    )
    problem = spec.problem if spec else None
    return replace(
        decided,
        warnings=(*decided.warnings, *_refusals(refusal), *_refusals(problem)),
        spec=replace(spec, changes=()) if spec else None,
    )


def _toolkit(
    settings: Settings, host: HostRoot, found: install.Toolkit | None, begun: Proposal,
    calls: tuple[str, ...], root: DriverRoot | None,
) -> install.ToolkitProposal | None:  # fmt: skip
    """The toolkit's directory, made for the future default runtime."""
    if found is None:
        return None
    decision = replace(begun.decision, is_default=begun.is_default)
    return install.propose(settings, host, found, decision, calls, root)


def _specs(
    settings: Settings, host: HostRoot, gpus: KnownGpus, begun: Proposal, hook: str | None
) -> own_specs.SpecProposal | None:
    """The CDI specs, for the runtime or NVIDIA's programs to read."""
    runtime, decision = begun.runtime, begun.decision
    program = find.program(settings, host, runtime) if decision.native else None
    directories, reader = find.spec_directories(runtime), _reader(runtime, decision)
    return own_specs.propose(
        settings, host, gpus, decision.spec_dirs, hook, reader, directories, program
    )


def refusal_text(error: AgentError) -> str:
    """The warning that tells of a refusal."""
    return f"apply refuses: {error.message}"


def _refusals(error: AgentError | None) -> tuple[str, ...]:
    return (refusal_text(error),) if error is not None else ()


def _low_level(
    settings: Settings, host: HostRoot, seen: Observation, edits: Edits | None
) -> tuple[tuple[str, ...], str | None]:
    """The low-level runtimes that NVIDIA's runtime is to call, and a warning."""
    if seen.toolkit is None:
        return (), None
    effective, base, called, node = None, seen.memory.default, None, seen.node
    if node is not None and edits is not None:
        effective = node.effective(edits.files)
        # Of the files as they are: the default may become ours by these very edits.
        base = edits.base or base or node.effective(node.files).default
        called = edits.called
    calls = low_level.runtimes(settings, host, seen.runtime.kind, effective, base, called)
    return pod_guard.low_level_kept(settings, host, node, calls)


def _pods_in_the_way(
    settings: Settings, host: HostRoot, begun: Proposal, calls: tuple[str, ...]
) -> Refused | None:
    """The refusal of a change that running pods would not survive. `calls` are the low-level
    runtimes that NVIDIA's runtime will call."""
    changed = begun.changed_node
    if changed is None or begun.restart is None:
        return None
    return pod_guard.apply_refusal(settings, host, changed.node, changed.files, calls)


def _unwritable(
    host: HostRoot, store: Store, publisher: Publisher, proposal: Proposal
) -> AgentError | None:
    """Why a proposal cannot be written, None where it can or where nothing has to be written."""
    if proposal.nothing_to_do or proposal.refusal is not None:
        return None
    return obstacles.of_changes(
        host, store, publisher, proposal.config_changes,
        transaction=not proposal.is_configured, spec=proposal.spec, toolkit=proposal.toolkit,
    )  # fmt: skip


def _reader(runtime: Runtime, decision: Decision) -> Reader:
    """The program that reads the specs. Where the runtime does not, NVIDIA's runtime does, and it
    can read all specs of ours."""
    if not decision.native:
        return readers.UNKNOWN_READER
    return readers.reader_of(runtime.answer.name, runtime.version)


def _unpublishable_warning(key: str, path: str | None, option: str) -> str | None:
    """A warning where the status file leaves a path out because it cannot hold it."""
    if path is None or is_publishable(path):
        return None
    return (
        f"{key} is not published because {path} has a character that the status file cannot hold: "
        f"set the variable of the device plugin by hand, or give another {option}"
    )


def _configuration(ctx: Context, seen: Observation, may_enable: bool | None) -> Proposal:
    """The decision and the runtime's files. Where native CDI cannot be switched on, row 5 of
    DESIGN section 3 holds."""
    node, memory = seen.node, seen.memory
    if node is None:
        decision = _decide(
            ctx.settings, seen.runtime, seen.evidence, enabled_by_agent=memory.enabled_cdi,
            may_enable=False,
        )  # fmt: skip
        return Proposal(seen.runtime, None, decision, decision.warnings)
    allowed = ctx.settings.may_enable_cdi if may_enable is None else may_enable
    allowed = allowed and memory.cdi_refused != loaded_digest(seen.runtime, node.files)
    begun = _with_checks(ctx, memory, _with_edits(ctx, seen, node, allowed))
    does_not_start = isinstance(begun.blocked, TrialFailed | CandidateFailed)
    if not does_not_start or begun.decision.row != 4 or memory.enabled_cdi:
        return begun
    without = _with_checks(ctx, memory, _with_edits(ctx, seen, node, False))
    text = f"native CDI cannot be switched on: {begun.blocked}"
    return replace(without, cdi_refused=True, warnings=(*without.warnings, text))


def _with_edits(
    ctx: Context, seen: Observation, node: ConfiguredRuntime, may_enable: bool
) -> Proposal:
    """The decision, the edits that follow from it, and whether a restart is due."""
    settings, memory, toolkit, runtime = ctx.settings, seen.memory, seen.toolkit, seen.runtime
    assert toolkit is not None
    counts = pod_guard.counting(ctx.wall(), ctx.uptime())
    decided = functools.partial(_decision, settings, ctx.host, seen, node, counts)
    decision = decided(may_enable=may_enable)
    available, left_out = ((), ()) if decision.hook else install.binaries(settings, toolkit)
    hook = toolkit.path(programs.RUNTIME_HOOK)
    request = EditRequest(settings, ctx.store, memory, decision, available, hook)
    try:
        edits, notes = node.edits(ctx.host, request)
    except CannotSwitch:
        if memory.enabled_cdi:
            raise
        # No edit can switch native CDI on here, so row 5 holds.
        decision = decided(may_enable=False)
        edits, notes = node.edits(ctx.host, replace(request, decision=decision))
    unproven = tuple(node.adapter.unproven(edits.desired, runtime.answer))
    unproven = unproven or in_force.unproven_after_reload(
        node, edits, memory, ctx.boot_id, ctx.wall
    )
    restart = None
    if unproven:
        restart = ctx.choose_restart(settings.restart_mode, runtime.process, ctx.host, runtime.kind)
    warnings = (*decision.warnings, *left_out, *notes, *_hard_links(edits.changes))
    warnings += restart.warnings if restart else ()
    return Proposal(
        runtime, node, decision, warnings, edits, unproven, restart, repairs=seen.repairs
    )


def _decision(
    settings: Settings, host: HostRoot, seen: Observation, node: ConfiguredRuntime,
    counts: Callable[[Sandbox], bool], *, may_enable: bool,
) -> Decision:  # fmt: skip
    """The decision, with what running pods keep. Pods are looked at only where it would take
    something away."""
    decided = functools.partial(
        _decide,
        settings, seen.runtime, seen.evidence, enabled_by_agent=seen.memory.enabled_cdi,
        may_enable=may_enable,
    )  # fmt: skip
    decision = decided()
    needs = pod_guard.needs(settings, host, node, decision, counts)
    return decided(needs=needs) if needs else decision


def _decide(
    settings: Settings, runtime: Runtime, seen: tuple[Evidence, ...], *,
    enabled_by_agent: bool, may_enable: bool, needs: PodNeeds | None = None,
) -> Decision:  # fmt: skip
    """The decision for this runtime under these settings. `needs` is what running pods keep."""
    return decide(
        Question(
            cdi=settings.cdi_enabled,
            runtime=runtime.answer.name,
            version=runtime.version,
            evidence=seen,
            may_enable=may_enable,
            enabled_by_agent=enabled_by_agent,
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


def _with_checks(ctx: Context, memory: Memory, begun: Proposal) -> Proposal:
    """The proposal with the results of all checks: the runtime survives a restart, its executable
    accepts the files, the candidate has not failed before, and a trial start succeeds."""
    warnings, restart, edits, node = begun.warnings, begun.restart, begun.edits, begun.node
    assert edits is not None
    assert node is not None
    hazard = node.restart_hazard(ctx.host, edits.files)
    if hazard is not None:
        warnings = (*warnings, *(_refusals(hazard) if restart else (hazard.later,)))
    checked = None
    if not begun.is_configured:
        names = tuple(edits.desired.handlers)
        ours = (*names, *edits.desired.absent)
        checked = node.preflight(ctx.host, Candidate(edits.files, names, ours))
    if checked is not None and not checked.done:
        warnings = (*warnings, f"not pre-flighted: {checked.note}")
    blocked: AgentError | None = hazard if restart else None
    trial = None
    if restart and blocked is None:
        blocked = None if ctx.retry else known_failure(ctx.host, ctx.store, node, edits, ctx.wall())
        if blocked is None:
            trial = trial_verdict(
                ctx.host, ctx.start_trial, node, edits.changes, edits.desired, "apply",
                in_force.first_unloaded(memory, node, ctx.wall),
            )  # fmt: skip
            blocked = trial.refusal
        if blocked is not None:
            warnings = (*warnings, *_refusals(blocked))
        elif trial is not None and not trial.done:
            warnings = (*warnings, f"not tried: {trial.note}")
        elif trial is not None and trial.warning:
            warnings = (*warnings, trial.warning)
    return replace(begun, preflight=checked, warnings=warnings, blocked=blocked, trial=trial)


def trial_verdict(
    host: HostRoot, start_trial: StartTrial, node: ConfiguredRuntime,
    changes: tuple[Change, ...], desired: Desired, purpose: str, unloaded: ConfigFile | None,
) -> Trial:  # fmt: skip
    """The verdict of a trial start on the files after these changes. `unloaded` is a file of others
    on which no runtime has run yet. Where no trial start can be made, no restart may activate it.
    """
    from agent.runtimes import trial  # a restart takes longer than to load them

    subject = trial.subject(host, node, desired)
    if isinstance(subject, str):
        verdict = trial.Trial(False, subject)
    else:
        verdict = trial.judge(host, subject, changes, purpose, start_trial)
    if verdict.refusal is not None or unloaded is None:
        return verdict
    if isinstance(subject, str) or not verdict.done:
        return replace(verdict, refusal=in_force.refusal(unloaded, purpose, verdict.note))
    return trial.warn_of_present(host, subject, verdict, start_trial)


def start_failure(host: HostRoot, start_trial: StartTrial, node: ConfiguredRuntime) -> str:
    """Why the runtime does not start on the present files; "" where it does, or where that is not
    known."""
    from agent.runtimes import trial  # needed only where something failed

    subject = trial.subject(host, node, Desired({}))
    if isinstance(subject, str):
        return ""
    return start_trial(host, subject.launch({}), lambda _: []).failure


def _hard_links(changes: tuple[Change, ...]) -> tuple[str, ...]:
    """A warning for each file with hard links that is going to be replaced."""
    return tuple(
        f"{item.path} has {item.before.links} names (hard links): the others keep the old content"
        for item in changes
        if item.before is not None and item.before.links > 1
    )
