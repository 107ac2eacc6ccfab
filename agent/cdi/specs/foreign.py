"""CDI specs that others put beside ours: which files a runtime loads, and what kind each is of.

Invariant: reads as containerd does, which takes JSON and YAML alike, in any spelling (escapes,
merge keys, anchors, UTF-16; names of keys regardless of case): a spelling that we did not know
would cost a node. A file is parsed only where it looks suspicious.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator

from agent.cdi.specs.installed import some
from agent.cdi.specs.read import Broken, document, kinds
from agent.cdi.specs.shape import edits, shaped
from agent.errors import AgentError
from agent.host import budget, files
from agent.host.paths import HostPath, HostRoot

# pkg/parser of the CDI library before 1.1 slices name[1:len-1] once the first letter is right; the
# class is looked at only where the vendor is valid.
_CRASHES = re.compile(r"(?s)[A-Za-z]/.+|[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]/[A-Za-z]")

# Bytes without which no file has such a kind: plainly, or spelt so that only a reader can tell.
_SPELT = rb"[\\!\0]"
_SUSPICIOUS = re.compile(rb"(?<![A-Za-z0-9_.-])[A-Za-z]/|/[A-Za-z](?![A-Za-z0-9_.-])|" + _SPELT)

# And without which no list has an empty item.
_EMPTY = re.compile(rb"~|[nN][uU][lL][lL]|(?<!-)-[ \t]*(#[^\n]*)?[\r\n]|-[ \t]*\Z|[&*]|" + _SPELT)


def _silent(_: str) -> None:
    return


def entries(
    host: HostRoot, directory: HostPath, tell: Callable[[str], None] = _silent
) -> Iterator[tuple[HostPath, bytes]]:
    """The files that a runtime loads from a spec directory, with their content.

    By their ending alone: dot files and links to files too, directories not. What we cannot read
    is not ours to judge; `tell` takes a warning about what exceeds the budget.
    """
    left = budget.SPECS.size
    for path, real in _loaded(host, directory, tell):
        try:
            found = files.read(real.agent, path.host, min(left, budget.SPEC.size))
        except AgentError:
            if _is_larger(real.agent, min(left, budget.SPEC.size)):
                tell(
                    f"{path} was not looked at: it is larger than {budget.SPEC.size} bytes, or the "
                    f"files of {directory} than {budget.SPECS.size}; make it smaller, or remove it"
                )
            continue
        if found is not None:
            left -= len(found.data)
            yield path, found.data


def _is_larger(agent: str, size: int) -> bool:
    try:
        found = os.lstat(agent)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > size


def pipes(host: HostRoot, directory: HostPath) -> Iterator[HostPath]:
    """What a runtime would read as a spec and wait for, for ever: 1.7.24 and 2.1.9 do so at their
    start."""
    for path, real in _loaded(host, directory, _silent):
        with contextlib.suppress(OSError):
            if stat.S_ISFIFO(os.lstat(real.agent).st_mode):
                yield path


def _loaded(
    host: HostRoot, directory: HostPath, tell: Callable[[str], None]
) -> Iterator[tuple[HostPath, HostPath]]:
    """Names that are taken for specs, and where their links lead."""
    try:
        names, more = files.some_names(directory.agent, budget.DIRECTORY)
    except OSError:
        return
    found = [name for name in names if name.endswith((".json", ".yaml"))]
    if more or len(found) > budget.SPEC_FILES:
        tell(
            f"{directory} has more than {budget.SPEC_FILES} specs or {budget.DIRECTORY.values} "
            "names, of which not all were looked at; remove what is not needed"
        )
    for name in some(found):
        path = HostPath(os.path.join(directory.agent, name), os.path.join(directory.host, name))
        with contextlib.suppress(AgentError):
            yield path, host.resolve(path.host) if os.path.islink(path.agent) else path


def crashing_kind(data: bytes) -> str | None:
    """The kind of a spec whose vendor or class is a single letter: containerd before 2.4 panics as
    soon as it reads one (observed on 1.7.24 and 2.1.9), whatever else is wrong with it."""
    if not _SUSPICIOUS.search(data):
        return None
    return next((kind for kind in kinds(data) if _CRASHES.fullmatch(kind)), None)


def crash(data: bytes) -> str | None:
    """What in a spec makes containerd before 2.4 panic as soon as it reads it."""
    kind = crashing_kind(data)
    return f"kind {kind}" if kind else crashing_item(data)


def crashing_item(data: bytes) -> str | None:
    """An empty item in a list of device nodes, mounts or hooks: nothing is looked for in it, and
    the library looks (observed on 1.7.24 and 2.1.9)."""
    if not _EMPTY.search(data):
        return None
    try:
        spec, problems = shaped(document(data).data)
    except Broken:
        return None
    if any(problem.spoils == "file" for problem in problems):
        return None
    for where, part in edits(spec):
        for field in ("deviceNodes", "mounts", "hooks"):
            if None in part.get(field, ()):
                return f"an empty item in {where}.{field}"
    return None


def has_kind(data: bytes, kind: str) -> bool:
    """Is this a spec of that kind?"""
    may = kind.encode() in data or re.search(_SPELT, data) is not None
    return may and kind in kinds(data)
