"""Finishing or undoing what an earlier run left.

Invariant: after it there is no journal, except one that waits for somebody else's restart: a
change that the runtime proves is committed, every other one is undone (DESIGN section 5).
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.engine import change, deadman, restart, transaction
from agent.engine.context import Context
from agent.engine.proof import NotProven
from agent.engine.state import Journal
from agent.errors import Unreachable

_PAUSE = 0.1  # seconds between two looks at a socket


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
    ctx.log("unfinished change found", purpose=journal.purpose, stage=journal.stage)
    barrier = journal.barrier is not None
    way = restart.resume(*journal.restart, ctx.host) if journal.restart else None
    if deadman.has_fired(ctx, journal):
        ctx.log("the switch on the host has fired")
        ctx.store.remember_failure(journal.fingerprint, deadman.FIRED)
        change.undo_and_prove(ctx, journal, way, restarted=True)
        return Recovered("undone", barrier)
    if not _has_restarted(ctx, journal):
        if journal.stage == "awaiting-restart" and transaction.is_written(journal):
            return Recovered("awaiting-restart", barrier)
        change.undo_and_prove(ctx, journal, None)
        return Recovered("undone", barrier)
    if transaction.is_written(journal):
        try:
            change.prove_change(ctx, journal)
            deadman.claim(ctx, journal)
        except NotProven as error:
            ctx.log("change not proven", reason=str(error))
            ctx.store.remember_failure(journal.fingerprint, str(error))
        else:
            change.commit(ctx, journal)
            return Recovered("committed", barrier)
    change.undo_and_prove(ctx, journal, way)
    return Recovered("undone", barrier)


def give_up_waiting(ctx: Context) -> Recovered:
    """Undo a change whose restart never came; no runtime has seen it. Raises RollbackFailed."""
    journal = ctx.store.journal()
    if journal is None:
        return Recovered()
    change.undo_and_prove(ctx, journal, None)
    return Recovered("undone", journal.barrier is not None)


def _has_restarted(ctx: Context, journal: Journal) -> bool:
    """Can the runtime have seen the new files: is it another process than before, or down?

    Where a restart was under way, the new process is waited for. A process that cannot be seen,
    then and now, is taken for the old one: nobody but us would have restarted it on our files.
    """
    if journal.boot_id != ctx.boot_id:
        return True
    if journal.restart is None:
        return False
    where, end = change.endpoint(ctx, journal), ctx.clock() + ctx.settings.proof_timeout
    while True:
        try:
            return ctx.identity(where) != journal.process
        except Unreachable:
            if journal.stage == "prepared":
                return False  # it went down by itself
            if journal.stage == "written" or ctx.clock() >= end or ctx.hopeless(where):
                return True
        ctx.sleep(_PAUSE)
