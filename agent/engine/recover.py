"""Finishing or undoing what an earlier run left.

Invariant: after it there is no journal, except one that waits for somebody else's restart: a
change that the runtime proves is committed, every other one is undone (DESIGN section 5).
"""

from __future__ import annotations

from agent.data import dataclass
from agent.engine import change, deadman, restart, transaction
from agent.engine.context import Context
from agent.engine.proof import NotProven
from agent.engine.state import TIDYING, Journal
from agent.errors import Unreachable

_PAUSE = 0.1  # seconds between two looks at a socket
_DYING = 3.0  # seconds that a runtime which was told to end may still answer


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of an unfinished change: committed, undone or awaiting-restart; None where there
    was none. `barrier`: `toolkit-ready` was there before it."""

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
        change.tidy(ctx, lambda: change.close(ctx, journal))
        return Recovered()
    ctx.log("unfinished change found", purpose=journal.purpose, stage=journal.stage)
    barrier = journal.barrier is not None and journal.boot_id == ctx.boot_id
    way = restart.resume(*journal.restart, ctx.host) if journal.restart else None
    if deadman.has_fired(ctx, journal):
        ctx.log("the switch on the host has fired")
        _remember(ctx, journal, deadman.FIRED)
        change.undo_and_prove(ctx, journal, way, restarted=True)
        return Recovered("undone", barrier)
    if not _has_restarted(ctx, journal):
        if journal.stage == "awaiting-restart" and transaction.is_written(journal):
            return Recovered("awaiting-restart", barrier)
        told = journal.stage == "restarted"  # it is still there, and may be about to end
        change.undo_and_prove(ctx, journal, way if told else None, told=told)
        return Recovered("undone", barrier)
    if transaction.is_written(journal):
        try:
            change.prove_change(ctx, journal)
            deadman.claim(ctx, journal)
        except NotProven as error:
            ctx.log("change not proven", reason=str(error))
            _remember(ctx, journal, str(error))
        else:
            change.commit(ctx, journal)
            return Recovered("committed", barrier)
    change.undo_and_prove(ctx, journal, way)
    return Recovered("undone", barrier)


def _remember(ctx: Context, journal: Journal, why: str) -> None:
    change.tidy(ctx, lambda: ctx.store.remember_failure(journal.fingerprint, why))


def give_up_waiting(ctx: Context) -> Recovered:
    """Undo a change whose restart never came; no runtime has seen it. Raises RollbackFailed."""
    journal = ctx.store.journal()
    if journal is None:
        return Recovered()
    change.undo_and_prove(ctx, journal, None)
    return Recovered("undone", journal.barrier is not None)


def _has_restarted(ctx: Context, journal: Journal) -> bool:
    """Can the runtime have seen the new files: is it another process than before, or down?

    Where a restart was under way, the new process is waited for, and so is the end of the old one,
    for a while: it answers until it has tidied up. A process that cannot be seen,
    then and now, is taken for the old one: nobody but us would have restarted it on our files.
    """
    if journal.boot_id != ctx.boot_id:
        return True
    if journal.restart is None:
        return False
    where, began = change.endpoint(ctx, journal), ctx.clock()
    end = began + ctx.settings.proof_timeout
    while True:
        try:
            if ctx.identity(where) != journal.process:
                return True
            if journal.stage != "restarted" or ctx.clock() >= min(end, began + _DYING):
                return False
        except Unreachable:
            if journal.stage == "prepared":
                return False  # it went down by itself
            if journal.stage == "written" or ctx.clock() >= end or ctx.hopeless(where):
                return True
        ctx.sleep(_PAUSE)
