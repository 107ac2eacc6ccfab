"""Specs that crash containerd before 2.4 when it reads them.

Invariant: reads as containerd does, which accepts JSON and YAML alike, in any spelling (escapes,
merge keys, anchors, UTF-16; names of keys regardless of case), because an overlooked spelling would
cost a node. A file is parsed only if its bytes are suspicious.
"""

from __future__ import annotations

import re

from agent.cdi.specs.shape import edits, fit_to_shape

# pkg/parser of the CDI library before 1.1 slices name[1:len-1] if the first letter is valid. It
# checks the class only if the vendor is valid.
_CRASHES = re.compile(r"(?s)[A-Za-z]/.+|[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]/[A-Za-z]")

# A file with such a kind has the kind itself in its bytes, or a sign of a spelling to be parsed.
_ESCAPES = rb"[\\!\0]"
_SUSPICIOUS = re.compile(rb"(?<![A-Za-z0-9_.-])[A-Za-z]/|/[A-Za-z](?![A-Za-z0-9_.-])|" + _ESCAPES)

# The bytes of a file with an empty item in a list contain one of these.
_EMPTY = re.compile(rb"~|[nN][uU][lL][lL]|(?<!-)-[ \t]*(#[^\n]*)?[\r\n]|-[ \t]*\Z|[&*]|" + _ESCAPES)


def crashing_kind(data: bytes) -> str | None:
    """A kind in the bytes of a spec whose vendor or class is a single letter; None if there is
    none. containerd before 2.4 panics when it reads one (observed on 1.7.24 and 2.1.9), also in an
    otherwise invalid file."""
    if not _SUSPICIOUS.search(data):
        return None
    from agent.cdi.specs.read import kinds  # slow to load, and rarely needed

    return next((kind for kind in kinds(data) if _CRASHES.fullmatch(kind)), None)


def crash_cause(data: bytes) -> str | None:
    """The part of a spec that makes containerd before 2.4 panic, in words; None if it can read the
    file."""
    kind = crashing_kind(data)
    return f"kind {kind}" if kind else crashing_item(data)


def crashing_item(data: bytes) -> str | None:
    """The place of an empty item in a list of device nodes, mounts or hooks, in words; None if
    there is none. The library follows a null pointer there (observed on 1.7.24 and 2.1.9)."""
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
    """Are these the bytes of a spec of the kind?"""
    if kind.encode() not in data and re.search(_ESCAPES, data) is None:
        return False
    from agent.cdi.specs.read import kinds

    return kind in kinds(data)
