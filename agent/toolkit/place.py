"""Installs and removes the toolkit's directory (`live`).

Invariant: the directory is complete at any moment, old or new, because a new one is built beside it
and replaces it in one step. The next run removes what an interrupted run leaves, or moves it to its
place. A directory that we did not make is kept beside ours until `remove` restores it. All paths
are resolved agent paths; every function raises OSError, or Refused for a list of ours that cannot
be read.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator

from agent.errors import Refused
from agent.host import files, trees
from agent.toolkit import tree
from agent.toolkit.tree import LIST, Copy, CopyRecord, InstalledList, Link, Text, Tree

BEFORE = ".toolkit.before"  # the directory that was there before ours
# EXDEV: the directory, or part of it, is in a lower layer of an overlay (an image of the node).
_NO_EXCHANGE = (
    errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EBUSY, errno.EOPNOTSUPP, errno.EXDEV,
)  # fmt: skip


def put(live: str, desired: Tree) -> None:
    """Make the directory `live` have the desired files. Unchanged files are not written again."""
    missing = files.missing_directories(os.path.dirname(live))
    kept = tree.read_list(live) or InstalledList(made=len(missing))
    if missing:
        _put_first(missing[0], live, desired, kept)
        return
    new = trees.draft_name(live)
    try:
        _build(new, live, desired, kept)
        _take_place(new, live, kept, desired)
    except Exception:
        with contextlib.suppress(OSError, Refused):
            if os.path.isdir(new) and tree.read_list(new) is not None:
                _discard(new, live)
        raise


def _put_first(top: str, live: str, desired: Tree, kept: InstalledList) -> None:
    """As `put`, if directories above are missing, `top` being the first of them. They are moved
    into place together with it, so that an interrupted install leaves none."""
    draft = trees.draft_name(top)
    new = draft + live[len(top) :]
    try:
        files.make_directories(os.path.dirname(new))
        _build(new, live, desired, kept)
        files.move(draft, top)
    except Exception:
        with contextlib.suppress(OSError):
            trees.remove(draft)
        raise


def _build(new: str, live: str, desired: Tree, kept: InstalledList) -> None:
    """Build the whole new directory. An empty list is written first, because it marks the directory
    as ours; the full one is written last."""
    files.make_directory(new)
    _write_list(new, InstalledList())
    for name in files.names(live) if os.path.isdir(live) else ():
        if tree.is_foreign(name, (*kept.names, *desired)):
            trees.hard_link_tree(f"{live}/{name}", f"{new}/{name}")
    copies: dict[str, CopyRecord] = {}
    for name, entry in desired.items():
        path = f"{new}/{name}"
        files.make_directories(os.path.dirname(path))
        if isinstance(entry, Link):
            trees.make_symlink(entry.target, path)
        elif isinstance(entry, Text):
            if tree.is_text(f"{live}/{name}", entry):
                trees.hard_link(f"{live}/{name}", path)
            else:
                files.write(path, files.new_state(entry.data, entry.mode))
        else:
            copies[name] = _put_copy(f"{live}/{name}", path, entry, kept.copies.get(name))
    for directory in sorted({os.path.dirname(f"{new}/{name}") for name in desired}, reverse=True):
        files.sync_directory(directory)
    others = tuple(name for name in desired if name not in copies)
    _write_list(new, InstalledList(copies, others, kept.made))


def _write_list(directory: str, found: InstalledList) -> None:
    files.write(f"{directory}/{LIST}", files.new_state(tree.to_bytes(found)))


def _put_copy(old: str, path: str, entry: Copy, kept: CopyRecord | None) -> CopyRecord:
    source = os.stat(entry.source, follow_symlinks=False)
    if kept is not None and tree.unchanged(old, entry, kept):
        digest, here = kept.digest, trees.hard_link(old, path)
    else:
        digest, here = trees.copy(entry.source, path, entry.mode)
    return CopyRecord(digest, here.st_size, here.st_mtime_ns, tree.signature(source))


def _take_place(new: str, live: str, kept: InstalledList, desired: Tree) -> None:
    if not os.path.lexists(live):
        files.move(new, live)
        return
    try:
        trees.exchange(new, live)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        _one_by_one(new, live, kept, desired)
    files.sync_directory(os.path.dirname(live))
    _retire(new, live)


def _one_by_one(new: str, live: str, kept: InstalledList, desired: Tree) -> None:
    """Replace each file in one step, if the file system cannot exchange two directories:
    programs before the scripts that call them. A directory that is not ours is kept."""
    if tree.read_list(live) is None:
        copy = trees.draft_name(live)
        trees.hard_link_tree(live, copy)
        _keep(copy, live)
    order = (Copy, Link, Text)
    for name in sorted(desired, key=lambda name: (order.index(type(desired[name])), name)):
        files.make_directories(os.path.dirname(f"{live}/{name}"))
        files.move(f"{new}/{name}", f"{live}/{name}")
    for name in kept.names:
        if name not in desired:
            files.remove(f"{live}/{name}")
    _write_list(live, tree.read_list(new) or InstalledList())


def _retire(old: str, live: str) -> None:
    """Remove a replaced directory of ours, and keep any other one."""
    files.sweep(old, (LIST,))  # its build may have stopped at the list
    if tree.read_list(old) is None and files.names(old):
        _keep(old, live)
    else:
        _discard(old, live)


def _keep(old: str, live: str) -> None:
    before = _before(live)
    if os.path.isdir(before):
        _discard(before, live)
    files.move(old, before)


def _before(live: str) -> str:
    return os.path.join(os.path.dirname(live), BEFORE)


def _discard(path: str, live: str) -> None:
    """Remove a directory. If we are killed, the next run knows it by our list, and by its name when
    the list is gone."""
    if tree.read_list(path) is None:
        _write_list(path, InstalledList())
    if os.path.basename(path) == BEFORE:
        old, path = path, trees.draft_name(live)
        files.move(old, path)
    trees.remove(path, LIST)


def tidy(live: str) -> None:
    """Finish what an interrupted run began."""
    for path in trees.unfinished(live):
        _retire(path, live)
    before = _before(live)
    if os.path.isdir(before) and tree.read_list(before) is not None:
        _discard(before, live)  # it has been restored
    for top in files.missing_directories(os.path.dirname(live))[:1]:
        for path in trees.unfinished(top):
            trees.remove(path)


def names_after_removal(live: str) -> list[str]:
    """Names at the top of the directory that `remove` leaves."""
    before, kept = _before(live), tree.read_list(live)
    if kept is None or not os.path.isdir(live):
        return []
    return [*_foreign(live, kept), *(files.names(before) if os.path.isdir(before) else ())]


def _foreign(live: str, kept: InstalledList) -> list[str]:
    return [name for name in files.names(live) if tree.is_foreign(name, kept.names)]


def remove(live: str) -> bool:
    """Remove what was installed, and restore what was there before. Was there anything to
    remove?"""
    tidy(live)
    kept = tree.read_list(live)
    if kept is None:
        return False
    before = _before(live)
    if os.path.isdir(before):
        _restore(before, live, kept)
    elif _foreign(live, kept):
        _remove_names(live, (*kept.names, LIST))
    else:
        _remove_whole(live, kept)
    return True


def _remove_whole(live: str, kept: InstalledList) -> None:
    """Remove a directory in which all files are ours, with the directories above that we made."""
    top = _made(live, kept)
    old = trees.draft_name(top)
    try:
        files.move(top, old)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        _remove_names(live, (*kept.names, LIST))
        files.remove_directories((live,))
        return
    if top == live:
        _discard(old, live)
    else:
        trees.remove(old)


def _restore(before: str, live: str, kept: InstalledList) -> None:
    for name in _foreign(live, kept):
        _carry(f"{live}/{name}", f"{before}/{name}")
    try:
        trees.exchange(before, live)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        _restore_one_by_one(before, live, kept)
    else:
        files.sync_directory(os.path.dirname(live))
    _discard(before, live)


def _restore_one_by_one(before: str, live: str, kept: InstalledList) -> None:
    """Restore each file in one step. Then the list moves to the other directory, which marks that
    one as to be removed."""
    copy = trees.draft_name(live)
    files.make_directory(copy)
    _write_list(copy, InstalledList())
    stays = _foreign(live, kept)
    for name in files.names(before):
        if name not in stays:
            trees.hard_link_tree(f"{before}/{name}", f"{copy}/{name}")
    restored = [name for name in _files(copy) if name != LIST]
    for name in restored:
        files.make_directories(os.path.dirname(f"{live}/{name}"))
        files.move(f"{copy}/{name}", f"{live}/{name}")
    _remove_names(live, [name for name in kept.names if name not in restored])
    files.move(f"{live}/{LIST}", f"{before}/{LIST}")
    _discard(copy, live)


def _files(directory: str, below: str = "") -> Iterator[str]:
    """Paths of everything other than directories."""
    for name in files.names(f"{directory}/{below}"):
        path = os.path.join(below, name)
        whole = f"{directory}/{path}"
        if os.path.isdir(whole) and not os.path.islink(whole):
            yield from _files(directory, path)
        else:
            yield path


def _carry(path: str, target: str) -> None:
    """Keep a file that another program put, or changed, among our files."""
    if os.path.lexists(target):
        if trees.are_same(path, target):
            return
        is_directory = os.path.isdir(target) and not os.path.islink(target)
        trees.remove(target) if is_directory else files.remove(target)
    trees.hard_link_tree(path, target)


def _remove_names(live: str, names: Iterable[str]) -> None:
    """Remove files, and the directories below `live` that are empty then."""
    names = tuple(names)
    for name in names:
        files.remove(f"{live}/{name}")
    inside = [os.path.dirname(name) for name in names if "/" in name]
    above = {f"{live}/{path}" for name in inside for path in (name, os.path.dirname(name)) if path}
    files.remove_directories(tuple(above))


def _made(live: str, kept: InstalledList) -> str:
    """The outermost directory that we made and that has no other entry."""
    top = live
    for _ in range(kept.made):
        above = os.path.dirname(top)
        if files.names(above) != [os.path.basename(top)]:
            break
        top = above
    return top
