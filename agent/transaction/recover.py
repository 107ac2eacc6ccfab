"""Finish or undo the change that an earlier run left unfinished.

Invariant: afterwards there is no journal, except one of a change for which somebody else has to
restart the runtime. A change that the runtime proves is committed, and every other change is undone
(DESIGN section 5).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from agent.cri import process
from agent.errors import RollbackFailed, Unreachable
from agent.plan.context import Context, best_effort
from agent.runtimes import restart
from agent.runtimes.proof import NotProven
from agent.runtimes.restart import Restart
from agent.state import store
from agent.state.store import TIDYING, Entry, Journal
from agent.transaction import change, file_changes, host_timer

_PAUSE = 0.1  # seconds between two looks at a socket
_COARSE = 0.05  # seconds; neither start times nor times of files are exact
_PATIENCE = 3.0  # seconds for the answers of a runtime that may be well
_DYING = 3.0  # seconds that a runtime which was told to end may still answer


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of an unfinished change. `outcome` is committed, undone or awaiting-restart, None
    where there was none. `barrier` means that `toolkit-ready` existed before the change."""

    outcome: str | None = None
    barrier: bool = False

    @property
    def waiting(self) -> bool:
        """Files are written, the restart is still to come."""
        return self.outcome == "awaiting-restart"


def recover(ctx: Context) -> Recovered:
    """Deal with an unfinished change. Raises RollbackFailed where it can be neither finished nor
    undone."""
    journal = ctx.store.journal()
    if journal is None:
        return Recovered()
    if journal.stage == TIDYING:
        best_effort(ctx.log, lambda: change.close(ctx, journal))
        return Recovered()
    ctx.log.info("unfinished change found", purpose=journal.purpose, stage=journal.stage)
    barrier = journal.barrier is not None and journal.boot_id == ctx.boot_id
    old_restart = restart.resume(*journal.restart, ctx.host) if journal.restart else None
    if journal.stuck is not None:
        _refuse_without_cause(ctx, journal)
    if host_timer.has_fired(ctx.store, journal):
        ctx.log.info("the switch on the host has fired")
        _remember_failure(ctx, journal, host_timer.FIRED)
        return _undo(ctx, journal, old_restart, barrier=barrier, by_switch=True)
    if not _has_restarted(ctx, journal):
        if journal.stage == "awaiting-restart" and store.is_written(journal):
            return Recovered("awaiting-restart", barrier)
        stopping = journal.stage == "restarted"  # it is still there, and may be about to end
        return _undo(
            ctx, journal, old_restart if stopping else None, barrier=barrier, stopping=stopping
        )
    if store.is_written(journal):
        try:
            change.prove_change(ctx, journal)
            host_timer.claim(ctx.store, journal)
        except NotProven as error:
            ctx.log.info("change not proven", reason=str(error))
            _remember_failure(ctx, journal, str(error))
        else:
            change.commit(ctx, journal)
            return Recovered("committed", barrier)
    return _undo(ctx, journal, old_restart, barrier=barrier)


def _undo(
    ctx: Context, journal: Journal, old_restart: Restart | None, *,
    barrier: bool, stopping: bool = False, by_switch: bool = False,
) -> Recovered:  # fmt: skip
    """Undo the change. A runtime that runs well on the restored files is not restarted.

    Raises RollbackFailed. A file that somebody else changed meanwhile is left alone and is no
    failure, because the next steps work on it as it is.
    """
    healthy = not stopping and _is_healthy(ctx, journal)
    if healthy or old_restart is None:
        undone = file_changes.undo(ctx.store, journal)
        change.finish_undo(ctx, journal, undone, recovering=True)
        return Recovered("undone", barrier)
    change.undo_and_prove(
        ctx, journal, old_restart, stopping=stopping, restarted=by_switch, recovering=True
    )
    return Recovered("undone", barrier)


def _is_healthy(ctx: Context, journal: Journal) -> bool:
    """Does the runtime run already on the files as an undo would leave them?

    This is so where somebody repaired a file or restarted the runtime after the change failed.
    """
    try:
        running = ctx.running(change.journal_endpoint(ctx.host, journal))
    except Unreachable:
        return False
    if running is None:
        return False
    began = process.start_moment(running, ctx.wall)
    foreign = False
    for entry in journal.entries:
        now = store.digest_of(entry.agent, entry.host)
        if now == entry.after and now != entry.before:
            return False  # the undo is still to come, and the runtime may be on the candidate
        foreign = foreign or now != entry.before
        if _change_time(entry) >= began - _COARSE:
            return False
    states = () if foreign else change.states_before(journal)
    return change.is_back(ctx, journal, states, _PATIENCE)


def _change_time(entry: Entry) -> float:
    """The time of a file's last change, or of its removal (seconds since the epoch)."""
    try:
        return os.lstat(entry.agent).st_ctime
    except OSError:
        return _directory_time(os.path.dirname(entry.agent))


def _directory_time(directory: str) -> float:
    try:
        return os.stat(directory).st_mtime
    except OSError:
        return 0.0


def _refuse_without_cause(ctx: Context, journal: Journal) -> None:
    """Raise RollbackFailed where the runtime could not be started again and nothing has changed
    since then."""
    assert journal.stuck is not None
    mark, text = journal.stuck
    if mark == change.stuck_fingerprint(ctx.host, journal) and not _is_healthy(ctx, journal):
        raise RollbackFailed(text)


def _remember_failure(ctx: Context, journal: Journal, why: str) -> None:
    best_effort(ctx.log, lambda: change.remember_failure(ctx, journal.fingerprint, why))


def give_up_waiting(ctx: Context) -> Recovered:
    """Undo a change for which nobody restarted the runtime, so that no runtime has seen it. Raises
    RollbackFailed."""
    journal = ctx.store.journal()
    if journal is None:
        return Recovered()
    undone = file_changes.undo(ctx.store, journal)
    change.finish_undo(ctx, journal, undone, recovering=True)
    return Recovered("undone", journal.barrier is not None)


def _has_restarted(ctx: Context, journal: Journal) -> bool:
    """May the runtime have read the new files, because it is another process or down?

    Where a restart was under way, this waits for the new process, and for a while also for the end
    of the old one, which answers until it has tidied up. A process that could not be seen before
    and cannot be seen now is taken for the old one, because only this agent would have restarted
    it.
    """
    if journal.boot_id != ctx.boot_id:
        return True
    if journal.restart is None:
        return False
    endpoint, began = change.journal_endpoint(ctx.host, journal), ctx.clock()
    end = began + ctx.settings.proof_timeout
    while True:
        try:
            if ctx.identity(endpoint) != journal.process:
                return True
            if journal.stage != "restarted" or ctx.clock() >= min(end, began + _DYING):
                return False
        except Unreachable:
            if journal.stage == "prepared":
                return False  # it went down by itself
            if journal.stage == "written" or ctx.clock() >= end or ctx.given_up(endpoint):
                return True
        ctx.sleep(_PAUSE)
