"""A change of files that can be undone at every moment.

Invariant: at any instant each file has its old or its new content. The journal names the files. The
original of each file is beside the file, under a name that no runtime loads, so that an undo is a
rename. A file that somebody else changed in the meantime is left alone and reported.

    prepare ─► write ─► (restart, proof) ─► commit
                 └──────────────┴─────────► undo
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from dataclasses import dataclass, replace

from agent.errors import Refused, reason
from agent.host import files
from agent.host.files import Change, FileState
from agent.runtimes import key_ownership
from agent.state.journal import Entry, Journal, digest_of
from agent.state.store import Memory, Original, Store
from agent.toml import document

_NOT_OURS = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)


def entries(store: Store, changes: tuple[Change, ...], memory: Memory) -> tuple[Entry, ...]:
    """The journal entries of a change. Also writes the originals to the store on disk. Raises
    Refused.

    An entry of a file that is removed has the number of directories that were made for the file, so
    that they are removed too.
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
                keys=key_ownership.changed_keys(
                    change.before.data if change.before else None,
                    change.after.data if change.after else None,
                    change.path.host,
                ),
                text=_text(change, memory.files.get(change.path.host)),
            )
        )
    return tuple(result)


def _text(change: Change, known: Original | None) -> str | None:
    """The new text of a file that we made, None for any other file. The journal keeps it for the
    repair of a file that somebody garbles later."""
    made = known.digest is None if known else change.before is None
    name = change.path.host
    return document.decoded(change.after.data, name) if change.after and made else None


def reserve(changes: tuple[Change, ...], journal: Journal) -> None:
    """Put the originals beside their files, ready for a rename. Raises Refused.

    If no other file may be in the file's directory (`outside`), the original is put there instead.
    If `outside` is not writable, only the store has the original.
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
    """Write the files of a change. Adds the host path of each file to `begun` before its write, for
    `undo`. Raises Refused if a file has changed since the plan, or cannot be written."""
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
    """Write the file of an entry in one step. Raises OSError or Refused."""
    _discard(entry.new)
    new = os.path.basename(entry.new)
    if entry.outside is None:
        files.write(entry.agent, state, new)
    else:
        files.place(entry.agent, state, fresh=fresh, transient=new, outside=entry.unfinished)


def _cannot_write(entry: Entry, error: OSError) -> Refused:
    return Refused(f"cannot write {entry.host}: {reason(error)}")


@dataclass(frozen=True)
class UndoResult:
    """The result of an undo: the files that were not restored. `foreign` are the host paths of
    files that somebody else has changed; they are left alone. `failed` has the host path and the
    cause of each other file; their undo has to be repeated."""

    foreign: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The files with their causes, for a message."""
        foreign = (
            f"{host}: somebody else changed it since; it was left alone" for host in self.foreign
        )
        return "; ".join((*foreign, *self.failed))


def undo(store: Store, journal: Journal, begun: Collection[str] | None = None) -> UndoResult:
    """Restore every file of a change as far as possible, in two attempts. Never raises.

    `begun` are the host paths of the files that may have been written, None if that is not known.
    Any other file that differs from its original was changed by somebody else, and is no failure.
    """
    foreign: list[str] = []
    failed: list[str] = []
    for _ in range(2):
        foreign, failed = [], []
        for entry in reversed(journal.entries):
            try:
                if not _undo_one(store, entry) and (begun is None or entry.host in begun):
                    foreign.append(entry.host)
            except (OSError, Refused) as error:
                text = reason(error) if isinstance(error, OSError) else error.message
                failed.append(f"{entry.host}: {text}")
        if not failed:
            break
    return UndoResult(tuple(foreign), tuple(failed))


def _discard(path: str) -> None:
    if os.path.lexists(path):  # because unlink of a missing file fails on a read-only disk
        files.discard(path)


def _undo_one(store: Store, entry: Entry) -> bool:
    """Restore one file. Returns false if somebody else has changed it. Raises OSError or
    Refused."""
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
    """Move the original that `reserve` put ready over the file. Returns false if it does not exist,
    or if it is on another mount."""
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
    """Remove the originals beside their files, temporary files and empty directories.

    Returns the agent paths that could not be removed. They have no effect on a runtime.
    """
    remains = []
    for entry in journal.entries:
        for path in dict.fromkeys((entry.undo, entry.new, entry.unfinished)):
            try:
                _discard(path)
            except OSError:
                remains.append(path)
        if entry.after is None:
            try:
                files.remove_directories(entry.made_directories)
            except OSError:
                remains.extend(entry.made_directories)
    return tuple(remains)


def remembered(memory: Memory, journal_entries: tuple[Entry, ...]) -> Memory:
    """The memory after a commit of these entries. The first original of a file is kept; a file that
    has its original content again is forgotten."""
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
            keys=key_ownership.merged_keys(old.keys, entry.keys), text=entry.text,
        )  # fmt: skip
    changed = {host: item for host, item in known.items() if item.written != item.digest}
    return replace(memory, files=changed)
