"""Carry out one change: journal, write, restart, prove, commit; or undo the change, and prove the
old state.

Invariant: afterwards files and runtime agree, on the new state or on the old one. If neither state
can be reached, the journal stays, and RollbackFailed names the cause.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass, replace

from agent.cri.client import Answer
from agent.errors import AgentError, Refused, RollbackFailed, RolledBack, Unreachable
from agent.host.files import Change
from agent.host.paths import HostPath
from agent.log import TransactionLog, process_transaction
from agent.plan.context import Context, best_effort
from agent.runtimes import registry, trial
from agent.runtimes.base import ConfiguredRuntime, Endpoint
from agent.runtimes.desired_state import OUR_NAMES, Desired
from agent.runtimes.proof import Identity, NotProven, prove
from agent.runtimes.restart import Restart, RestartFailed, down_message
from agent.state.journal import AWAITING, TIDYING, Entry, Journal, decode, digest_of, encode
from agent.state.store import Failure, Memory, memory_from_json, memory_to_json
from agent.status import READY, TWIN
from agent.transaction import file_changes, host_timer, quiet_moment, restart_limits
from agent.transaction.file_changes import UndoResult
from agent.transaction.host_timer import Switch
from agent.transaction.pod_proof import PodProof, PodsFail


class NotAccepted(RolledBack):
    """The proof of a change failed. The change was undone, and the old state is proven."""


@dataclass(frozen=True)
class Request:
    """A change to carry out.

    `purpose`: "apply" or "revert".
    `node`: the runtime with its files, as observed for the plan.
    `restart`: None if the running runtime is right already and only files are written.
    `desired`: the state to prove.
    `memory`: is remembered after a success, with the changed files added.
    `fingerprint`: that of the candidate, under which a failure is remembered.
    `pods`: the part of the proof in which pods run, None without it.
    `overlaid`: was `node` loaded with an overlay, so that its files differ from those on disk?
    """

    purpose: str
    node: ConfiguredRuntime
    changes: tuple[Change, ...]
    restart: Restart | None
    desired: Desired
    memory: Memory
    fingerprint: str
    pods: PodProof | None = None
    overlaid: bool = False


@dataclass(frozen=True)
class Completed:
    """A completed change. `answer` is the last answer of the proof, None without a restart.
    `pending` means that somebody else has to restart the runtime. `pods` names the handlers under
    which pods ran in the proof. `down` has a message for each unit that systemd restarted with the
    runtime and that does not run again."""

    answer: Answer | None = None
    pending: bool = False
    pods: str = ""
    down: tuple[str, ...] = ()

    @property
    def restarted(self) -> bool:
        """Was the runtime restarted?"""
        return self.answer is not None


def carry_out(ctx: Context, request: Request) -> Completed:
    """Make a change and prove it. Raises Refused if nothing was changed, RolledBack if the change
    was undone, and RollbackFailed if the undo failed too."""
    restart = request.restart
    if restart is not None and restart.restarted_units:
        ctx.log.info("units are restarted along", units=list(restart.restarted_units))
    try:
        done = _carry_out(ctx, request)
    finally:
        down = {name: down_message(name) for name in (restart.down() if restart else ())}
        for name, text in down.items():
            ctx.log.warning("unit not running again", unit=name, text=text)
    return replace(done, down=tuple(down.values()))


def _carry_out(ctx: Context, request: Request) -> Completed:
    _refuse_changed(request)
    restart, runtime = request.restart, request.node.runtime
    quiet_until = ctx.clock() + quiet_moment.LIMIT
    if restart is not None and restart.kind != "none":
        if request.pods:
            request.pods.before()
        quiet_moment.wait(ctx, runtime.socket, quiet_until, touched=False)
    change = _begin(ctx, request)
    begun: set[str] = set()
    try:
        _refuse_changed(request)
        file_changes.write(request.changes, change.journal, begun)
        change.advance("written")
        change.log.info("files written", files=[entry.host for entry in change.journal.entries])
        if restart is None:
            change.commit()
            return Completed()
        if restart.kind == "none":
            change.advance(AWAITING)
            return Completed(pending=True)
        # A second time, because a pod can have come while files were written.
        quiet_moment.wait(ctx, runtime.socket, quiet_until, touched=True)
        restart_limits.count(ctx)
        change.advance("restarted")
    except Refused:
        change.undo_files(begun)
        raise
    try:
        change.switch.arm(ctx.settings.proof_timeout)
        adapter = registry.adapter(change.journal.kind)
        if adapter.restart_note:
            change.log.info(
                "restarting the runtime", runtime=adapter.title, target=restart.target,
                note=adapter.restart_note,
            )  # fmt: skip
        restart.act(runtime.process)
        change.log.info("runtime restarted", kind=restart.kind, target=restart.target)
        answer = change.prove()
        pods = request.pods.after() if request.pods else ""
        change.switch.claim()
        change.commit()
    except (RestartFailed, NotProven, Refused) as error:
        change.log.warning("change not proven", reason=str(error))
        raise _roll_back(change, request, error) from error
    return Completed(answer, pods=pods)


def _refuse_changed(request: Request) -> None:
    """Raise Refused if a file of the runtime was changed, added or removed since the plan."""
    node = request.node
    if request.overlaid:
        return
    planned, now = (
        {(file.name, file.state and file.state.digest) for file in loaded}
        for loaded in (node.files, node.load())
    )
    if changed := sorted(name for name, _ in planned ^ now):
        raise Refused(
            f"cannot write: somebody changed {changed[0]} in the meantime; nothing was changed; "
            "try again"
        )


def _states_of(node: ConfiguredRuntime) -> tuple[Desired, ...]:
    """The states of which one has to hold to prove an undo.

    The first has the default runtime and the handlers with our names that the runtime shows now.
    The second has those of its present files, because somebody may have changed the files after the
    start of the runtime. Nothing else is compared, so that no detail makes an undo fail.
    """
    effective = node.effective(node.files)
    shown, computed = (
        Desired({}, default, False, tuple(name for name in OUR_NAMES if name not in handlers))
        for default, handlers in (
            registry.shown_handler_names(node.runtime.answer),
            (effective.default, tuple(effective.runtimes)),
        )
    )
    return (shown,) if shown == computed else (shown, computed)


def _roll_back(change: Transaction, request: Request, error: Exception) -> RolledBack:
    """Undo a change after its restart, and return the error to raise. Raises RollbackFailed."""
    why = str(error)
    left_old_files = True
    try:
        left_old_files = change.undo_and_prove(request.restart, node=request.node)
    finally:
        if left_old_files:  # the same restart is not tried again, even if the undo failed
            change.remember_failure(why)
    failed = f"cannot {request.purpose}: {why}; the old configuration is back"
    if not left_old_files:  # no runtime ran on the candidate, so the candidate may be right
        return RolledBack(failed)
    if isinstance(error, Refused):
        return RolledBack(f"{failed} and proven")
    if isinstance(error, PodsFail):  # the runtime itself accepted everything
        return RolledBack(f"{failed} and proven; repair the handler, or give --verify=off")
    return NotAccepted(f"{failed} and proven; look in the runtime's log for the cause")


def _begin(ctx: Context, request: Request) -> Transaction:
    """Take the steps that can fail without harm (keep the originals, write the journal, reserve
    space), then withdraw readiness. Raises AgentError; then nothing is left of the change."""
    ctx.publisher.check_writable()
    saved = ctx.publisher.save()
    entries = file_changes.entries(ctx.store, request.changes, request.memory)
    runtime, restart = request.node.runtime, request.restart
    old = runtime.process.identity if runtime.process else None
    if old is None and restart is not None and restart.kind == "systemd":
        old = ctx.invocation(restart.target)
    journal = Journal(
        purpose=request.purpose,
        boot_id=ctx.boot_id,
        stage="prepared",
        entries=entries,
        wanted=request.desired.to_json(),
        before=tuple(state.to_json() for state in _states_of(request.node)),
        process=old,
        kind=runtime.kind,
        socket=runtime.socket.host,
        restart=(restart.kind, restart.target) if restart else None,
        memory=memory_to_json(file_changes.remembered(request.memory, entries)),
        old_memory=memory_to_json(request.memory),
        fingerprint=request.fingerprint,
        twin=encode(saved.get(TWIN)),
        barrier=encode(saved.get(READY)),
        switch=host_timer.choose(ctx.host, restart),
        executable=runtime.process.executable if runtime.process else None,
        transaction=process_transaction(),
    )
    ctx.store.write_journal(journal)
    change = Transaction(ctx, journal)
    try:
        file_changes.reserve(request.changes, journal)
        if request.restart is not None:
            ctx.publisher.withdraw()
    except AgentError:
        change.undo_files(())
        raise
    return change


class Transaction:
    """A change in progress, with the steps that finish or undo it. Its state is in `journal`.

    With `recovering`, this process finishes or undoes a change that an earlier process began. `log`
    writes all lines under the id of the process that began the change.
    """

    def __init__(self, ctx: Context, journal: Journal, *, recovering: bool = False) -> None:
        self.ctx = ctx
        self.journal = journal
        self._recovering = recovering
        self.log = TransactionLog(ctx.log, journal.transaction)
        self.switch = Switch(ctx.host, ctx.store, ctx.reach, self.log, journal)
        kind, target = journal.restart or ("none", "")
        socket = HostPath(ctx.host.agent_path(journal.socket), journal.socket)
        self.endpoint = Endpoint(journal.kind, socket, target if kind == "systemd" else None)

    @property
    def in_this_boot(self) -> bool:
        """Was the change begun since this boot?"""
        return self.journal.boot_id == self.ctx.boot_id

    @property
    def _old_process(self) -> Identity:
        """The process that ran on the old files. None after a reboot, because then every process is
        another one."""
        return self.journal.process if self.in_this_boot else None

    def advance(self, stage: str) -> None:
        """Write the next stage into the journal on disk. Raises Refused."""
        self.journal = self.ctx.store.advance(self.journal, stage)

    def undo_files(self, begun: Collection[str] | None = None) -> None:
        """Undo a change whose files no runtime has loaded. `begun` as in `file_changes.undo`.
        Raises RollbackFailed as `_finish_undo`."""
        self._finish_undo(file_changes.undo(self.ctx.store, self.journal, begun))

    def _finish_undo(self, undone: UndoResult) -> None:
        """End an undo. If a file could not be restored, the journal stays, and the next start
        repeats the undo.

        Raises RollbackFailed if a file could not be restored, or if it was left alone because
        somebody changed it meanwhile. While recovering, the second case is only logged, because the
        next steps use the file in its present state.
        """
        if not undone.failed:
            self._end_undo(undone.foreign)
        if self._recovering and undone.foreign and not undone.failed:
            self.log.warning("change not undone", files=str(undone))
        elif undone.failed or undone.foreign:
            where = self.ctx.store.path("originals")
            raise RollbackFailed(
                f"cannot undo the change of {undone}; copy the originals back from {where}"
            )

    def _end_undo(self, foreign: tuple[str, ...]) -> None:
        """Restore the status files and the memory of the old state, as far as the disk permits. A
        commit may have replaced the memory. `foreign` are files that somebody else changed."""
        store, publisher, journal = self.ctx.store, self.ctx.publisher, self.journal
        # A status file of before a reboot says nothing about this boot.
        saved = {TWIN: decode(journal.twin), READY: decode(journal.barrier)}
        saved = saved if self.in_this_boot else {}

        def end() -> None:
            memory = memory_from_json(journal.old_memory, "the journal")
            # `revert` has to take our keys out of files that somebody edited after our change.
            left = tuple(entry for entry in journal.entries if entry.host in foreign)
            known = file_changes.remembered(memory, left).files
            edited = {host: replace(known[host], edited=True) for host in foreign if host in known}
            memory = replace(memory, files={**memory.files, **edited})
            if memory != store.memory():
                store.remember(memory)
            self.close()
            if not foreign:  # else the message refers to the originals
                store.prune(store.memory())

        # If the journal stays, the next start repeats the undo, without effect.
        best_effort(self.log, lambda: publisher.restore(saved), end)

    def prove(self) -> Answer:
        """Prove the change after its restart, and return the last answer. Raises NotProven."""
        return self._prove(self._old_process, Desired.from_json(dict(self.journal.wanted)))

    def _prove(self, old: Identity, *states: Desired, timeout: float | None = None) -> Answer:
        """Prove that a process other than `old` has one of these states. `timeout` is in seconds,
        None for --proof-timeout. Raises NotProven."""

        def problems(answer: Answer) -> list[str]:
            adapter = registry.adapter_of(answer)
            return min((adapter.unproven(state, answer) for state in states), key=len)

        probe, limit = self.ctx.probe(self.endpoint), self.ctx.settings.proof_timeout
        return prove(probe, old, problems, limit if timeout is None else min(timeout, limit))

    def undo_and_prove(
        self, restart: Restart | None, *, stopping: bool = False, restarted: bool = False,
        node: ConfiguredRuntime | None = None,
    ) -> bool:  # fmt: skip
        """Restore the old files, restart the runtime on them, prove the old state, and restore
        readiness.

        Returns true if the runtime was restarted after the change began. `restart` is None if
        somebody else restarts the runtime. `stopping` means that the old process runs and may have
        got its signal to end. `restarted` means that the runtime may run on the old files already.
        `node` as in Request. Raises RollbackFailed if the runtime does not come back; then the
        journal stays. Also raises it as `_finish_undo`.
        """
        undone = file_changes.undo(self.ctx.store, self.journal)
        left_old_files = False
        # A runtime must not start on files of which only some are restored.
        if restart is not None and restart.kind != "none" and not undone.failed:
            foreign, timeout = bool(undone.foreign), self.ctx.settings.proof_timeout
            try:
                left_old_files = (
                    restarted and self.is_back(timeout, foreign=foreign)
                ) or self._return_to_old_files(restart, foreign=foreign, stopping=stopping)
            except (RestartFailed, NotProven) as error:
                raise self._stuck_error(undone, str(error), node) from error
        self._finish_undo(undone)
        return left_old_files

    def _stuck_error(
        self, undone: UndoResult, error: str, node: ConfiguredRuntime | None
    ) -> RollbackFailed:
        """The error for a runtime that did not come back. The error is also written into the
        journal, so that the runtime is not restarted again before a file or its executable has
        changed. Somebody may start it meanwhile."""
        state = str(undone) or "its files are as before"
        if node and (why := trial.start_on_present(node, self.ctx.start_trial).failure):
            state = f"the original files do not load ({why}): repair them; {state}"
        text = (
            f"cannot bring the runtime back: {error}; {state}; start it by hand and look in its log"
        )
        stuck = replace(self.journal, stuck=(self.stuck_fingerprint(), text))
        best_effort(self.log, lambda: self.ctx.store.write_journal(stuck))
        return RollbackFailed(text)

    def stuck_fingerprint(self) -> str:
        """A hash of everything that can make another start of the runtime succeed: the changed
        files, the content of their directories, and the executable."""
        facts: list[object] = []
        for entry in self.journal.entries:
            facts.append(digest_of(entry.agent, entry.host))
            facts.append(_file_identity(os.path.dirname(entry.agent)))
        if self.journal.executable:
            facts.append(_file_identity(self.ctx.host.agent_path(self.journal.executable)))
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _states_before(self, *, foreign: bool) -> tuple[Desired, ...]:
        """The states of which one proves an undo. If somebody else has changed a file (`foreign`),
        any state proves it, because that file can still have our settings."""
        states = (Desired.from_json(dict(state)) for state in self.journal.before)
        return (() if foreign else tuple(states)) or (Desired({}),)

    def is_back(self, timeout: float, *, foreign: bool) -> bool:
        """Does a process answer that is newer than the change and has the old state? Waits for
        `timeout` seconds at most."""
        try:
            self._prove(self._old_process, *self._states_before(foreign=foreign), timeout=timeout)
        except NotProven:
            return False
        return True

    def _return_to_old_files(self, restart: Restart, *, foreign: bool, stopping: bool) -> bool:
        """Restart the runtime on its old files, and prove the old state.

        Returns false if the old process still runs; then the runtime is not restarted. Raises
        RestartFailed or NotProven.
        """
        try:
            running = self.ctx.running(self.endpoint)
            seen = running.identity if running else self.ctx.invocation(self.endpoint.unit)
        except Unreachable:
            running, seen = None, None  # the runtime is down
        if seen is not None and seen == self._old_process and not stopping:
            return False
        restart.act(running)
        self._prove(seen, *self._states_before(foreign=foreign))
        return True

    def remember_failure(self, why: str) -> None:
        """Remember that the change failed and why, so that it is not tried again."""
        failure = Failure(why, self.ctx.wall())
        best_effort(
            self.log, lambda: self.ctx.store.remember_failure(self.journal.fingerprint, failure)
        )

    def commit(self) -> None:
        """Commit the change: write the memory, then close the journal. Raises Refused."""
        memory = memory_from_json(self.journal.memory, "the journal")
        checks = (functools.partial(self._warn_if_changed, one) for one in self.journal.entries)
        best_effort(self.log, *checks)
        self.ctx.store.remember(memory)
        self.close()
        best_effort(self.log, lambda: self.ctx.store.prune(memory))

    def _warn_if_changed(self, entry: Entry) -> None:
        if digest_of(entry.agent, entry.host) != entry.after:
            self.log.warning("file changed since it was written", path=entry.host)

    def close(self) -> None:
        """Remove the switch and the temporary files of the change, then the journal."""
        self.switch.disarm()  # first, because it would move files that are removed next
        if remains := file_changes.tidy(self.journal):
            self.log.warning("not tidied", files=list(remains))
            if self.journal.stage != TIDYING:
                self.advance(TIDYING)
        else:
            self.ctx.store.close_journal()


def _file_identity(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_ino, status.st_mtime_ns]
