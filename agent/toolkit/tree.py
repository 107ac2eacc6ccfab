"""The installed toolkit as data: what is to lie in its directory, and what lies there.

Invariant: reads only. What we put into the directory is named in a list of our own in it; whatever
else is there is somebody else's and stays.
"""

from __future__ import annotations

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
from agent.toml import edit as tomledit
from agent.toml.edit import get
from agent.toolkit import programs, wrapper
from agent.toolkit.origin import Origin
from agent.toolkit.wrapper import Wrapper

LIST = ".toolkit-agent.json"
CONFIG = ".config/nvidia-container-runtime/config.toml"
_OLD_HOOK = "nvidia-container-toolkit"  # what the hook was called once; some OCI hooks still say so
_PROGRAM, _TEXT = 0o755, 0o644

# What NVIDIA's installer puts there. It removes all of it before it installs, and so may we.
_PEERS = re.compile(r"(nvidia-|libnvidia-container(-go)?\.so).*|\.config")


@dataclass(frozen=True, slots=True)
class Copy:
    """A file with the content of another one, which is at an agent path."""

    source: str
    mode: int = _PROGRAM


@dataclass(frozen=True, slots=True)
class Text:
    """A file with this content."""

    data: bytes
    mode: int = _TEXT


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


Entry: TypeAlias = Copy | Text | Link
Tree: TypeAlias = Mapping[str, Entry]  # by path below the directory


@dataclass(frozen=True, slots=True)
class Kept:
    """A copy as it was made: SHA-256, size and time (ns) of the file, and what told its source from
    any other."""

    digest: str
    size: int
    time: int
    source: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Listed:
    """Our list: copies, all other names of ours, and the directories above that we made."""

    copies: Mapping[str, Kept] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    made: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.copies, *self.others)


@dataclass(frozen=True, slots=True)
class Difference:
    """Names to be written and names of ours that are to go."""

    write: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.write or self.remove)


def wanted(origin: Origin, directory: str, runtimes: tuple[str, ...], config: bytes) -> Tree:
    """What is to lie in the toolkit's directory (a host path). `runtimes` are what the wrappers
    call without a driver."""
    tree: dict[str, Entry] = {}
    copied = origin.kind != "host"
    for name, source in origin.programs.items():
        if name == programs.CDI_HOOK:  # needs no settings; specs name it
            if copied:
                tree[name] = Copy(source)
            continue
        if not copied and not name.startswith(programs.RUNTIME):
            continue  # as good as it is; config.toml names it
        program = f"{directory}/{name}.real" if copied else f"{origin.place}/{name}"
        if copied:
            tree[f"{name}.real"] = Copy(source)
        text = wrapper.text(_wrapper(name, program, directory, runtimes))
        tree[name] = Text(text, _PROGRAM)
    if programs.RUNTIME_HOOK in tree:
        tree[_OLD_HOOK] = Link(programs.RUNTIME_HOOK)
    for name, source in origin.libraries.items():
        real = os.path.basename(source)
        tree[real] = Copy(source, _library_mode(source))
        if real != name:
            tree[name] = Link(real)
    return {**tree, CONFIG: Text(config)}


def _wrapper(name: str, program: str, directory: str, runtimes: tuple[str, ...]) -> Wrapper:
    settings = f"{directory}/{CONFIG}" if name.startswith(programs.RUNTIME) else None
    falls_back = name in programs.RUNTIMES
    return Wrapper(program, directory, settings, name == programs.CLI,
                   runtimes if falls_back else ())  # fmt: skip


def _library_mode(source: str) -> int:
    try:
        return os.stat(source).st_mode & _PROGRAM | _TEXT
    except OSError:
        return _TEXT


def paths(origin: Origin, directory: str) -> Mapping[str, str]:
    """Host paths of the programs, as they will be."""
    return {
        name: f"{origin.place}/{name}"
        if origin.kind == "host" and not name.startswith(programs.RUNTIME)
        else f"{directory}/{name}"
        for name in origin.programs
    }


def listed(directory: str) -> Listed | None:
    """Our list in a directory (an agent path); None where it is not ours. One that makes no sense
    names nothing. Raises Refused."""
    found = files.read(os.path.join(directory, LIST))
    if found is None:
        return None
    try:
        return _listed(budget.json_value(found.data, budget.STATE))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return Listed()


def _listed(data: Any) -> Listed:
    copies = {
        str(name): Kept(str(item["sha256"]), int(item["size"]), int(item["time"]),
                        tuple(map(int, item["source"])))
        for name, item in data.get("copies", {}).items()
    }  # fmt: skip
    return Listed(copies, tuple(map(str, data.get("others", ()))), int(data.get("made", 0)))


@dataclass(frozen=True, slots=True)
class Answers:
    """What config.toml has nvidia-container-runtime do: which low-level runtimes it calls in turn,
    which annotation prefixes it answers, and whether an unprivileged container may ask by
    environment variable (NVIDIA's defaults where a key is missing)."""

    runtimes: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("cdi.k8s.io/",)
    variables: bool = True


def answers(directory: str) -> Answers | None:
    """What config.toml in a directory (an agent path), whoever wrote it, says: what runs on this
    node depends on it. None where there is none, or none that can be read."""
    return answers_of(os.path.join(directory, CONFIG))


def answers_of(path: str) -> Answers | None:
    """The same of a config.toml at an agent path."""
    try:
        found = files.read(path)
        data: Any = tomledit.parse(found.data, path) if found else None
    except (Refused, ValueError, RecursionError):
        return None
    if data is None:
        return None
    runtime, usual = ("nvidia-container-runtime",), Answers()
    prefixes = get(data, (*runtime, "modes", "cdi", "annotation-prefixes"))
    return Answers(
        _strings(get(data, (*runtime, "runtimes"))),
        usual.prefixes if prefixes is None else _strings(prefixes),
        get(data, ("accept-nvidia-visible-devices-envvar-when-unprivileged",), True) is True,
    )


def _strings(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list) else ()
    return tuple(item for item in items if isinstance(item, str))


def to_bytes(found: Listed) -> bytes:
    """The list as it is written."""
    copies = {
        name: {"sha256": item.digest, "size": item.size, "time": item.time,
               "source": list(item.source)}
        for name, item in sorted(found.copies.items())
    }  # fmt: skip
    data = {"version": 1, "copies": copies, "others": sorted(found.others), "made": found.made}
    return (json.dumps(data, indent=1) + "\n").encode()


def difference(directory: str, tree: Tree) -> Difference:
    """What is not as it should be in a directory (an agent path). Raises Refused."""
    known = listed(directory)
    kept = known or Listed()
    write = tuple(
        name for name, entry in tree.items() if not _is_right(directory, name, entry, kept)
    )
    remove = tuple(name for name in kept.names if name not in tree)
    return Difference(write or (() if known else (LIST,)), remove)


def _is_right(directory: str, name: str, entry: Entry, kept: Listed) -> bool:
    path = os.path.join(directory, name)
    if not _are_ours(directory, os.path.dirname(name)):
        return False
    if isinstance(entry, Link):
        try:
            return os.readlink(path) == entry.target
        except OSError:
            return False
    if isinstance(entry, Text):
        return is_text(path, entry)
    return unchanged(path, entry, kept.copies.get(name))


def _are_ours(directory: str, below: str) -> bool:
    """Can nobody else change what is in a directory below, or in those above it?"""
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
    """Is the file at this agent path what is wanted?"""
    try:
        found = files.read(path)
    except Refused:
        return False  # a link or a directory: it is replaced
    if found is None or found.uid != os.geteuid():
        return False
    return (found.data, found.mode) == (entry.data, entry.mode)


def unchanged(path: str, entry: Copy, kept: Kept | None) -> bool:
    """Is the file at this agent path the copy that is wanted? Its source is read only where it
    could be another one than it was. Raises Refused."""
    try:
        here = os.stat(path, follow_symlinks=False)
        there = os.stat(entry.source, follow_symlinks=False)
    except OSError:
        return False
    if kept is None or not stat.S_ISREG(here.st_mode) or stat.S_IMODE(here.st_mode) != entry.mode:
        return False
    if (here.st_size, here.st_mtime_ns) != (kept.size, kept.time) or here.st_uid != os.geteuid():
        return False
    if os.path.samestat(here, there) or signature(there) == kept.source:
        return True
    return digest(entry.source) == kept.digest


def signature(found: os.stat_result) -> tuple[int, ...]:
    """What changes with a file's content: its status change time cannot be set by anybody."""
    return (
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns,
    )  # fmt: skip


def digest(path: str) -> str:
    """SHA-256 of a file of any size. Raises Refused."""
    try:
        with files.open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Refused(f"cannot read {path}: {reason(error)}") from error


def is_foreign(name: str, ours: Collection[str]) -> bool:
    """Is what has this name at the top of the directory somebody's that we do not know? `ours` are
    names of our own, in whatever depth."""
    tops = {item.partition("/")[0] for item in ours}
    return name != LIST and name not in tops and not _PEERS.fullmatch(name)
