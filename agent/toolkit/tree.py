"""The installed toolkit as data: the desired files of its directory, and the present ones.

Invariant: reads only. A list in the directory names the files that we put there; all other files
stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from agent.errors import Refused, reason
from agent.host import budget, files, trust
from agent.toolkit import programs, wrapper
from agent.toolkit.config import CONFIG
from agent.toolkit.origin import Origin

LIST = ".toolkit-agent.json"
_OLD_HOOK = "nvidia-container-toolkit"  # an older name of the hook, which some OCI hooks still use
_PROGRAM, _TEXT = 0o755, 0o644

# Files of NVIDIA's installer, which removes them before it installs. So they may be removed here.
_INSTALLER_FILES = re.compile(r"(nvidia-|libnvidia-container(-go)?\.so).*|\.config")


@dataclass(frozen=True)
class Copy:
    """A copy of the file at an agent path."""

    source: str
    mode: int = _PROGRAM


@dataclass(frozen=True)
class Text:
    """A file with this content."""

    data: bytes
    mode: int = _TEXT


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


Entry: TypeAlias = Copy | Text | Link
Tree: TypeAlias = Mapping[str, Entry]  # by path below the directory


@dataclass(frozen=True)
class CopyRecord:
    """The state of a copy when it was made: SHA-256, size in bytes and modification time in ns;
    `source` is the signature of its source."""

    digest: str
    size: int
    time: int
    source: tuple[int, ...] = ()


@dataclass(frozen=True)
class InstalledList:
    """The content of our list: copies, our other files, and the number of parent directories that
    we made."""

    copies: Mapping[str, CopyRecord] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    made: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.copies, *self.others)


@dataclass(frozen=True)
class Difference:
    """Names of files to write, and names of our files to remove."""

    write: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.write or self.remove)


def build(origin: Origin, directory: str, runtimes: tuple[str, ...], config: bytes) -> Tree:
    """The desired files of the toolkit's `directory` (a host path). `runtimes` are the low-level
    runtimes that the wrappers run while no driver is loaded; `config` is the content of
    config.toml."""
    tree: dict[str, Entry] = {}
    copied = origin.kind != "host"
    for name, source in origin.programs.items():
        if name == programs.CDI_HOOK:  # has no settings, so it needs no wrapper
            if copied:
                tree[name] = Copy(source)
            continue
        if not copied and not name.startswith(programs.RUNTIME):
            continue  # config.toml names the host's own program
        program = f"{directory}/{name}.real" if copied else f"{origin.place}/{name}"
        if copied:
            tree[f"{name}.real"] = Copy(source)
        text = wrapper.text(
            program, directory,
            config=f"{directory}/{CONFIG}" if name.startswith(programs.RUNTIME) else None,
            libraries=name == programs.CLI,
            runtimes=runtimes if name in programs.RUNTIMES else (),
        )  # fmt: skip
        tree[name] = Text(text, _PROGRAM)
    if programs.RUNTIME_HOOK in tree:
        tree[_OLD_HOOK] = Link(programs.RUNTIME_HOOK)
    for name, source in origin.libraries.items():
        real, mode = os.path.basename(source), _TEXT
        with contextlib.suppress(OSError):
            mode |= os.stat(source).st_mode & _PROGRAM
        tree[real] = Copy(source, mode)
        if real != name:
            tree[name] = Link(real)
    return {**tree, CONFIG: Text(config)}


def read_list(directory: str) -> InstalledList | None:
    """Our list in a directory (an agent path); None if there is none. A damaged list counts as
    empty. Raises Refused."""
    found = files.read(os.path.join(directory, LIST))
    if found is None:
        return None
    try:
        return _listed(budget.json_value(found.data, budget.STATE))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return InstalledList()


def _listed(data: Any) -> InstalledList:
    copies = {
        str(name): CopyRecord(str(item["sha256"]), int(item["size"]), int(item["time"]),
                        tuple(map(int, item["source"])))
        for name, item in data.get("copies", {}).items()
    }  # fmt: skip
    return InstalledList(copies, tuple(map(str, data.get("others", ()))), int(data.get("made", 0)))


def to_bytes(installed: InstalledList) -> bytes:
    """The content of the list's file."""
    copies = {
        name: {"sha256": item.digest, "size": item.size, "time": item.time,
               "source": list(item.source)}
        for name, item in sorted(installed.copies.items())
    }  # fmt: skip
    data = {
        "version": 1,
        "copies": copies,
        "others": sorted(installed.others),
        "made": installed.made,
    }
    return (json.dumps(data, indent=1) + "\n").encode()


def difference(directory: str, tree: Tree) -> Difference:
    """The files to write and to remove, so that a directory (an agent path) has the desired files.
    Raises Refused."""
    present = read_list(directory)
    installed = present or InstalledList()
    write = tuple(
        name for name, entry in tree.items() if not _is_right(directory, name, entry, installed)
    )
    remove = tuple(name for name in installed.names if name not in tree)
    return Difference(write or (() if present else (LIST,)), remove)


def _is_right(directory: str, name: str, entry: Entry, installed: InstalledList) -> bool:
    path = os.path.join(directory, name)
    if not _is_trusted(directory, os.path.dirname(name)):
        return False
    if isinstance(entry, Link):
        try:
            return os.readlink(path) == entry.target
        except OSError:
            return False
    if isinstance(entry, Text):
        return is_text(path, entry)
    return is_unchanged(path, entry, installed.copies.get(name))


def _is_trusted(directory: str, below: str) -> bool:
    """Can root alone change the content of the subdirectory `below`, and of the directories above
    it?"""
    while below:
        try:
            found = os.lstat(os.path.join(directory, below))
        except OSError:
            return False
        if not stat.S_ISDIR(found.st_mode) or trust.distrust(found):
            return False
        below = os.path.dirname(below)
    return True


def is_text(path: str, entry: Text) -> bool:
    """Has the file at an agent path the content, mode and owner of the entry?"""
    try:
        found = files.read(path)
    except Refused:
        return False  # a link or a directory
    if found is None or found.uid != os.geteuid():
        return False
    return (found.data, found.mode) == (entry.data, entry.mode)


def is_unchanged(path: str, entry: Copy, record: CopyRecord | None) -> bool:
    """Is the file at an agent path still the copy of `record`, and equal to the entry's source? The
    source is read only if its signature has changed. Raises Refused."""
    try:
        copy = os.stat(path, follow_symlinks=False)
        source = os.stat(entry.source, follow_symlinks=False)
    except OSError:
        return False
    if record is None or not stat.S_ISREG(copy.st_mode) or stat.S_IMODE(copy.st_mode) != entry.mode:
        return False
    present = copy.st_size, copy.st_mtime_ns
    if present != (record.size, record.time) or copy.st_uid != os.geteuid():
        return False
    if os.path.samestat(copy, source) or signature(source) == record.source:
        return True
    return digest(entry.source) == record.digest


def signature(status: os.stat_result) -> tuple[int, ...]:
    """Values that change with a file's content: no program can set the status change time."""
    return (
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
    )  # fmt: skip


def digest(path: str) -> str:
    """The SHA-256 of a file of any size, in hexadecimal. Raises Refused."""
    try:
        with files.open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Refused(f"cannot read {path}: {reason(error)}") from error


def is_foreign(name: str, ours: Collection[str]) -> bool:
    """Does a name at the top of the directory belong neither to us nor to NVIDIA's installer?
    `ours` are the paths of our files below the directory."""
    tops = {item.partition("/")[0] for item in ours}
    return name != LIST and name not in tops and not _INSTALLER_FILES.fullmatch(name)
