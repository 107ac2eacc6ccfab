"""Finish or undo the change that an earlier run left unfinished.

Invariant: afterwards there is no journal, except one of a change for which somebody else has to
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
from agent.state import store
from agent.state.store import AWAITING, TIDYING, Entry
from agent.transaction import host_timer
from agent.transaction.change import Transaction

_PAUSE = 0.1  # seconds between two looks at a socket
_COARSE = 0.05  # seconds; neither start times nor times of files are exact
_PATIENCE = 3.0  # seconds for the answers of a runtime that may be well
_DYING = 3.0  # seconds that a runtime which was told to end may still answer


@dataclass(frozen=True)
class Recovered:
    """What became of an unfinished change. `outcome` is committed, undone or awaiting-restart, None
    where there was none. `barrier` means that `toolkit-ready` existed before the change."""

    outcome: str | None = None
    barrier: bool = False

    @property
    def waiting(self) -> bool:
        """Files are written, the restart is still to come."""
        return self.outcome == AWAITING


def recover(ctx: Context) -> Recovered:
    """Deal with an unfinished change. Raises RollbackFailed if it can be neither finished nor
    undone."""
    journal = ctx.store.journal()
    if journal is None:
        return Recovered()
    left = Transaction(ctx, journal, recovering=True)
    if journal.stage == TIDYING:
        best_effort(left.log, left.close)
        return Recovered()
    left.log.info("unfinished change found", purpose=journal.purpose, stage=journal.stage)
    barrier = journal.barrier is not None and left.in_this_boot
    old_restart = restart.resume(*journal.restart, ctx.host) if journal.restart else None
    if journal.stuck is not None:  # it could not be started again
        mark, text = journal.stuck
        if mark == left.stuck_fingerprint() and not _is_healthy(left):
            raise RollbackFailed(text)  # and nothing has changed since then
    if left.switch.has_fired():
        left.log.warning("the switch on the host has fired")
        left.remember_failure(host_timer.FIRED)
        _undo(left, old_restart, by_switch=True)
        return Recovered("undone", barrier)
    if not _has_restarted(left):
        if journal.stage == AWAITING and store.is_written(journal):
            return Recovered(AWAITING, barrier)
        stopping = journal.stage == "restarted"  # it is still there, and may be about to end
        _undo(left, old_restart if stopping else None, stopping=stopping)
        return Recovered("undone", barrier)
    if store.is_written(journal):
        try:
            left.prove()
            left.switch.claim()
        except NotProven as error:
            left.log.warning("change not proven", reason=str(error))
            left.remember_failure(str(error))
        else:
            left.commit()
            return Recovered("committed", barrier)
    _undo(left, old_restart)
    return Recovered("undone", barrier)


def _undo(
    left: Transaction, old_restart: Restart | None, *,
    stopping: bool = False, by_switch: bool = False,
) -> None:  # fmt: skip
    """Undo the change. A runtime that runs well on the restored files is not restarted.

    Raises RollbackFailed. A file that somebody else changed meanwhile is left alone and is no
    failure, because the next steps work on it as it is.
    """
    if old_restart is None or (not stopping and _is_healthy(left)):
        left.undo_files()
    else:
        left.undo_and_prove(old_restart, stopping=stopping, restarted=by_switch)


def _is_healthy(left: Transaction) -> bool:
    """Does the runtime run already on the files as an undo would leave them?

    This is so if somebody repaired a file or restarted the runtime after the change failed.
    """
    try:
        running = left.ctx.running(left.endpoint)
    except Unreachable:
        return False
    if running is None:
        return False
    began = process.start_moment(running, left.ctx.wall)
    foreign = False
    for entry in left.journal.entries:
        now = store.digest_of(entry.agent, entry.host)
        if now == entry.after and now != entry.before:
            return False  # the undo is still to come, and the runtime may be on the candidate
        foreign = foreign or now != entry.before
        if _change_time(entry) >= began - _COARSE:
            return False
    return left.is_back(_PATIENCE, foreign=foreign)


def _change_time(entry: Entry) -> float:
    """The time of a file's last change, or of its removal (seconds since the epoch)."""
    try:
        return os.lstat(entry.agent).st_ctime
    except OSError:
        pass
    try:
        return os.stat(os.path.dirname(entry.agent)).st_mtime
    except OSError:
        return 0.0


def give_up_waiting(ctx: Context) -> Recovered:
    """Undo a change for which nobody restarted the runtime, so that no runtime has seen it. Raises
    RollbackFailed."""
    journal = ctx.store.journal()
    if journal is None:
        return Recovered()
    Transaction(ctx, journal, recovering=True).undo_files()
    return Recovered("undone", journal.barrier is not None)


def _has_restarted(left: Transaction) -> bool:
    """May the runtime have read the new files, because it is another process or down?

    If a restart was under way, this waits for the new process, and for a while also for the end
    of the old one, which answers until it has tidied up. A process that could not be seen before
    and cannot be seen now is taken for the old one, because only this agent would have restarted
    it.
    """
    if not left.in_this_boot:
        return True
    ctx, journal = left.ctx, left.journal
    if journal.restart is None:
        return False
    began = ctx.clock()
    end = began + ctx.settings.proof_timeout
    while True:
        try:
            if ctx.identity(left.endpoint) != journal.process:
                return True
            if journal.stage != "restarted" or ctx.clock() >= min(end, began + _DYING):
                return False
        except Unreachable:
            if journal.stage == "prepared":
                return False  # it went down by itself
            if journal.stage == "written" or ctx.clock() >= end or ctx.given_up(left.endpoint):
                return True
        ctx.sleep(_PAUSE)
