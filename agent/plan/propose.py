"""What would be done to make the node right: observe, decide, plan, look at what is in the way.

Invariant: reads only; a plan that is shown and a change that is made are one and the same proposal.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.cdi.driver import driver
from agent.cdi.make import generate
from agent.cdi.specs import readers
from agent.cdi.specs.readers import Reader
from agent.decide import Decision, Evidence, PodNeeds, Question, decide
from agent.errors import AgentError, CandidateFailed, NoToolkit, TrialFailed
from agent.host.files import Change
from agent.options.settings import Settings
from agent.plan import (
    device_nodes,
    garbled_files,
    obstacles,
    own_specs,
    pod_guard,
    reloaded,
    toolkit_users,
)
from agent.plan.candidate import known_failure, loaded
from agent.plan.context import Context
from agent.plan.device_nodes import Missing
from agent.plan.toolkit_users import Moved
from agent.runtimes import find, low_level, registry
from agent.runtimes.base import CannotSwitch, ConfiguredRuntime, EditRequest, Edits, Runtime
from agent.runtimes.desired import Desired
from agent.runtimes.preflight import Candidate, Preflight
from agent.runtimes.restart import Restart
from agent.state.store import Memory
from agent.status import can_say
from agent.toolkit import install, programs

if TYPE_CHECKING:
    from agent.runtimes.trial import Trial


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a plan shows. `edits` is None where the configuration is not ours to change; `gaps` is
    what the running runtime lacks, `restart` how it would be restarted if it has to be; `spec` is
    None where no CDI specs are wanted, `toolkit` where there is none and none is needed; `nodes`
    are device nodes to be made; `blocked` is why an apply refuses; `trial` is the verdict of a
    trial start, where a restart is due; `cdi_refused`: the runtime does not start with native CDI
    switched on; `repairs` are files of ours that somebody garbled, as they are written anew before
    anything else; `moved` are directories of a toolkit of ours that is elsewhere by now."""

    runtime: Runtime
    decision: Decision
    node: ConfiguredRuntime | None
    edits: Edits | None
    gaps: tuple[str, ...]
    restart: Restart | None
    preflight: Preflight | None
    warnings: tuple[str, ...]
    spec: own_specs.Proposed | None = None
    toolkit: install.Proposed | None = None
    nodes: tuple[Missing, ...] = ()
    blocked: AgentError | None = None
    trial: Trial | None = None
    cdi_refused: bool = False
    repairs: tuple[Change, ...] = ()
    moved: tuple[Moved, ...] = ()

    @property
    def changes(self) -> tuple[Change, ...]:
        """Every file that would be written, but for the toolkit's programs."""
        spec, toolkit = self.spec, self.toolkit
        found = (
            *self.repairs,
            *(spec.changes if spec else ()),
            *(self.edits.changes if self.edits else ()),
            toolkit.config if toolkit else None,
        )
        return tuple(change for change in found if change is not None)

    @property
    def is_default(self) -> bool:
        """Will a handler of ours be the default runtime? Where the configuration is not ours to
        change, that is what the runtime shows."""
        if self.edits is not None:
            return self.decision.is_default
        return registry.shows_nvidia(self.runtime.answer)

    @property
    def configured(self) -> bool:
        """The runtime and its files are as they should be."""
        return not (self.edits and self.edits.changes) and self.restart is None

    @property
    def refusal(self) -> AgentError | None:
        """Why an apply refuses."""
        parts = (self.toolkit, self.spec)
        problems = (part.problem for part in parts if part is not None)
        return self.blocked or next((found for found in problems if found is not None), None)

    @property
    def right(self) -> bool:
        """Nothing to write, nothing to restart, nothing in the way."""
        possible = self.spec is None or self.spec.problem is None
        installed = self.toolkit is None or self.toolkit.right
        return (
            possible
            and installed
            and not self.nodes
            and not self.changes
            and not any(item.why is None for item in self.moved)
            and (self.restart is None)
        )


def propose(ctx: Context, memory: Memory, *, may_enable: bool | None = None) -> Proposal:
    """What would be done, without doing it. Raises Unreachable or Refused."""
    found, missing = _toolkit(ctx)
    proposal = _propose(ctx, memory, may_enable, found)
    root = driver.root_of(ctx.host, generate.places(ctx.settings))
    decision, toolkit = proposal.decision, None
    if found is not None:
        kind, node, edits = proposal.runtime.kind, proposal.node, proposal.edits
        cri, base, called = None, memory.default, None
        if node is not None and edits is not None:
            cri = node.effective(edits.files)
            # Of the files as they are: the default may become ours by these very edits.
            base = edits.base or base or node.effective(node.files).default
            called = edits.called
        calls = low_level.runtimes(ctx.settings, ctx.host, kind, cri, base, called)
        calls, kept = pod_guard.low_level_kept(ctx, node, calls)
        proposal = _guarded(ctx, proposal, calls, kept)
        wanted = replace(decision, is_default=proposal.is_default)
        toolkit = install.propose(ctx.settings, ctx.host, found, wanted, calls, root)
    hook = install.cdi_hook(ctx.settings, ctx.host, found)
    looked, program = find.spec_directories(proposal.runtime), _executable(ctx, proposal)
    spec = own_specs.propose(ctx, decision.spec_dirs, hook, _reader(proposal), looked, program)
    told = (
        missing,
        _unsaid("NVIDIA_CDI_HOOK_PATH", hook, "--toolkit-install-dir"),
        _unsaid("NVIDIA_DRIVER_ROOT", root.host_path if root else None, "--driver-root"),
        *(toolkit.warnings if toolkit else ()),
        *(spec.warnings if spec else ()),
    )
    possible, refused = device_nodes.possible(device_nodes.missing(ctx, root))
    warnings = (*proposal.warnings, *(text for text in told if text), *refused)
    moved = _moved(ctx, proposal, memory, found)
    warnings = (*warnings, *(item.warning for item in moved))
    proposal = replace(proposal, spec=spec, toolkit=toolkit, nodes=possible, moved=moved)
    return _writable(ctx, replace(proposal, warnings=warnings))


def _moved(
    ctx: Context, proposal: Proposal, memory: Memory, found: install.Found | None
) -> tuple[Moved, ...]:
    node, edits = proposal.node, proposal.edits
    if node is None or edits is None or found is None:
        return ()
    after = toolkit_users.After(node, edits.changes, edits.files)
    return toolkit_users.moved(ctx, after, memory, found.directory)


def _writable(ctx: Context, proposal: Proposal) -> Proposal:
    """The proposal with what cannot be written of it."""
    if proposal.right or proposal.refusal is not None:
        return proposal
    changes = proposal.edits.changes if proposal.edits else ()
    blocked = obstacles.of_changes(
        ctx, changes, transaction=not proposal.configured, spec=proposal.spec,
        toolkit=proposal.toolkit,
    )  # fmt: skip
    if blocked is None:
        return proposal
    warnings = (*proposal.warnings, f"apply refuses: {blocked.message}")
    return replace(proposal, blocked=blocked, warnings=warnings)


def _guarded(
    ctx: Context, proposal: Proposal, called: tuple[str, ...], kept: str | None
) -> Proposal:
    """The proposal with what it means to running pods; `called` is what NVIDIA's runtime will call
    in turn, `kept` a warning."""
    warnings = (*proposal.warnings, *([kept] if kept else []))
    used = None
    if proposal.node and proposal.edits and proposal.restart:
        used = pod_guard.apply_refusal(ctx, proposal.node, proposal.edits.files, called)
    if used is not None:
        warnings = (*warnings, f"apply refuses: {used.message}")
    return replace(proposal, warnings=warnings, blocked=proposal.blocked or used)


def _reader(proposal: Proposal) -> Reader:
    """Who reads the specs. Where that is not the runtime, it is NVIDIA's: it reads all of ours."""
    if not proposal.decision.native:
        return readers.NOBODY
    return readers.reader(proposal.runtime.answer.name, proposal.runtime.version)


def _executable(ctx: Context, proposal: Proposal) -> str | None:
    """The agent path of the runtime's executable, where the runtime reads the specs."""
    native = proposal.decision.native
    return find.program(ctx.settings, ctx.host, proposal.runtime) if native else None


def _unsaid(key: str, path: str | None, option: str) -> str | None:
    """A warning where the status file leaves a path out because it cannot hold it."""
    if path is None or can_say(path):
        return None
    return (
        f"{key} is not published because {path} has a character that the status file cannot hold: "
        f"set the variable of the device plugin by hand, or give another {option}"
    )


def _toolkit(ctx: Context) -> tuple[install.Found | None, str | None]:
    """The toolkit; where no handler is to be registered, its lack is only a warning."""
    try:
        return install.look(ctx.settings, ctx.host), None
    except NoToolkit as error:
        if not ctx.settings.no_runtime_config:
            raise
        return None, error.message


def _judge(
    ctx: Context, memory: Memory, runtime: Runtime, node: ConfiguredRuntime | None, may: bool
) -> Decision:
    """The decision, with what running pods keep; they are asked for where it would take
    something."""
    adapter = registry.adapter_of(runtime.answer)
    seen = node.evidence(ctx.host) if node else adapter.evidence(runtime.answer)
    judged = functools.partial(
        _decide,
        ctx.settings, runtime, seen, enabled_by_agent=memory.enabled_cdi, may_enable=may,
    )  # fmt: skip
    decision = judged()
    needs = pod_guard.needs(ctx, node, decision) if node else None
    return judged(needs=needs) if needs else decision


def _decide(
    settings: Settings, runtime: Runtime, seen: tuple[Evidence, ...], *,
    enabled_by_agent: bool, may_enable: bool, needs: PodNeeds | None = None,
) -> Decision:  # fmt: skip
    """The decision for this runtime under these settings; `needs` is what running pods keep."""
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


def _propose(
    ctx: Context, memory: Memory, may_enable: bool | None, found: install.Found | None
) -> Proposal:
    settings = ctx.settings
    allowed = settings.may_enable_cdi if may_enable is None else may_enable
    runtime = find.find_runtime(settings, ctx.host)
    judge = functools.partial(_judge, ctx, memory, runtime)
    if settings.no_runtime_config:
        decision = judge(None, False)
        return Proposal(runtime, decision, None, None, (), None, None, decision.warnings)
    repairs = garbled_files.garbled(ctx, memory)
    overlay = {item.path.host: item.state for item in repairs}
    adapter = registry.adapter(runtime.kind)
    node = adapter.look(settings, ctx.host, runtime, overlay)
    allowed = allowed and memory.cdi_refused != loaded(runtime, node.files)
    decision = judge(node, allowed)
    assert found is not None
    available, left_out = ((), ()) if decision.hook else install.binaries(settings, found)
    hook = found.path(programs.RUNTIME_HOOK)
    request = EditRequest(settings, ctx.store, memory, decision, available, hook)
    try:
        edits, told = node.edits(ctx.host, request)
    except CannotSwitch:
        if memory.enabled_cdi:
            raise
        # The switch cannot be set where it would count: the node is as row 5 says.
        decision = judge(node, False)
        edits, told = node.edits(ctx.host, replace(request, decision=decision))
    gaps = tuple(adapter.unproven(edits.wanted, runtime.answer))
    gaps = gaps or reloaded.gaps(ctx, node, edits, memory)
    restart = _way(ctx, runtime) if gaps else None
    warnings = (*decision.warnings, *left_out, *told, *_hard_links(edits.changes))
    warnings += restart.warnings if restart else ()
    proposal = Proposal(runtime, decision, node, edits, gaps, restart, None, warnings)
    proposal = replace(proposal, repairs=tuple(item.change for item in repairs))
    proposal = _examined(ctx, node, edits, proposal)
    failed = isinstance(proposal.blocked, TrialFailed | CandidateFailed)
    if not failed or decision.row != 4 or memory.enabled_cdi:
        return proposal
    # Where native CDI cannot be switched on, the node is as row 5 says (DESIGN section 3).
    without = _propose(ctx, memory, False, found)
    text = f"native CDI cannot be switched on: {proposal.blocked}"
    return replace(without, cdi_refused=True, warnings=(*without.warnings, text))


def _way(ctx: Context, runtime: Runtime) -> Restart:
    """How the runtime is restarted. Raises Refused."""
    return ctx.choose_restart(ctx.settings.restart_mode, runtime.process, ctx.host, runtime.kind)


def _examined(ctx: Context, node: ConfiguredRuntime, edits: Edits, proposal: Proposal) -> Proposal:
    """The proposal with what is in its way: a restart that the runtime would not survive, its own
    executable's word, and that it failed before."""
    warnings, restart = proposal.warnings, proposal.restart
    deadly = node.restart_hazard(ctx.host, edits.files)
    if deadly is not None:
        warnings = (*warnings, f"apply refuses: {deadly.message}" if restart else deadly.later)
    checked = None
    if edits.changes or restart:
        names = tuple(edits.wanted.handlers)
        ours = (*names, *edits.wanted.absent)
        checked = node.preflight(ctx.host, Candidate(edits.files, names, ours))
    if checked is not None and not checked.done:
        warnings = (*warnings, f"not pre-flighted: {checked.note}")
    blocked: AgentError | None = deadly if restart else None
    tried = None
    if restart and blocked is None:
        blocked = known_failure(ctx, node, edits)
        if blocked is None:
            tried = tried_out(ctx, node, edits.changes, edits.wanted, "apply")
            blocked = tried.refusal
        if blocked is not None:
            warnings = (*warnings, f"apply refuses: {blocked.message}")
        elif tried is not None and not tried.done:
            warnings = (*warnings, f"not tried: {tried.note}")
        elif tried is not None and tried.warning:
            warnings = (*warnings, tried.warning)
    return replace(proposal, preflight=checked, warnings=warnings, blocked=blocked, trial=tried)


def tried_out(
    ctx: Context,
    node: ConfiguredRuntime,
    changes: tuple[Change, ...],
    wanted: Desired,
    purpose: str,
) -> Trial:
    """The verdict of a trial start on the files after these changes. Where none can be made, no
    restart may activate what others changed and nobody has seen run."""
    from agent.plan import unloaded  # a restart takes longer than to load them
    from agent.runtimes import trial  # a restart takes longer than to load them

    subject = trial.subject(ctx.host, node, wanted)
    if isinstance(subject, str):
        verdict = trial.Trial(False, subject)
    else:
        verdict = trial.judge(ctx.host, subject, changes, purpose, ctx.start_trial)
    if verdict.refusal is not None or (unseen := unloaded.first(ctx, node)) is None:
        return verdict
    if isinstance(subject, str) or not verdict.done:
        return replace(verdict, refusal=unloaded.refusal(unseen, purpose, verdict.note))
    return trial.warn_of_present(ctx.host, subject, verdict, ctx.start_trial)


def why_not(ctx: Context, node: ConfiguredRuntime) -> str:
    """Why the runtime does not start on the files as they are; "" where it does or nobody knows."""
    from agent.runtimes import trial  # needed only where something failed

    subject = trial.subject(ctx.host, node, Desired({}))
    if isinstance(subject, str):
        return ""
    return ctx.start_trial(ctx.host, subject.launch({}), lambda _: []).failure


def _hard_links(changes: tuple[Change, ...]) -> tuple[str, ...]:
    """What a person should know of files that are going to be replaced."""
    return tuple(
        f"{item.path} has {item.before.links} names (hard links): the others keep the old content"
        for item in changes
        if item.before is not None and item.before.links > 1
    )
