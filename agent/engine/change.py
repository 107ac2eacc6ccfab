"""Carrying out one change: journal, write, restart, prove, commit; or undo and prove that.

Invariant: whoever returns from here leaves files and runtime in agreement, new or old; where that
could not be reached, the journal stays and RollbackFailed says what is in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from agent.data import dataclass, replace
from agent.engine import deadman, kinds, transaction
from agent.engine.context import Context
from agent.engine.node import Endpoint, Runtime
from agent.engine.plan import Change
from agent.engine.proof import Identity, NotProven, prove
from agent.engine.restart import Restart, RestartFailed
from agent.engine.state import (
    TIDYING,
    Journal,
    Memory,
    decode,
    encode,
    memory_from_json,
    memory_to_json,
)
from agent.engine.transaction import Undone
from agent.engine.wanted import Wanted
from agent.errors import AgentError, Refused, RollbackFailed, RolledBack, Unreachable
from agent.host.paths import HostPath
from agent.observe.cri import Answer
from agent.status import Saved


class NotAccepted(RolledBack):
    """The runtime did not prove the change; everything is as it was."""


@dataclass(frozen=True, slots=True)
class Request:
    """A change to carry out. `restart` None: the running runtime is right already, only files are
    written. `before` proves an undo, `memory` is remembered after success (files are added).
    `check` raises Refused where the node is no longer what the change was planned for."""

    purpose: str
    runtime: Runtime
    changes: tuple[Change, ...]
    restart: Restart | None
    wanted: Wanted
    before: Wanted
    memory: Memory
    fingerprint: str
    check: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Done:
    """A change that holds. `answer` is the last one of the proof."""

    answer: Answer | None
    restarted: bool
    pending: bool
    barrier: bool  # was `toolkit-ready` there before?


def carry_out(ctx: Context, request: Request) -> Done:
    """Make the change and prove it. Raises Refused where nothing was touched, RolledBack where it
    was undone, RollbackFailed where that failed too."""
    request.check()
    journal = _prepare(ctx, request)
    restart, barrier = request.restart, journal.barrier is not None
    begun: set[str] = set()
    try:
        request.check()
        transaction.write(request.changes, journal, begun)
        journal = ctx.store.advance(journal, "written")
        ctx.log("files written", files=[entry.host for entry in journal.entries])
        if restart is None:
            commit(ctx, journal)
            return Done(None, restarted=False, pending=False, barrier=barrier)
        if restart.kind == "none":
            ctx.store.advance(journal, "awaiting-restart")
            return Done(None, restarted=False, pending=True, barrier=barrier)
        journal = ctx.store.advance(journal, "restarted")
    except Refused:
        _undo_files(ctx, journal, begun)
        raise
    try:
        ctx.settle()
        deadman.arm(ctx, journal)
        restart.act(request.runtime.process)
        ctx.log("runtime restarted", kind=restart.kind, target=restart.target)
        answer = prove_change(ctx, journal)
        deadman.claim(ctx, journal)
        commit(ctx, journal)
    except (RestartFailed, NotProven, Refused) as error:
        ctx.log("change not proven", reason=str(error))
        left = undo_and_prove(ctx, journal, restart)
        if not left or isinstance(error, Refused):
            # No runtime has seen the candidate, or a disk was in its way: nothing is known
            # against it.
            back = "back and proven" if left else "back"
            raise RolledBack(
                f"cannot {request.purpose}: {error}; the old configuration is {back}"
            ) from error
        raise NotAccepted(
            f"cannot {request.purpose}: {error}; the old configuration is back and "
            "proven; look in the runtime's log for the cause"
        ) from error
    return Done(answer, restarted=True, pending=False, barrier=barrier)


def _prepare(ctx: Context, request: Request) -> Journal:
    """Everything that can fail without harm: originals, journal, reserved space; then the
    readiness goes."""
    ctx.publisher.check()
    saved = ctx.publisher.save()
    entries = transaction.entries(ctx.store, request.changes, request.memory)
    runtime, restart = request.runtime, request.restart
    journal = Journal(
        purpose=request.purpose,
        boot_id=ctx.boot_id,
        stage="prepared",
        entries=entries,
        wanted=request.wanted.to_json(),
        before=request.before.to_json(),
        process=_running(ctx, request),
        kind=runtime.kind,
        socket=runtime.socket.host,
        restart=(restart.kind, restart.target) if restart else None,
        memory=memory_to_json(transaction.remembered(request.memory, entries)),
        old_memory=memory_to_json(request.memory),
        fingerprint=request.fingerprint,
        twin=encode(saved.twin),
        barrier=encode(saved.barrier),
        switch=deadman.choose(ctx, restart),
    )
    ctx.store.write_journal(journal)
    try:
        transaction.reserve(request.changes, journal)
        if request.restart is not None:
            ctx.publisher.withdraw()
    except AgentError:
        _undo_files(ctx, journal, ())
        raise
    return journal


def _running(ctx: Context, request: Request) -> Identity:
    """Who runs on the old files."""
    process, restart = request.runtime.process, request.restart
    if process is not None:
        return process.identity
    by_systemd = restart is not None and restart.kind == "systemd"
    return ctx.invocation(restart.target) if restart is not None and by_systemd else None


def _undo_files(ctx: Context, journal: Journal, begun: Collection[str]) -> None:
    """Undo a change that no runtime has seen. Raises RollbackFailed."""
    _finish_undo(ctx, journal, transaction.undo(ctx.store, journal, begun))


def _finish_undo(ctx: Context, journal: Journal, undone: Undone) -> None:
    """The end of an undo. The journal stays where files are half-way; the next start tries again.

    Raises RollbackFailed where anything could not be undone.
    """
    if not undone.failed:
        _end_undo(ctx, journal, undone.foreign)
    if undone.failed or undone.foreign:
        where = ctx.store.path("originals")
        raise RollbackFailed(f"cannot undo the change of {undone}; the originals are in {where}")


def _recall(ctx: Context, journal: Journal, foreign: tuple[str, ...]) -> None:
    """Remember what was remembered before: a commit can have got that far. The originals of files
    that somebody edited on top of our change are kept: `revert` has to take our keys out of them.
    """
    memory = memory_from_json(journal.old_memory, "the journal")
    left = tuple(entry for entry in journal.entries if entry.host in foreign)
    known = transaction.remembered(memory, left).files
    edited = {host: replace(known[host], edited=True) for host in foreign if host in known}
    memory = replace(memory, files={**memory.files, **edited})
    if memory != ctx.store.memory():
        ctx.store.remember(memory)


def _end_undo(ctx: Context, journal: Journal, foreign: tuple[str, ...]) -> None:
    """The old state is back: so is what was published of it, if the disk lets us."""
    # What was ready before a reboot is not known to be so now.
    saved = Saved(decode(journal.twin), decode(journal.barrier))
    saved = saved if journal.boot_id == ctx.boot_id else Saved()

    def end() -> None:
        _recall(ctx, journal, foreign)
        close(ctx, journal)

    # A journal that stays is undone once more, to no effect.
    tidy(ctx, lambda: ctx.publisher.restore(saved), end)


def tidy(ctx: Context, *actions: Callable[[], None]) -> None:
    """Do what is good to have and must be in nobody's way, as far as the disk lets us."""
    for action in actions:
        try:
            action()
        except Refused as error:
            ctx.log("not tidied", reason=error.message)


def endpoint(ctx: Context, journal: Journal) -> Endpoint:
    """Where the journal's runtime listens."""
    socket = HostPath(ctx.host.agent_path(journal.socket), journal.socket)
    kind, target = journal.restart or ("none", "")
    return Endpoint(journal.kind, socket, target if kind == "systemd" else None)


def prove_change(ctx: Context, journal: Journal) -> Answer:
    """The proof of a change after its restart. Raises NotProven."""
    wanted = Wanted.from_json(dict(journal.wanted))
    # After a reboot the numbers of a process say nothing, and any process is another one.
    old = journal.process if journal.boot_id == ctx.boot_id else None
    return _prove(ctx, journal, old, wanted)


def _prove(ctx: Context, journal: Journal, old: Identity, wanted: Wanted) -> Answer:
    probe, timeout = ctx.probe(endpoint(ctx, journal)), ctx.settings.proof_timeout
    return prove(probe, old, lambda answer: kinds.unproven(wanted, answer), timeout)


def undo_and_prove(
    ctx: Context,
    journal: Journal,
    restart: Restart | None,
    *,
    told: bool = False,
    restarted: bool = False,
) -> bool:
    """Old files, a restart on them, and the proof of the old state; then readiness is back.

    Returns whether the runtime had left its old files at all. `restart` None where whoever runs
    the runtime has to restart it; `told`: it may have been told to end already, though it is still
    there; `restarted`: it may be on the old files already. Raises RollbackFailed: where the runtime
    does not come back (the journal stays), or a file was somebody else's by then.
    """
    undone = transaction.undo(ctx.store, journal)
    left = False
    # Files that are half-way are no configuration to start a runtime on.
    if restart is not None and restart.kind != "none" and not undone.failed:
        try:
            # A file that somebody else has edited by then may well keep what is ours in it.
            before = Wanted.from_json(dict(journal.before)) if not undone.foreign else Wanted({})
            back = restarted and _is_back(ctx, journal, before)
            left = back or _return(ctx, journal, restart, before, told=told)
        except (RestartFailed, NotProven) as error:
            raise RollbackFailed(
                f"cannot bring the runtime back: {error}; "
                f"{str(undone) or 'its files are as before'}; start it by hand and look in its log"
            ) from error
    _finish_undo(ctx, journal, undone)
    return left


def _is_back(ctx: Context, journal: Journal, before: Wanted) -> bool:
    """Has somebody restarted the runtime on its old files already?"""
    try:
        old = journal.process if journal.boot_id == ctx.boot_id else None
        _prove(ctx, journal, old, before)
    except NotProven:
        return False
    return True


def _return(
    ctx: Context, journal: Journal, restart: Restart, before: Wanted, *, told: bool
) -> bool:
    """The runtime on its old files, proven to be as `before`. One that never left them is let
    alone (False).

    Raises RestartFailed or NotProven.
    """
    where = endpoint(ctx, journal)
    try:
        running = ctx.running(where)
        seen = running.identity if running else ctx.invocation(where.unit)
    except Unreachable:
        running, seen = None, None  # it died of the new configuration
    same = seen is not None and seen == journal.process and journal.boot_id == ctx.boot_id
    if same and not told:
        return False
    restart.act(running)
    _prove(ctx, journal, seen, before)
    return True


def commit(ctx: Context, journal: Journal) -> None:
    """The change is here to stay: remember it, then forget the journal. Raises Refused."""
    memory = memory_from_json(journal.memory, "the journal")
    tidy(ctx, lambda: _tell_edits(ctx, journal))
    ctx.store.remember(memory)
    close(ctx, journal)
    tidy(ctx, lambda: ctx.store.prune(memory))


def _tell_edits(ctx: Context, journal: Journal) -> None:
    for entry in journal.entries:
        if transaction.digest_of(entry.agent, entry.host) != entry.after:
            text = f"somebody else changed {entry.host} since it was written; it stays so"
            ctx.log("warning", text=text)


def close(ctx: Context, journal: Journal) -> None:
    """Nothing is in progress any more."""
    deadman.disarm(ctx, journal)  # first: what it would move is removed next
    if left := transaction.tidy(journal):
        ctx.log("not tidied", files=list(left))
        if journal.stage != TIDYING:
            ctx.store.advance(journal, TIDYING)
    else:
        ctx.store.close_journal()
