"""A change of files that can be undone at every moment.

Invariant: at any instant each file is as before or as after, the journal says which files are
meant, and the original of each lies beside it under a name that no reader takes; undoing is a
rename. A file that somebody else changed in the meantime is left alone and reported.

    prepare ─► write ─► (restart, proof) ─► commit
                 └──────────────┴─────────► undo
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from agent.errors import Refused, reason
from agent.host import files
from agent.host.files import Change, FileState
from agent.runtimes import key_ownership
from agent.state.store import Entry, Journal, Memory, Original, Store, digest_of
from agent.toml import edit as tomledit

_NOT_OURS = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)


def entries(store: Store, changes: tuple[Change, ...], memory: Memory) -> tuple[Entry, ...]:
    """The ledger of a change; originals are durable in the store when this returns.

    A file that goes takes along the directories that were made for it.
    """
    seen: set[str] = set()
    result = []
    for change in changes:
        state = change.before or change.after or FileState(b"")
        if change.before:
            store.keep_original(change.before.data)
        missing = set(files.missing_directories(os.path.dirname(change.path.agent)))
        made = len(missing - seen)
        seen |= missing
        if change.after is None and change.path.host in memory.files:
            made = memory.files[change.path.host].made
        result.append(
            Entry(
                host=change.path.host,
                agent=change.path.agent,
                before=change.before.digest if change.before else None,
                after=change.after.digest if change.after else None,
                mode=state.mode,
                uid=state.uid,
                gid=state.gid,
                made=made,
                outside=change.outside.host if change.outside else None,
                outside_agent=change.outside.agent if change.outside else None,
                keys=key_ownership.changed(
                    change.before.data if change.before else None,
                    change.after.data if change.after else None,
                    change.path.host,
                ),
                text=_text(change, memory.files.get(change.path.host)),
            )
        )
    return tuple(result)


def _text(change: Change, known: Original | None) -> str | None:
    """What is written, of a file that we made: where somebody garbles it, and the runtime cannot
    start on it, this is all that is known of it."""
    made = known.digest is None if known else change.before is None
    name = change.path.host
    return tomledit.decoded(change.after.data, name) if change.after and made else None


def reserve(changes: tuple[Change, ...], journal: Journal) -> None:
    """Put the originals beside their files, with everything that a rename needs. Raises Refused.

    Those that must not lie there wait outside. Where that is not ours to write, the store has them.
    """
    for change, entry in zip(changes, journal.entries, strict=True):
        if change.before is not None:
            try:
                files.discard(entry.undo)
                files.stage(entry.undo, change.before, os.path.basename(entry.undo))
                files.sync_directory(os.path.dirname(entry.undo))
            except OSError as error:
                if entry.outside is None or error.errno not in _NOT_OURS:
                    raise _cannot_write(entry, error) from error


def write(changes: tuple[Change, ...], journal: Journal, begun: set[str]) -> None:
    """Make the change. Raises Refused where a file is no longer what the plan saw, or cannot be
    written; what was written until then is for `undo`, and is in `begun` (host paths)."""
    for change, entry in zip(changes, journal.entries, strict=True):
        if digest_of(entry.agent, entry.host) != entry.before:
            raise Refused(
                f"cannot write {entry.host}: somebody changed it in the meantime; try again"
            )
        begun.add(entry.host)
        try:
            if change.after is None:
                files.remove(entry.agent)
            else:
                files.make_directories(os.path.dirname(entry.agent))
                _put(entry, change.after, fresh=entry.before is None)
        except OSError as error:
            raise _cannot_write(entry, error) from error


def _put(entry: Entry, state: FileState, *, fresh: bool) -> None:
    """The file as it should be, whole at every moment. Raises OSError or Refused."""
    _discard(entry.new)
    new = os.path.basename(entry.new)
    if entry.outside is None:
        files.write(entry.agent, state, new)
    else:
        files.place(entry.agent, state, fresh=fresh, transient=new, outside=entry.unfinished)


def _cannot_write(entry: Entry, error: OSError) -> Refused:
    return Refused(f"cannot write {entry.host}: {reason(error)}")


@dataclass(frozen=True, slots=True)
class Undone:
    """What could not be undone: files that were `foreign` by then and stay as somebody left them
    (host paths), and, in words, files on which it `failed`, to be tried again."""

    foreign: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    def __str__(self) -> str:
        """For a message."""
        left = (
            f"{host}: somebody else changed it since; it was left alone" for host in self.foreign
        )
        return "; ".join((*left, *self.failed))


def undo(store: Store, journal: Journal, begun: Collection[str] | None = None) -> Undone:
    """Bring every file back to what it was, as far as that goes; what fails is tried twice.

    `begun`: files that can have been written (host paths), None where that is not known. Another
    one that is not as it was is no failure: it was somebody else's change, and we did not touch it.
    """
    undone = _undo(store, journal, begun)
    return _undo(store, journal, begun) if undone.failed else undone


def _undo(store: Store, journal: Journal, begun: Collection[str] | None) -> Undone:
    foreign, failed = [], []
    for entry in reversed(journal.entries):
        try:
            if not _undo_one(store, entry) and (begun is None or entry.host in begun):
                foreign.append(entry.host)
        except (OSError, Refused) as error:
            text = reason(error) if isinstance(error, OSError) else error.message
            failed.append(f"{entry.host}: {text}")
    return Undone(tuple(foreign), tuple(failed))


def _discard(path: str) -> None:
    if os.path.lexists(path):  # looked at first: unlink fails on a read-only disk
        files.discard(path)


def _undo_one(store: Store, entry: Entry) -> bool:
    """False where the file is somebody else's by now."""
    now = digest_of(entry.agent, entry.host)
    _discard(entry.new)
    if entry.unfinished != entry.new:
        _discard(entry.unfinished)
    if now == entry.before:
        _discard(entry.undo)
    elif now != entry.after:
        return False
    elif entry.before is None:
        files.remove(entry.agent)
    elif not _move_back(entry):
        files.make_directories(os.path.dirname(entry.agent))
        data = store.original_bytes(entry.before)
        state = FileState(data, entry.mode, entry.uid, entry.gid)
        _put(entry, state, fresh=entry.after is None)
    if entry.before is None:
        files.remove_directories(entry.made_directories)
    return True


def _move_back(entry: Entry) -> bool:
    """The original that waits in its place again; False where none does, or on another mount."""
    if not os.path.lexists(entry.undo):
        return False
    try:
        files.move(entry.undo, entry.agent)
    except OSError as error:
        if entry.outside is None or error.errno != errno.EXDEV:
            raise
        return False
    return True


def tidy(journal: Journal) -> tuple[str, ...]:
    """Remove the originals beside their files, and directories that nothing is in any more.

    Returns what could not be removed (agent paths). It has no effect on anybody.
    """
    left = []
    for entry in journal.entries:
        for path in dict.fromkeys((entry.undo, entry.new, entry.unfinished)):
            try:
                _discard(path)
            except OSError:
                left.append(path)
        if entry.after is None:
            try:
                files.remove_directories(entry.made_directories)
            except OSError:
                left.extend(entry.made_directories)
    return tuple(left)


def remembered(memory: Memory, journal_entries: tuple[Entry, ...]) -> Memory:
    """What to remember once these entries are in force: the first original stays for ever."""
    known: dict[str, Original] = dict(memory.files)
    for entry in journal_entries:
        old = known.get(entry.host)
        if old is None:
            known[entry.host] = Original(
                entry.before, entry.mode, entry.uid, entry.gid, entry.after,
                made=entry.made, keys=entry.keys, text=entry.text,
            )  # fmt: skip
            continue
        edited = old.edited or entry.before not in (old.written, old.digest)
        known[entry.host] = replace(
            old, written=entry.after, edited=edited, made=old.made or entry.made,
            keys=key_ownership.merged(old.keys, entry.keys), text=entry.text,
        )  # fmt: skip
    return replace(memory, files=_without_restored(known))


def _without_restored(known: Mapping[str, Original]) -> dict[str, Original]:
    """Files that are back at their original are nothing to remember."""
    return {host: item for host, item in known.items() if item.written != item.digest}
