"""The part of YAML in which CDI specs are written: blocks of mappings and sequences, with scalars
that are bare, in single quotes or JSON, and empty `{}` and `[]`. The scripted toolkit runs on a
plain Python, which has no reader."""

from __future__ import annotations

import json
import re
from typing import Any

# A colon ends a bare key only where a space or the end of the line follows.
_BARE = r"""(?:[^\s"'#:]|:(?=\S))(?:[^:]|:(?=\S))*?"""
_KEY = rf"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|{_BARE}):(?:\s+(.*))?$"""

Line = tuple[int, str]


def parse(text: str) -> Any:
    """The data in it; a ValueError where it is beyond this reader."""
    if text.lstrip().startswith(("{", "[")):
        return json.loads(text)
    lines = [
        (len(line) - len(line.lstrip()), line.strip())
        for line in text.splitlines()
        if line.strip() and line.strip() != "---" and not line.lstrip().startswith("#")
    ]
    lines.reverse()  # the next one is the last: taken and put back at the end
    found = _block(lines)
    if lines:
        raise ValueError(f"cannot read {lines[-1][1]!r}")
    return found


def _block(lines: list[Line]) -> Any:
    indent, first = lines[-1]
    if first == "-" or first.startswith("- "):
        return _sequence(lines, indent)
    if re.match(_KEY, first):
        return _mapping(lines, indent)
    return _scalar(lines.pop()[1])


def _sequence(lines: list[Line], indent: int) -> list[Any]:
    found = []
    while lines and lines[-1][0] == indent and (lines[-1][1] + " ").startswith("- "):
        rest = lines.pop()[1][1:]
        word = rest.strip()
        if word:  # a block of its own, which begins behind the dash
            lines.append((indent + 1 + len(rest) - len(word), word))
        found.append(_block(lines) if word or _deeper(lines, indent) else None)
    return found


def _mapping(lines: list[Line], indent: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while lines and lines[-1][0] == indent and (match := re.match(_KEY, lines[-1][1])):
        lines.pop()
        key, value = _scalar(match[1]), match[2]
        if str(key) in found:
            raise ValueError(f"{key!r} comes twice")
        if value:
            found[str(key)] = _scalar(value)
        elif _deeper(lines, indent) or _sequence_follows(lines, indent):
            found[str(key)] = _block(lines)
        else:
            found[str(key)] = None
    return found


def _deeper(lines: list[Line], indent: int) -> bool:
    return bool(lines) and lines[-1][0] > indent


def _sequence_follows(lines: list[Line], indent: int) -> bool:
    """A key's sequence may stand at the indent of the key."""
    return bool(lines) and lines[-1][0] == indent and (lines[-1][1] + " ").startswith("- ")


def _scalar(word: str) -> Any:
    if word.startswith("'") and word.endswith("'") and len(word) > 1:
        return word[1:-1].replace("''", "'")
    if word[0] in "\"'[{&*!|>%@`":
        return json.loads(word)
    word = word.partition(" #")[0].rstrip()
    if word in ("null", "~", "true", "false") or re.fullmatch(r"-?(0|[1-9]\d*)", word):
        return json.loads(word.replace("~", "null"))
    return word
