"""The end of a change that an earlier process left unfinished.

Invariant: afterwards there is no journal, except that of a change for which somebody else has to
restart the runtime. A change that the runtime proves is committed, and every other change is
undone.
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
from agent.state.journal import AWAITING, TIDYING, Entry, digest_of, is_written
from agent.transaction import host_timer
from agent.transaction.change import Transaction

_PAUSE = 0.1  # seconds between two questions
_COARSE = 0.05  # seconds; the error of start times and of file times
_PATIENCE = 3.0  # seconds for the proof of a runtime that may be healthy
_DYING = 3.0  # seconds for which a runtime that was told to end can still answer


@dataclass(frozen=True)
class Recovered:
    """The result of a recovery. `outcome` is committed, undone or awaiting-restart; None if no
    change was unfinished. `barrier` means that `toolkit-ready` existed before the change."""

    outcome: str | None = None
    barrier: bool = False

    @property
    def waiting(self) -> bool:
        """Are files written, and has somebody else to restart the runtime?"""
        return self.outcome == AWAITING


def recover(ctx: Context) -> Recovered:
    """Finish or undo an unfinished change, if there is one. Raises RollbackFailed if neither is
    possible."""
    journal = ctx.store.journal()
    if journal is None:
        return Recovered()
    change = Transaction(ctx, journal, recovering=True)
    if journal.stage == TIDYING:
        best_effort(change.log, change.close)
        return Recovered()
    change.log.info("unfinished change found", purpose=journal.purpose, stage=journal.stage)
    barrier = journal.barrier is not None and change.in_this_boot
    planned_restart = restart.resume(*journal.restart, ctx.host) if journal.restart else None
    if journal.stuck is not None:  # an earlier undo could not start the runtime
        mark, text = journal.stuck
        if mark == change.stuck_fingerprint() and not _is_healthy(change):
            raise RollbackFailed(text)  # nothing has changed, so a new restart would fail too
    if change.switch.has_fired():
        change.log.warning("the switch on the host has fired")
        change.remember_failure(host_timer.FIRED)
        _undo(change, planned_restart, by_switch=True)
        return Recovered("undone", barrier)
    if not _has_restarted(change):
        if journal.is_awaited:
            return Recovered(AWAITING, barrier)
        stopping = journal.stage == "restarted"  # the old process runs, but may be about to end
        _undo(change, planned_restart if stopping else None, stopping=stopping)
        return Recovered("undone", barrier)
    if is_written(journal):
        try:
            change.prove()
            change.switch.claim()
        except NotProven as error:
            change.log.warning("change not proven", reason=str(error))
            change.remember_failure(str(error))
        else:
            change.commit()
            return Recovered("committed", barrier)
    _undo(change, planned_restart)
    return Recovered("undone", barrier)


def _undo(
    change: Transaction, planned_restart: Restart | None, *,
    stopping: bool = False, by_switch: bool = False,
) -> None:  # fmt: skip
    """Undo the change. A runtime that already runs well on the restored files is not restarted.
    `stopping` as in `undo_and_prove`; `by_switch`: the timer on the host has restarted the runtime.

    Raises RollbackFailed. A file that somebody else changed meanwhile is left alone and is no
    failure, because the next steps use the file in its present state.
    """
    if planned_restart is None or (not stopping and _is_healthy(change)):
        change.undo_files()
    else:
        change.undo_and_prove(planned_restart, stopping=stopping, restarted=by_switch)


def _is_healthy(change: Transaction) -> bool:
    """Does the runtime already run on the files that an undo would restore? It does if somebody
    repaired a file or restarted the runtime after the change failed."""
    try:
        running = change.ctx.running(change.endpoint)
    except Unreachable:
        return False
    if running is None:
        return False
    began = process.start_moment(running, change.ctx.wall)
    foreign = False
    for entry in change.journal.entries:
        now = digest_of(entry.agent, entry.host)
        if now == entry.after and now != entry.before:
            return False  # the undo is still to come, and the runtime may be on the candidate
        foreign = foreign or now != entry.before
        if _change_time(entry) >= began - _COARSE:
            return False
    return change.is_back(_PATIENCE, foreign=foreign)


def _change_time(entry: Entry) -> float:
    """The time of a file's last change or of its removal, in seconds since the epoch."""
    try:
        return os.lstat(entry.agent).st_ctime
    except OSError:
        pass
    try:
        return os.stat(os.path.dirname(entry.agent)).st_mtime
    except OSError:
        return 0.0


def give_up_waiting(ctx: Context) -> Recovered:
    """Undo a change that still waits for its restart; no runtime has loaded its files. Raises
    RollbackFailed."""
    journal = ctx.store.journal()
    if journal is None:
        return Recovered()
    Transaction(ctx, journal, recovering=True).undo_files()
    return Recovered("undone", journal.barrier is not None)


def _has_restarted(change: Transaction) -> bool:
    """Can the runtime have read the new files, because it is another process or down?

    If a restart was under way, this waits for the new process, and for `_DYING` seconds also for
    the end of the old one, which answers until it has finished its work. A process that could not
    be seen before and cannot be seen now is taken for the old one, because only this agent would
    have restarted it.
    """
    if not change.in_this_boot:
        return True
    ctx, journal = change.ctx, change.journal
    if journal.restart is None:
        return False
    began = ctx.clock()
    end = began + ctx.settings.proof_timeout
    while True:
        try:
            if ctx.identity(change.endpoint) != journal.process:
                return True
            if journal.stage != "restarted" or ctx.clock() >= min(end, began + _DYING):
                return False
        except Unreachable:
            if journal.stage == "prepared":
                return False  # the runtime went down without a restart by this agent
            if journal.stage == "written" or ctx.clock() >= end or ctx.given_up(change.endpoint):
                return True
        ctx.sleep(_PAUSE)
