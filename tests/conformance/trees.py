"""Snapshots of directories: what is there, and whether anything was touched."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One file, link or directory: what a user sees of it, and `traces` that any change leaves."""

    kind: int
    mode: int
    owner: tuple[int, int]
    content: bytes
    traces: tuple[int, int, int]


Tree = Mapping[str, Entry]
Contents = Mapping[str, tuple[int, int, tuple[int, int], bytes]]


def snapshot(root: Path) -> Tree:
    """Everything below `root`, by path relative to it, and `root` itself as "."."""
    found = {".": _entry(root)}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(directory, name)
            found[str(path.relative_to(root))] = _entry(path)
    return found


def _entry(path: Path) -> Entry:
    info = path.lstat()
    content = b""
    if stat.S_ISREG(info.st_mode):
        content = path.read_bytes()
    elif stat.S_ISLNK(info.st_mode):
        content = os.fsencode(path.readlink())
    return Entry(
        kind=stat.S_IFMT(info.st_mode),
        mode=stat.S_IMODE(info.st_mode),
        owner=(info.st_uid, info.st_gid),
        content=content,
        traces=(info.st_ino, info.st_mtime_ns, info.st_ctime_ns),
    )


def contents(tree: Tree) -> Contents:
    """The tree without its traces: equal where a user sees no difference, byte for byte."""
    return {path: (e.kind, e.mode, e.owner, e.content) for path, e in tree.items()}


def touched(before: Tree, after: Tree) -> list[str]:
    """Paths that were made, removed, written, renamed or had their mode set between the two."""
    return sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
