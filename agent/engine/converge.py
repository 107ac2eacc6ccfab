"""One convergence: observe, decide, plan, apply, verify, publish.

Invariant: the order of steps is that of DESIGN section 5. Readiness is withdrawn before the first
change and published after the proof; a node that is right already is not written to.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

from agent import toolkit
from agent.decide import Decision
from agent.engine import change, plan, preflight, recover, specs
from agent.engine import node as nodes
from agent.engine import wanted as wishes
from agent.engine.change import NotAccepted
from agent.engine.context import Context
from agent.engine.node import Node, Runtime
from agent.engine.plan import CannotSwitch, Change, Edits, Scene
from agent.engine.preflight import Candidate, Preflight
from agent.engine.restart import Restart
from agent.engine.state import Memory
from agent.engine.wanted import Wanted
from agent.errors import (
    AgentError,
    CandidateFailed,
    Locked,
    NoToolkit,
    Pending,
    Refused,
    Unreachable,
)
from agent.runtimes.containerd import ConfigFile, Cri, effective
from agent.status import Facts, lines


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a plan shows. `edits` is None where the configuration is not ours to change; `gaps` is
    what the running runtime lacks, `restart` how it would be restarted if it has to be; `spec` is
    None where no CDI spec is wanted."""

    runtime: Runtime
    decision: Decision
    node: Node | None
    edits: Edits | None
    gaps: tuple[str, ...]
    restart: Restart | None
    preflight: Preflight | None
    warnings: tuple[str, ...]
    spec: specs.Proposed | None = None

    @property
    def changes(self) -> tuple[Change, ...]:
        """Every file that would be written."""
        spec = (self.spec.change,) if self.spec and self.spec.change else ()
        return (*spec, *(self.edits.changes if self.edits else ()))

    @property
    def configured(self) -> bool:
        """The runtime and its files are as they should be."""
        return not (self.edits and self.edits.changes) and self.restart is None

    @property
    def right(self) -> bool:
        """Nothing to write, nothing to restart, nothing in the way."""
        possible = self.spec is None or self.spec.problem is None
        return possible and not self.changes and self.restart is None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a convergence ended. `pending`: files are written, the restart is somebody else's."""

    proposal: Proposal
    changed: tuple[str, ...] = ()
    restarted: bool = False
    pending: bool = False
    recovered: str | None = None


def propose(ctx: Context, memory: Memory, *, may_enable: bool | None = None) -> Proposal:
    """What would be done, without doing it. Raises Unreachable or Refused."""
    proposal = _propose(ctx, memory, may_enable)
    spec = specs.propose(ctx, proposal.decision.spec_dirs)
    warnings = (*proposal.warnings, *(spec.warnings if spec else ()))
    return replace(proposal, spec=spec, warnings=warnings)


def _propose(ctx: Context, memory: Memory, may_enable: bool | None) -> Proposal:
    settings = ctx.settings
    allowed = settings.may_enable_cdi if may_enable is None else may_enable
    runtime = nodes.find_runtime(settings, ctx.host)

    def judge(node: Node | None, may: bool) -> Decision:
        seen = nodes.evidence(node, runtime, ctx.host)
        return nodes.judge(
            settings, runtime, seen, enabled_by_agent=memory.enabled_cdi, may_enable=may
        )

    if settings.no_runtime_config:
        decision = judge(None, False)
        return Proposal(runtime, decision, None, None, (), None, None, decision.warnings)
    node = nodes.with_config(settings, ctx.host, runtime)
    allowed = allowed and memory.cdi_refused != loaded(runtime, node.files)
    available, left_out = nodes.binaries(settings, ctx.host)
    decision = judge(node, allowed)
    try:
        edits = _edits(ctx, node, decision, memory, available)
    except CannotSwitch:
        if memory.enabled_cdi:
            raise
        # The switch cannot be set where it would count: the node is as row 5 says.
        decision = judge(node, False)
        edits = _edits(ctx, node, decision, memory, available)
    gaps = tuple(wishes.unproven(edits.wanted, runtime.answer))
    warnings = (*decision.warnings, *left_out)
    restart = None
    if gaps:
        mode, process = settings.restart_mode, runtime.process
        restart = ctx.choose_restart(mode, process, ctx.host, runtime.kind)
    checked = None
    if edits.changes or restart:
        names = tuple(edits.wanted.handlers)
        checked = preflight.check(ctx.host, node, Candidate(edits.files, names, names))
    if checked is not None and not checked.done:
        warnings = (*warnings, f"not pre-flighted: {checked.note}")
    proposal = Proposal(runtime, decision, node, edits, gaps, restart, checked, warnings)
    failure = _failure(ctx, proposal)
    return replace(proposal, warnings=(*warnings, failure)) if failure else proposal


def _failure(ctx: Context, proposal: Proposal) -> str | None:
    """Why this very change is not tried again."""
    why = ctx.store.failed().get(fingerprint(proposal)) if proposal.restart else None
    return f"the same change failed before ({why}) and nothing has changed since" if why else None


def _edits(
    ctx: Context, node: Node, decision: Decision, memory: Memory,
    available: tuple[wishes.Binary, ...],
) -> Edits:  # fmt: skip
    settings = ctx.settings

    def wish(cri: Cri) -> Wanted:
        return wishes.want(
            cri, decision, available, settings.runtime_name, memory.default, settings.runtime_type
        )

    return plan.edits(Scene(ctx.host, node.gen, node.files, node.drop_in, memory, wish))


def converge(ctx: Context) -> Outcome:
    """Make the node right and publish, or leave it as it was and say why.

    Raises AgentError; the failure is also told beside the status file.
    """
    try:
        with ctx.locked():
            return _recover_and_converge(ctx)
    except Locked:
        raise  # the one who holds the lock tells how it goes
    except AgentError as error:
        tell(ctx, error)
        raise


def _recover_and_converge(ctx: Context) -> Outcome:
    found = recover.recover(ctx)
    proposal = propose(ctx, ctx.store.memory())
    if found.waiting:
        if _still_waits(proposal):
            written = specs.write(ctx, proposal.spec)
            return publish(ctx, Outcome(proposal, written, pending=True), barrier=False)
        found = recover.give_up_waiting(ctx)
        proposal = propose(ctx, ctx.store.memory())
    outcome = _converge(ctx, proposal, ctx.store.memory(), barrier=found.barrier)
    return replace(outcome, recovered=found.outcome)


def _still_waits(proposal: Proposal) -> bool:
    """Is the written change still the right one, and its restart still not ours to do?"""
    changes = proposal.edits.changes if proposal.edits else ()
    return not changes and proposal.restart is not None and proposal.restart.kind == "none"


def tell(ctx: Context, error: AgentError) -> None:
    """Beside the status file, which goes where nothing answers any more (row 9) and where the
    handlers lead nowhere. A failure to tell a failure must not hide it."""
    try:
        if isinstance(error, Unreachable | NoToolkit):
            ctx.publisher.withdraw()
        ctx.publisher.fail(error)
    except Refused as second:
        ctx.log("failure not told", reason=second.message)


def _converge(
    ctx: Context, proposal: Proposal, memory: Memory, *, barrier: bool, refused_cdi: bool = False
) -> Outcome:
    # Before the restart: what is proven after it has to find the devices.
    written = specs.write(ctx, proposal.spec)
    for warning in proposal.warnings:
        ctx.log("warning", text=warning)
    if proposal.configured:
        return publish(ctx, Outcome(proposal, written), barrier=barrier)
    assert proposal.node is not None
    assert proposal.edits is not None
    failure = _failure(ctx, proposal)
    if failure is not None:
        where = ctx.store.path("failed.json")
        error = CandidateFailed(
            f"cannot apply: {failure}; correct the cause, or remove {where} to try again"
        )
        return _after_failure(ctx, proposal, memory, error, barrier=barrier)
    request = change.Request(
        purpose="apply",
        runtime=proposal.runtime,
        changes=proposal.edits.changes,
        restart=proposal.restart,
        wanted=proposal.edits.wanted,
        before=state_of(proposal.node),
        memory=_after(memory, proposal, refused_cdi=refused_cdi),
        fingerprint=fingerprint(proposal),
    )
    try:
        done = change.carry_out(ctx, request)
    except NotAccepted as error:
        ctx.store.remember_failure(request.fingerprint, error.message)
        return _after_failure(ctx, proposal, memory, error, barrier=barrier)
    return publish(ctx, _outcome(proposal, done, written), barrier=barrier or done.barrier)


def _after_failure(
    ctx: Context, proposal: Proposal, memory: Memory, error: AgentError, *, barrier: bool
) -> Outcome:
    """Where native CDI could not be switched on, the node is as row 5 says (DESIGN section 3)."""
    if proposal.decision.row != 4 or memory.enabled_cdi:
        raise error
    ctx.log("native CDI could not be switched on", reason=error.message)
    second = propose(ctx, memory, may_enable=False)
    return _converge(ctx, second, memory, barrier=barrier, refused_cdi=True)


def _outcome(proposal: Proposal, done: change.Done, written: tuple[str, ...]) -> Outcome:
    assert proposal.edits is not None
    runtime = replace(proposal.runtime, answer=done.answer) if done.answer else proposal.runtime
    return Outcome(
        replace(proposal, runtime=runtime),
        (*written, *(item.path.host for item in proposal.edits.changes)),
        restarted=done.restarted,
        pending=done.pending,
    )


def _after(memory: Memory, proposal: Proposal, *, refused_cdi: bool) -> Memory:
    """What is to be remembered beside files: the default of before, who switched CDI on, and that
    it could not be switched on."""
    assert proposal.edits is not None
    assert proposal.node is not None
    current = effective(proposal.node.gen, proposal.node.files)
    default = memory.default
    if default is None and not wishes.is_ours(current.default, current.table(current.default)):
        default = current.default
    refused = loaded(proposal.runtime, proposal.edits.files) if refused_cdi else None
    enabled = memory.enabled_cdi or proposal.edits.wanted.enable_cdi
    return replace(memory, default=default, enabled_cdi=enabled, cdi_refused=refused)


def loaded(runtime: Runtime, files: tuple[ConfigFile, ...]) -> str:
    """A hash of what a runtime runs on: its version and its files."""
    parts = [(file.name, file.state.digest if file.state else None) for file in files]
    return hashlib.sha256(json.dumps([runtime.version, parts]).encode()).hexdigest()


def state_of(node: Node) -> Wanted:
    """What proves that a runtime runs on these files again: its default, and which of our names
    are handlers. More than that is not asked for, so that an undo is not doubted for a detail."""
    cri = effective(node.gen, node.files)
    absent = tuple(name for name in wishes.OUR_NAMES if name not in cri.runtimes)
    return Wanted({}, cri.default, False, absent)


def fingerprint(proposal: Proposal) -> str:
    """A hash of everything that a candidate's success depends on."""
    assert proposal.edits is not None
    files = [
        (item.path.host, item.before and item.before.digest, item.after and item.after.digest)
        for item in proposal.edits.changes
    ]
    base = loaded(proposal.runtime, proposal.edits.files)
    parts = (files, base, proposal.edits.wanted.to_json())
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def publish(ctx: Context, outcome: Outcome, *, barrier: bool) -> Outcome:
    """Tell the device plugin, unless the restart is still to come.

    `barrier`: `toolkit-ready` was there before the change, whoever owns it.
    """
    if outcome.pending:
        ctx.publisher.withdraw()
        ctx.publisher.fail(
            Pending("cannot publish yet: the configuration is written; restart the runtime")
        )
        return outcome
    content = lines(facts(ctx, outcome.proposal), ctx.boot_id, ctx.wall())
    ctx.publisher.publish(content, barrier_was_there=barrier)
    if outcome.changed or outcome.restarted:
        ctx.store.forget_failure()
    return outcome


def _is_default(proposal: Proposal) -> bool:
    """Where the configuration is not ours to change, the default is what the runtime shows."""
    containerd = (proposal.runtime.answer.config or {}).get("containerd")
    shown = containerd.get("defaultRuntimeName") if isinstance(containerd, dict) else None
    return shown in wishes.OUR_NAMES


def facts(ctx: Context, proposal: Proposal) -> Facts:
    """The published facts of a proven proposal."""
    decision, settings = proposal.decision, ctx.settings
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
        is_default=decision.is_default if proposal.edits else _is_default(proposal),
        strategy=decision.strategy,
        annotation_prefix=decision.annotation_prefix,
        hook_path=toolkit.find(settings, ctx.host, "nvidia-cdi-hook"),
    )
