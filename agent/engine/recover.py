"""Finishing or undoing what an earlier run left.

Invariant: after it there is no journal, except one that waits for somebody else's restart: a
change that the runtime proves is committed, every other one is undone (DESIGN section 5).
"""

from __future__ import annotations

from agent.engine import change, restart, transaction
from agent.engine.context import Context
from agent.engine.proof import Identity, NotProven
from agent.engine.state import Journal
from agent.errors import Unreachable

_PAUSE = 0.1  # seconds between two looks at a socket


def recover(ctx: Context) -> str | None:
    """Deal with an unfinished change; returns what became of it: committed, undone or
    awaiting-restart; None where there was none.

    Raises RollbackFailed where it can be neither finished nor undone.
    """
    journal = ctx.store.journal()
    if journal is None:
        return None
    ctx.log("unfinished change found", purpose=journal.purpose, stage=journal.stage)
    restarted = _has_restarted(ctx, journal)
    if not restarted:
        if journal.stage == "awaiting-restart" and transaction.is_written(journal):
            return "awaiting-restart"
        return _undo(ctx, journal)
    if transaction.is_written(journal):
        try:
            change.prove_change(ctx, journal)
        except NotProven as error:
            ctx.log("change not proven", reason=str(error))
            ctx.store.remember_failure(journal.fingerprint, str(error))
        else:
            change.commit(ctx, journal)
            return "committed"
    way = restart.resume(*journal.restart, ctx.host) if journal.restart else None
    change.undo_and_prove(ctx, journal, way)
    return "undone"


def give_up_waiting(ctx: Context) -> str:
    """Undo a change whose restart never came; no runtime has seen it. Raises RollbackFailed."""
    journal = ctx.store.journal()
    return _undo(ctx, journal) if journal else "undone"


def _undo(ctx: Context, journal: Journal) -> str:
    change.undo_and_prove(ctx, journal, None)
    return "undone"


def _has_restarted(ctx: Context, journal: Journal) -> bool:
    """Can the runtime have seen the new files: is it another process than before, or down?

    Where a restart was under way, the new process is waited for.
    """
    if journal.boot_id != ctx.boot_id:
        return True
    if journal.restart is None:
        return False
    end = ctx.clock() + ctx.settings.proof_timeout
    while True:
        found: Identity = None
        try:
            found = ctx.identity(change.endpoint(journal))
        except Unreachable:
            if journal.stage in ("prepared", "written") or ctx.clock() >= end:
                return journal.stage != "prepared"
        if found is not None:
            return found != journal.process
        ctx.sleep(_PAUSE)
