"""One convergence: propose, apply, verify, publish.

Invariant: the order of steps is that of agent/README.md. Readiness is withdrawn before the first
change and published after the proof. On a node that has the desired state, nothing is written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.cdi.specs import own_specs
from agent.errors import (
    AgentError,
    DriverFailed,
    Locked,
    NoDevices,
    NoDriver,
    NoToolkit,
    Pending,
    Refused,
    RolledBack,
    SpecUnwritable,
    Unreachable,
)
from agent.plan import (
    candidate,
    garbled_files,
    published,
    toolkit_users,
)
from agent.plan.candidate import loaded_digest
from agent.plan.context import Context, best_effort
from agent.plan.propose import Proposal, propose
from agent.runtimes import desired_state, registry
from agent.runtimes.base import Endpoint
from agent.state import store
from agent.state.store import Memory
from agent.status import READY
from agent.toolkit import device_nodes, install
from agent.transaction import restart_limits

if TYPE_CHECKING:
    from agent.transaction.change import Request
    from agent.transaction.recover import Recovered

PENDING = "cannot publish yet: the configuration is written; restart the runtime"


@dataclass(frozen=True)
class Outcome:
    """The result of a convergence.

    `changed`: the host paths of the files that were written or removed.
    `pending`: files are written, and somebody else has to restart the runtime.
    `recovered`: the outcome of an earlier, unfinished change (see `Recovered`), None without one.
    `down`, `pods`: as in `Completed`."""

    proposal: Proposal
    changed: tuple[str, ...] = ()
    restarted: bool = False
    pending: bool = False
    recovered: str | None = None
    down: tuple[str, ...] = ()
    pods: str = ""


def converge(ctx: Context) -> Outcome:
    """Bring the node to the desired state and publish the decision, or leave the node as it was.

    Raises AgentError. The error is also published beside the status file.
    """
    with publishing_failures(ctx):
        convergence = _Convergence(ctx)
        # On a node without a state directory, a refusal must not create one.
        first = None if os.path.lexists(ctx.store.directory) else propose(ctx, Memory())
        if first:
            convergence.refuse(first)
        with ctx.locked():
            return convergence.recover_and_converge(first)


class _Convergence:
    """The steps of one convergence. `_barrier` notes that `toolkit-ready` existed before we removed
    it, so that it has to be written again."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._barrier = ctx.barrier

    def refuse(self, proposal: Proposal) -> None:
        """Raise the first error that forbids a proposal, before anything is written. Withdraw
        readiness if the devices are gone or the node lacks the spec that it needs."""
        ctx, spec = self._ctx, proposal.spec
        ctx.on_proposal(proposal)
        error = next(iter(proposal.refusals), None)
        if error is None:
            return
        if spec is not None and isinstance(error, NoDriver | NoDevices | DriverFailed):
            # The devices are gone, so specs of them are removed, and readiness is withdrawn.
            own_specs.write(ctx.settings, spec, ctx.publisher, ctx.log)
        if spec is not None and (error == spec.problem or isinstance(error, SpecUnwritable)):
            dirs = proposal.decision.spec_dirs
            if not own_specs.has_needed(ctx.settings, ctx.host, dirs, spec.needed):
                ctx.publisher.withdraw()  # a node without its devices is not ready
        raise error

    def recover_and_converge(self, first: Proposal | None) -> Outcome:
        """Finish or undo an earlier change, then converge. `first` is a proposal that was made
        before the lock was taken, or None. Raises AgentError."""
        ctx = self._ctx
        recovered = self._recover() if ctx.store.journal() else None
        memory = store.current_memory(ctx.store)
        repaired = garbled_files.repair(ctx, memory)
        try:
            # The first proposal still holds if no other process changed the state meanwhile.
            proposal = first if first and memory == Memory() else propose(ctx, memory)
        except Unreachable as error:
            if not repaired:
                raise
            garbled_files.revive(ctx, error)
            proposal = propose(ctx, memory)
        if recovered and recovered.waiting:
            restart = proposal.restart
            if not proposal.config_changes and restart is not None and restart.kind == "none":
                # The written files are still right, and a person has to restart the runtime.
                return self._publish(Outcome(proposal, self._install(proposal), pending=True))
            self.refuse(proposal)
            recovered = self._recover(give_up_waiting=True)
            proposal = propose(ctx, ctx.store.memory())
        outcome = self._converge(proposal, ctx.store.memory())
        changed = (*repaired, *outcome.changed)
        end = recovered.outcome if recovered else None
        return replace(outcome, recovered=end, changed=changed)

    def _recover(self, *, give_up_waiting: bool = False) -> Recovered:
        """What became of the earlier change."""
        from agent.transaction import recover  # with all that makes a change; rarely needed

        act = recover.give_up_waiting if give_up_waiting else recover.recover
        recovered = act(self._ctx)
        self._barrier |= recovered.barrier
        return recovered

    def _converge(
        self, proposal: Proposal, memory: Memory, *, refused_cdi: bool = False
    ) -> Outcome:
        """Carry out a proposal and publish the decision. `refused_cdi` means that native CDI could
        not be switched on. Raises AgentError."""
        ctx = self._ctx
        self.refuse(proposal)
        if proposal.restart is not None and proposal.restart.kind != "none":
            restart_limits.require(ctx, proposal.config_changes)
        nodes = device_nodes.create(proposal.nodes, ctx.log)
        if nodes:  # the spec has to describe the new device nodes
            proposal = propose(ctx, memory, may_enable=False if refused_cdi else None)
            self.refuse(proposal)
        written = (*nodes, *self._install(proposal))
        for warning in proposal.warnings:
            ctx.log.warning("warning of the plan", text=warning)
        if proposal.is_configured:
            return self._publish(self._clean_up(memory, Outcome(proposal, written)))
        return self._change(proposal, memory, written, refused_cdi or proposal.cdi_refused)

    def _change(
        self, proposal: Proposal, memory: Memory, written: tuple[str, ...], refused_cdi: bool
    ) -> Outcome:
        """Change the runtime's files, after those in `written`, and restart the runtime."""
        from agent.transaction.change import NotAccepted, carry_out

        ctx = self._ctx
        request = self._request(proposal, memory, refused_cdi=refused_cdi)
        self._barrier |= READY in ctx.publisher.save()
        try:
            done = carry_out(ctx, request)
        except NotAccepted as error:
            return self._after_failure(proposal, memory, error)
        if done.restarted:
            self._remember_proven(proposal.runtime.endpoint)
        runtime = proposal.runtime
        outcome = Outcome(
            replace(proposal, runtime=replace(runtime, answer=done.answer or runtime.answer)),
            (*written, *(item.path.host for item in request.changes)),
            restarted=done.restarted,
            pending=done.pending,
            pods=done.pods,
            down=done.down,
        )
        return self._publish(self._clean_up(request.memory, outcome))

    def _request(self, proposal: Proposal, memory: Memory, *, refused_cdi: bool) -> Request:
        """The request for the change of the runtime's files. After its success, the memory also has
        the earlier default runtime, whether we switched CDI on, and whether that was not
        possible."""
        from agent.transaction.change import Request
        from agent.transaction.pod_proof import PodProof

        ctx, node, edits = self._ctx, proposal.node, proposal.edits
        assert node is not None
        assert edits is not None
        current, default = node.effective(node.files), memory.default
        if default is None and not desired_state.is_nvidia(current, current.default):
            default = current.default
        memory = replace(
            memory,
            default=default,
            enabled_cdi=memory.enabled_cdi or edits.desired.enable_cdi,
            cdi_refused=loaded_digest(proposal.runtime, edits.files) if refused_cdi else None,
            moved=tuple(item.directory.host for item in proposal.moved_toolkits),
        )
        pods = None
        if ctx.settings.verify != "off" and proposal.restart is not None:
            pods = PodProof(ctx.host, node, edits.desired.handlers, ctx.log, ctx.clock)
        return Request(
            purpose="apply",
            node=node,
            changes=edits.changes,
            restart=proposal.restart,
            desired=edits.desired,
            memory=memory,
            fingerprint=candidate.fingerprint(node, edits),
            pods=pods,
        )

    def _remember_proven(self, endpoint: Endpoint) -> None:
        """Remember the process that was proven just now, for a runtime that also shows settings
        that it has only reloaded: the settings of this process are in force."""
        ctx, identity = self._ctx, None
        if registry.adapter(endpoint.kind).shows_reloaded:
            with contextlib.suppress(Unreachable):
                identity = ctx.identity(endpoint)
        if identity is not None:
            proven = (ctx.boot_id, *identity)
            store = ctx.store
            best_effort(ctx.log, lambda: store.remember(replace(store.memory(), proven=proven)))

    def _install(self, proposal: Proposal) -> tuple[str, ...]:
        """Write the files that a runtime needs at its start: the programs of the handlers (it asks
        them for their features) and the specs. Returns the host paths of the written files."""
        ctx = self._ctx
        spec = None if proposal.spec and proposal.spec.late else proposal.spec
        return (
            *install.write(proposal.toolkit, ctx.log),
            *own_specs.write(ctx.settings, spec, ctx.publisher, ctx.log),
        )

    def _clean_up(self, memory: Memory, outcome: Outcome) -> Outcome:
        """Remove files that nothing needs, after the runtime was proven without them: our specs if
        the options want none, and the toolkit in its old directories. Returns the outcome with the
        removed files."""
        ctx, proposal = self._ctx, outcome.proposal
        if outcome.pending:
            return outcome
        late = proposal.spec if proposal.spec and proposal.spec.late else None
        removed = own_specs.write(ctx.settings, late, ctx.publisher, ctx.log)
        kept, changed = [], proposal.changed_node
        for item in proposal.moved_toolkits:
            name = item.directory.host
            try:
                # The reason is computed again, because a pod can have come since the proposal.
                unneeded = changed is not None and not toolkit_users.reason_to_keep(
                    ctx.settings, changed, name
                )
                if unneeded and install.remove_from(ctx.host, name):
                    ctx.log.info("toolkit removed", directory=name)
                    removed = (*removed, name)
                    continue
            except Refused as error:
                ctx.log.warning("toolkit not removed", error=error.message)
            kept.append(name)
        if tuple(kept) != memory.moved:
            now = replace(ctx.store.memory(), moved=tuple(kept))
            best_effort(ctx.log, lambda: ctx.store.remember(now))
        return replace(outcome, changed=(*outcome.changed, *removed))

    def _after_failure(self, proposal: Proposal, memory: Memory, error: AgentError) -> Outcome:
        """Converge again without native CDI (row 5), if the failed change was to switch it on
        (row 4). Raises `error` in all other cases."""
        if proposal.decision.row != 4 or memory.enabled_cdi:
            raise error
        self._ctx.log.warning("native CDI could not be switched on", reason=error.message)
        try:
            second = propose(self._ctx, memory, may_enable=False)
            return self._converge(second, memory, refused_cdi=True)
        except Refused as other:
            if isinstance(error, RolledBack):  # exit 5, not 3, because the runtime was restarted
                raise RolledBack(f"{error.message}; then: {other.message}") from other
            raise

    def _publish(self, outcome: Outcome) -> Outcome:
        """Publish the decision for the device plugin; if a restart is pending, withdraw readiness
        and publish that. Returns the outcome."""
        ctx = self._ctx
        if outcome.pending:
            ctx.publisher.withdraw()
            ctx.publisher.publish_error(Pending(PENDING))
            return outcome
        content = published.lines(ctx, outcome.proposal)
        ctx.publisher.publish(content, barrier_was_there=self._barrier)
        if outcome.changed or outcome.restarted:
            best_effort(ctx.log, ctx.store.forget_failure)
        return outcome


@contextlib.contextmanager
def publishing_failures(ctx: Context) -> Iterator[None]:
    """Publish an error of the block beside the status file, as `publish_failure` does."""
    try:
        yield
    except Locked:
        raise  # the process that holds the lock publishes its own result
    except AgentError as error:
        publish_failure(ctx, error)
        raise


def publish_failure(ctx: Context, error: AgentError) -> None:
    """Publish an error beside the status file. The status file itself is removed if no runtime
    answers (row 9) or if the toolkit is missing. Never raises: a failure to publish is only logged,
    because it must not hide `error`."""
    try:
        if isinstance(error, Unreachable | NoToolkit):
            ctx.publisher.withdraw()
        ctx.publisher.publish_error(error)
    except Refused as second:
        ctx.log.warning("failure not published", reason=second.message)
