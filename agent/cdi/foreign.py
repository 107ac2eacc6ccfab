"""CDI specs that others put beside ours: which files a runtime loads, and what kind each is of.

Invariant: reads as containerd does, which takes JSON and YAML alike, in any spelling (escapes,
merge keys, anchors, UTF-16; names of keys regardless of case): a spelling that we did not know
would cost a node. The only module that imports yaml, and only for a file that looks suspicious.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from agent.errors import AgentError
from agent.host import files
from agent.host.paths import HostPath, HostRoot

if TYPE_CHECKING:
    import yaml

_LIMIT = 32 << 20  # bytes; the runtime has none
_MERGE = "tag:yaml.org,2002:merge"
_BINARY = "tag:yaml.org,2002:binary"

# pkg/parser of the CDI library before 1.1 slices name[1:len-1] once the first letter is right; the
# class is looked at only where the vendor is valid.
_CRASHES = re.compile(r"(?s)[A-Za-z]/.+|[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]/[A-Za-z]")

# Bytes without which no file has such a kind: plainly, or spelt so that only a reader can tell.
_SPELT = rb"[\\!\0]"
_SUSPICIOUS = re.compile(rb"(?<![A-Za-z0-9_.-])[A-Za-z]/|/[A-Za-z](?![A-Za-z0-9_.-])|" + _SPELT)


def entries(host: HostRoot, directory: HostPath) -> Iterator[tuple[HostPath, bytes]]:
    """The files that a runtime loads from a spec directory, with their content.

    By their ending alone: dot files and links to files too, directories not. What we cannot read
    is not ours to judge.
    """
    try:
        names = sorted(files.names(directory.agent))
    except OSError:
        return
    for name in names:
        if not name.endswith((".json", ".yaml")):
            continue
        path = HostPath(os.path.join(directory.agent, name), os.path.join(directory.host, name))
        try:
            real = host.resolve(path.host) if os.path.islink(path.agent) else path
            found = files.read(real.agent, path.host, _LIMIT)
        except AgentError:
            continue
        if found is not None:
            yield path, found.data


def crashing_kind(data: bytes) -> str | None:
    """The kind of a spec whose vendor or class is a single letter: containerd before 2.4 panics as
    soon as it reads one (observed on 1.7.24 and 2.1.9), whatever else is wrong with it."""
    if not _SUSPICIOUS.search(data):
        return None
    return next((kind for kind in kinds(data) if _CRASHES.fullmatch(kind)), None)


def has_kind(data: bytes, kind: str) -> bool:
    """Is this a spec of that kind?"""
    may = kind.encode() in data or re.search(_SPELT, data) is not None
    return may and kind in kinds(data)


def kinds(data: bytes) -> tuple[str, ...]:
    """What a spec calls its kind: one, unless it says so several times; none where it is no spec.

    Of several documents the first counts.
    """
    import yaml

    # libyaml, of which Go's reader is a translation; in plain Python it is slower and stricter.
    reader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        loader = reader(data)
        root = loader.get_node() if loader.check_node() else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return ()
    return tuple(_kinds(root, ())) if isinstance(root, yaml.MappingNode) else ()


def _kinds(node: yaml.Node, above: tuple[yaml.Node, ...]) -> list[str]:
    """Values of `kind` in a mapping, else in those that are merged into it."""
    own: list[str] = []
    merged: list[str] = []
    if isinstance(node.value, str) or node in above:
        return []
    for item in node.value:
        if not isinstance(item, tuple):  # a list of mappings that are merged
            merged += _kinds(item, (*above, node))
            continue
        key, value = item
        if key.tag == _MERGE:
            merged += _kinds(value, (*above, node))
        elif isinstance(value.value, str) and _text(key).casefold() == "kind":
            own.append(_text(value))
    return own or merged


def _text(node: yaml.Node) -> str:
    text = str(node.value)
    if node.tag != _BINARY:
        return text
    try:
        return base64.b64decode(text).decode("utf-8", "replace")
    except binascii.Error:
        return text
