"""Installs and removes the toolkit's directory (`live`).

Invariant: the directory is complete at any moment, old or new, because a new one is built beside it
and replaces it in one step. The next run removes the remains of an interrupted run, or completes
its last step. A directory that we did not make is kept beside ours until `remove` restores it. All
paths are resolved agent paths. Every function raises OSError, or Refused if our list of installed
files cannot be read.
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

BEFORE = ".toolkit.before"  # the former directory, which was not ours
# EXDEV: the directory, or part of it, is in a lower layer of an overlay (an image of the node).
_NO_EXCHANGE = (
    errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EBUSY, errno.EOPNOTSUPP, errno.EXDEV,
)  # fmt: skip


def put(live: str, desired: Tree) -> None:
    """Give the directory `live` the desired files. Unchanged files are not written again."""
    missing = files.missing_directories(os.path.dirname(live))
    installed = tree.read_list(live) or InstalledList(made=len(missing))
    if missing:
        _put_first(missing[0], live, desired, installed)
        return
    new = trees.draft_name(live)
    try:
        _build(new, live, desired, installed)
        _take_place(new, live, installed, desired)
    except Exception:
        with contextlib.suppress(OSError, Refused):
            if os.path.isdir(new) and tree.read_list(new) is not None:
                _discard(new, live)
        raise


def _put_first(top: str, live: str, desired: Tree, installed: InstalledList) -> None:
    """As `put`, if parents of `live` are missing; `top` is the outermost of them. All are made
    under a temporary name and moved into place together, so that an interrupted installation leaves
    none."""
    draft = trees.draft_name(top)
    new = draft + live[len(top) :]
    try:
        files.make_directories(os.path.dirname(new))
        _build(new, live, desired, installed)
        files.move(draft, top)
    except Exception:
        with contextlib.suppress(OSError):
            trees.remove(draft)
        raise


def _build(new: str, live: str, desired: Tree, installed: InstalledList) -> None:
    """Build the new directory completely. An empty list is written first, because it marks the
    directory as ours; the full list is written last."""
    files.make_directory(new)
    _write_list(new, InstalledList())
    for name in files.names(live) if os.path.isdir(live) else ():
        if tree.is_foreign(name, (*installed.names, *desired)):
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
            copies[name] = _put_copy(f"{live}/{name}", path, entry, installed.copies.get(name))
    for directory in sorted({os.path.dirname(f"{new}/{name}") for name in desired}, reverse=True):
        files.sync_directory(directory)
    others = tuple(name for name in desired if name not in copies)
    _write_list(new, InstalledList(copies, others, installed.made))


def _write_list(directory: str, installed: InstalledList) -> None:
    files.write(f"{directory}/{LIST}", files.new_state(tree.to_bytes(installed)))


def _put_copy(old: str, path: str, entry: Copy, record: CopyRecord | None) -> CopyRecord:
    source = os.stat(entry.source, follow_symlinks=False)
    if record is not None and tree.is_unchanged(old, entry, record):
        digest, status = record.digest, trees.hard_link(old, path)
    else:
        digest, status = trees.copy(entry.source, path, entry.mode)
    return CopyRecord(digest, status.st_size, status.st_mtime_ns, tree.signature(source))


def _take_place(new: str, live: str, installed: InstalledList, desired: Tree) -> None:
    if not os.path.lexists(live):
        files.move(new, live)
        return
    try:
        trees.exchange(new, live)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        _replace_one_by_one(new, live, installed, desired)
    files.sync_directory(os.path.dirname(live))
    _retire(new, live)


def _replace_one_by_one(new: str, live: str, installed: InstalledList, desired: Tree) -> None:
    """Replace each file in one step, for a file system that cannot exchange two directories.
    Programs come before the scripts that call them. A directory that is not ours is kept."""
    if tree.read_list(live) is None:
        copy = trees.draft_name(live)
        trees.hard_link_tree(live, copy)
        _keep(copy, live)
    order = (Copy, Link, Text)
    for name in sorted(desired, key=lambda name: (order.index(type(desired[name])), name)):
        files.make_directories(os.path.dirname(f"{live}/{name}"))
        files.move(f"{new}/{name}", f"{live}/{name}")
    for name in installed.names:
        if name not in desired:
            files.remove(f"{live}/{name}")
    _write_list(live, tree.read_list(new) or InstalledList())


def _retire(old: str, live: str) -> None:
    """Remove a replaced directory if it is ours, else keep it as BEFORE."""
    files.sweep(old, (LIST,))  # a temporary file of an interrupted build
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
    """Remove a directory. If this is interrupted, the next run recognizes the directory by our
    list, or after that is gone by its name."""
    if tree.read_list(path) is None:
        _write_list(path, InstalledList())
    if os.path.basename(path) == BEFORE:
        old, path = path, trees.draft_name(live)
        files.move(old, path)
    trees.remove(path, LIST)


def tidy(live: str) -> None:
    """Finish or undo the last step of an interrupted run."""
    for path in trees.unfinished_drafts(live):
        _retire(path, live)
    before = _before(live)
    if os.path.isdir(before) and tree.read_list(before) is not None:
        _discard(before, live)  # its content has been restored
    for top in files.missing_directories(os.path.dirname(live))[:1]:
        for path in trees.unfinished_drafts(top):
            trees.remove(path)


def names_after_removal(live: str) -> list[str]:
    """Names at the top of the directory after `remove`."""
    before, installed = _before(live), tree.read_list(live)
    if installed is None or not os.path.isdir(live):
        return []
    return [*_foreign(live, installed), *(files.names(before) if os.path.isdir(before) else ())]


def _foreign(live: str, installed: InstalledList) -> list[str]:
    return [name for name in files.names(live) if tree.is_foreign(name, installed.names)]


def remove(live: str) -> bool:
    """Remove the installed files, and restore the former directory. Returns whether anything was
    removed."""
    tidy(live)
    installed = tree.read_list(live)
    if installed is None:
        return False
    before = _before(live)
    if os.path.isdir(before):
        _restore(before, live, installed)
    elif _foreign(live, installed):
        _remove_names(live, (*installed.names, LIST))
    else:
        _remove_whole(live, installed)
    return True


def _remove_whole(live: str, installed: InstalledList) -> None:
    """Remove a directory that has only our files, and the parents that we made."""
    top = _outermost_made(live, installed)
    old = trees.draft_name(top)
    try:
        files.move(top, old)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        _remove_names(live, (*installed.names, LIST))
        files.remove_directories((live,))
        return
    if top == live:
        _discard(old, live)
    else:
        trees.remove(old)


def _restore(before: str, live: str, installed: InstalledList) -> None:
    for name in _foreign(live, installed):
        _keep_foreign(f"{live}/{name}", f"{before}/{name}")
    try:
        trees.exchange(before, live)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        _restore_one_by_one(before, live, installed)
    else:
        files.sync_directory(os.path.dirname(live))
    _discard(before, live)


def _restore_one_by_one(before: str, live: str, installed: InstalledList) -> None:
    """Restore each file in one step. Then our list moves into the other directory, which marks that
    directory for removal."""
    copy = trees.draft_name(live)
    files.make_directory(copy)
    _write_list(copy, InstalledList())
    stays = _foreign(live, installed)
    for name in files.names(before):
        if name not in stays:
            trees.hard_link_tree(f"{before}/{name}", f"{copy}/{name}")
    restored = [name for name in _files(copy) if name != LIST]
    for name in restored:
        files.make_directories(os.path.dirname(f"{live}/{name}"))
        files.move(f"{copy}/{name}", f"{live}/{name}")
    _remove_names(live, [name for name in installed.names if name not in restored])
    files.move(f"{live}/{LIST}", f"{before}/{LIST}")
    _discard(copy, live)


def _files(directory: str, below: str = "") -> Iterator[str]:
    """Paths below a directory, without directories."""
    for name in files.names(f"{directory}/{below}"):
        path = os.path.join(below, name)
        whole = f"{directory}/{path}"
        if os.path.isdir(whole) and not os.path.islink(whole):
            yield from _files(directory, path)
        else:
            yield path


def _keep_foreign(path: str, target: str) -> None:
    """Keep a file of another program, or one that it changed, in the directory that replaces
    ours."""
    if os.path.lexists(target):
        if trees.are_same(path, target):
            return
        is_directory = os.path.isdir(target) and not os.path.islink(target)
        trees.remove(target) if is_directory else files.remove(target)
    trees.hard_link_tree(path, target)


def _remove_names(live: str, names: Iterable[str]) -> None:
    """Remove these files, and the directories below `live` that become empty."""
    names = tuple(names)
    for name in names:
        files.remove(f"{live}/{name}")
    inside = [os.path.dirname(name) for name in names if "/" in name]
    above = {f"{live}/{path}" for name in inside for path in (name, os.path.dirname(name)) if path}
    files.remove_directories(tuple(above))


def _outermost_made(live: str, installed: InstalledList) -> str:
    """The outermost parent that we made and that has no other entry; else `live`."""
    top = live
    for _ in range(installed.made):
        above = os.path.dirname(top)
        if files.names(above) != [os.path.basename(top)]:
            break
        top = above
    return top
