"""Putting the toolkit's directory in its place, and taking it away.

Invariant: the directory is whole at any moment, old or new: a new one is built beside it and takes
its place in one step. What an interrupted run leaves is removed, or put where it belongs, by the
next one. A directory of somebody else's is kept beside it until `remove` puts it back. All paths
are agent paths that were resolved; every function raises OSError, or Refused for a list of ours
that cannot be read.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator

from agent.errors import Refused
from agent.host import files, trees
from agent.toolkit import tree
from agent.toolkit.tree import LIST, Copy, Kept, Link, Listed, Text, Tree

BEFORE = ".toolkit.before"  # a directory that was there before ours
# EXDEV: an overlay has the directory, or part of it, from a layer below (an image of the node).
_NO_EXCHANGE = (
    errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EBUSY, errno.EOPNOTSUPP, errno.EXDEV,
)  # fmt: skip


def put(live: str, wanted: Tree) -> None:
    """Have the directory `live` be as wanted. What did not change is not written again."""
    missing = files.missing_directories(os.path.dirname(live))
    kept = tree.listed(live) or Listed(made=len(missing))
    if missing:
        _put_first(missing[0], live, wanted, kept)
        return
    new = trees.draft_name(live)
    try:
        _build(new, live, wanted, kept)
        _take_place(new, live, kept, wanted)
    except Exception:
        with contextlib.suppress(OSError, Refused):
            if os.path.isdir(new) and tree.listed(new) is not None:
                _discard(new, live)
        raise


def _put_first(top: str, live: str, wanted: Tree, kept: Listed) -> None:
    """The same where directories above are missing, `top` the first of them: they come along with
    it, so that none is left of an install that was interrupted."""
    draft = trees.draft_name(top)
    new = draft + live[len(top) :]
    try:
        files.make_directories(os.path.dirname(new))
        _build(new, live, wanted, kept)
        files.move(draft, top)
    except Exception:
        with contextlib.suppress(OSError):
            trees.remove(draft)
        raise


def _build(new: str, live: str, wanted: Tree, kept: Listed) -> None:
    """The whole new tree. Our list is in it first, so that it is known to be ours, and last."""
    files.make_directory(new)
    _write_list(new, Listed())
    for name in files.names(live) if os.path.isdir(live) else ():
        if tree.is_foreign(name, (*kept.names, *wanted)):
            trees.hard_link_tree(f"{live}/{name}", f"{new}/{name}")
    copies: dict[str, Kept] = {}
    for name, entry in wanted.items():
        path = f"{new}/{name}"
        files.make_directories(os.path.dirname(path))
        if isinstance(entry, Link):
            trees.make_symlink(entry.target, path)
        elif isinstance(entry, Text):
            _put_text(f"{live}/{name}", path, entry)
        else:
            copies[name] = _put_copy(f"{live}/{name}", path, entry, kept.copies.get(name))
    for directory in sorted({os.path.dirname(f"{new}/{name}") for name in wanted}, reverse=True):
        files.sync_directory(directory)
    others = tuple(name for name in wanted if name not in copies)
    _write_list(new, Listed(copies, others, kept.made))


def _write_list(directory: str, found: Listed) -> None:
    files.write(f"{directory}/{LIST}", files.new_state(tree.to_bytes(found)))


def _put_text(old: str, path: str, entry: Text) -> None:
    if tree.is_text(old, entry):
        trees.hard_link(old, path)
    else:
        files.write(path, files.new_state(entry.data, entry.mode))


def _put_copy(old: str, path: str, entry: Copy, kept: Kept | None) -> Kept:
    source = os.stat(entry.source, follow_symlinks=False)
    if kept is not None and tree.unchanged(old, entry, kept):
        digest, here = kept.digest, trees.hard_link(old, path)
    else:
        digest, here = trees.copy(entry.source, path, entry.mode)
    return Kept(digest, here.st_size, here.st_mtime_ns, tree.signature(source))


def _take_place(new: str, live: str, kept: Listed, wanted: Tree) -> None:
    if not os.path.lexists(live):
        files.move(new, live)
        return
    try:
        trees.exchange(new, live)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        _one_by_one(new, live, kept, wanted)
    files.sync_directory(os.path.dirname(live))
    _retire(new, live)


def _one_by_one(new: str, live: str, kept: Listed, wanted: Tree) -> None:
    """Where two directories cannot change places in one step, each file takes its own place: what
    is called before what calls it. What was there is kept, if it is not ours."""
    if tree.listed(live) is None:
        copy = trees.draft_name(live)
        trees.hard_link_tree(live, copy)
        _keep(copy, live)
    names = sorted(wanted, key=lambda name: _rank(name, wanted))
    for name in names:
        files.make_directories(os.path.dirname(f"{live}/{name}"))
        files.move(f"{new}/{name}", f"{live}/{name}")
    for name in kept.names:
        if name not in wanted:
            files.remove(f"{live}/{name}")
    _write_list(live, tree.listed(new) or Listed())


def _rank(name: str, wanted: Tree) -> tuple[bool, bool, str]:
    return isinstance(wanted[name], Text), isinstance(wanted[name], Link), name


def _retire(old: str, live: str) -> None:
    """A directory that is in use no more: ours goes, another one is kept."""
    files.sweep(old, (LIST,))  # of one that was hardly begun
    if tree.listed(old) is None and files.names(old):
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
    """Remove a directory. If we are killed it is known for what it is: by our list, and by its name
    when that has gone too."""
    if tree.listed(path) is None:
        _write_list(path, Listed())
    if os.path.basename(path) == BEFORE:
        old, path = path, trees.draft_name(live)
        files.move(old, path)
    trees.remove(path, LIST)


def tidy(live: str) -> None:
    """The end of what was interrupted."""
    for path in trees.unfinished(live):
        _retire(path, live)
    before = _before(live)
    if os.path.isdir(before) and tree.listed(before) is not None:
        _discard(before, live)  # it has been brought back
    for top in files.missing_directories(os.path.dirname(live))[:1]:
        for path in trees.unfinished(top):
            trees.remove(path)


def left(live: str) -> list[str]:
    """Names at the top of the directory that will be there after `remove`."""
    before, kept = _before(live), tree.listed(live)
    if kept is None or not os.path.isdir(live):
        return []
    return [*_foreign(live, kept), *(files.names(before) if os.path.isdir(before) else ())]


def _foreign(live: str, kept: Listed) -> list[str]:
    return [name for name in files.names(live) if tree.is_foreign(name, kept.names)]


def remove(live: str) -> bool:
    """Take away what was put there; what was there before comes back. Was there anything?"""
    tidy(live)
    kept = tree.listed(live)
    if kept is None:
        return False
    before = _before(live)
    if os.path.isdir(before):
        _bring_back(before, live, kept)
    elif _foreign(live, kept):
        _remove_ours(live, kept)
    else:
        _take_away(live, kept)
    return True


def _take_away(live: str, kept: Listed) -> None:
    """All of it is ours."""
    top = _made(live, kept)
    old = trees.draft_name(top)
    try:
        files.move(top, old)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        _remove_ours(live, kept)
        files.remove_directories((live,))
        return
    if top == live:
        _discard(old, live)
    else:
        trees.remove(old)


def _bring_back(before: str, live: str, kept: Listed) -> None:
    for name in _foreign(live, kept):
        _carry(f"{live}/{name}", f"{before}/{name}")
    try:
        trees.exchange(before, live)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        _bring_back_one_by_one(before, live, kept)
    else:
        files.sync_directory(os.path.dirname(live))
    _discard(before, live)


def _bring_back_one_by_one(before: str, live: str, kept: Listed) -> None:
    """Each file gets its own place again, and then the list is the other directory's in one step:
    that one is to go from there on."""
    copy = trees.draft_name(live)
    files.make_directory(copy)
    _write_list(copy, Listed())
    there = _foreign(live, kept)
    for name in files.names(before):
        if name not in there:
            trees.hard_link_tree(f"{before}/{name}", f"{copy}/{name}")
    theirs = [name for name in _files(copy) if name != LIST]
    for name in theirs:
        files.make_directories(os.path.dirname(f"{live}/{name}"))
        files.move(f"{copy}/{name}", f"{live}/{name}")
    _remove_names(live, [name for name in kept.names if name not in theirs])
    files.move(f"{live}/{LIST}", f"{before}/{LIST}")
    _discard(copy, live)


def _files(directory: str, below: str = "") -> Iterator[str]:
    """Paths of all that is no directory."""
    for name in files.names(f"{directory}/{below}"):
        path = os.path.join(below, name)
        whole = f"{directory}/{path}"
        if os.path.isdir(whole) and not os.path.islink(whole):
            yield from _files(directory, path)
        else:
            yield path


def _carry(path: str, there: str) -> None:
    """What somebody else has put, or changed, among our files since is not lost with these."""
    if os.path.lexists(there):
        if trees.are_same(path, there):
            return
        is_directory = os.path.isdir(there) and not os.path.islink(there)
        trees.remove(there) if is_directory else files.remove(there)
    trees.hard_link_tree(path, there)


def _remove_ours(live: str, kept: Listed) -> None:
    _remove_names(live, (*kept.names, LIST))


def _remove_names(live: str, names: Iterable[str]) -> None:
    """Files of ours, and the directories that they were in."""
    names = tuple(names)
    for name in names:
        files.remove(f"{live}/{name}")
    inside = [os.path.dirname(name) for name in names if "/" in name]
    above = {f"{live}/{path}" for name in inside for path in (name, os.path.dirname(name)) if path}
    files.remove_directories(tuple(above))


def _made(live: str, kept: Listed) -> str:
    """The outermost directory that we made, as far as there is nothing else in it."""
    top = live
    for _ in range(kept.made):
        above = os.path.dirname(top)
        if files.names(above) != [os.path.basename(top)]:
            break
        top = above
    return top
