"""Specs of which containerd before 2.4 dies as soon as it reads them.

Invariant: reads as containerd does, which takes JSON and YAML alike, in any spelling (escapes,
merge keys, anchors, UTF-16; names of keys regardless of case), because an overlooked spelling would
cost a node. A file is parsed only if its bytes are suspicious.
"""

from __future__ import annotations

import re

from agent.cdi.specs.shape import edits, fit_to_shape

# pkg/parser of the CDI library before 1.1 slices name[1:len-1] if the first letter is valid; it
# checks the class only if the vendor is valid.
_CRASHES = re.compile(r"(?s)[A-Za-z]/.+|[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]/[A-Za-z]")

# A file with such a kind has one of these: the kind itself, or a spelling that has to be parsed.
_SPELT = rb"[\\!\0]"
_SUSPICIOUS = re.compile(rb"(?<![A-Za-z0-9_.-])[A-Za-z]/|/[A-Za-z](?![A-Za-z0-9_.-])|" + _SPELT)

# A file with an empty item in a list has one of these.
_EMPTY = re.compile(rb"~|[nN][uU][lL][lL]|(?<!-)-[ \t]*(#[^\n]*)?[\r\n]|-[ \t]*\Z|[&*]|" + _SPELT)


def crashing_kind(data: bytes) -> str | None:
    """The kind of a spec whose vendor or class is a single letter. containerd before 2.4 panics
    when it reads one (observed on 1.7.24 and 2.1.9), whatever else is wrong with the file."""
    if not _SUSPICIOUS.search(data):
        return None
    from agent.cdi.specs.read import kinds  # slow to load, and rarely needed

    return next((kind for kind in kinds(data) if _CRASHES.fullmatch(kind)), None)


def crash(data: bytes) -> str | None:
    """The part of a spec that makes containerd before 2.4 panic when it reads the file."""
    kind = crashing_kind(data)
    return f"kind {kind}" if kind else crashing_item(data)


def crashing_item(data: bytes) -> str | None:
    """The empty item in a list of device nodes, mounts or hooks. The library follows its null
    pointer (observed on 1.7.24 and 2.1.9)."""
    if not _EMPTY.search(data):
        return None
    from agent.cdi.specs.read import Broken, document

    try:
        spec, problems = fit_to_shape(document(data).data)
    except Broken:
        return None
    if any(problem.impact == "file" for problem in problems):
        return None
    for where, part in edits(spec):
        for field in ("deviceNodes", "mounts", "hooks"):
            if None in part.get(field, ()):
                return f"an empty item in {where}.{field}"
    return None


def has_kind(data: bytes, kind: str) -> bool:
    """Is this a spec of that kind?"""
    if kind.encode() not in data and re.search(_SPELT, data) is None:
        return False
    from agent.cdi.specs.read import kinds

    return kind in kinds(data)
