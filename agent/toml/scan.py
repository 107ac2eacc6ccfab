"""The places of headers, keys, values, entries and comments in a TOML text, as offsets.

Invariant: only places are found here; `agent.toml.dialect` reads values, and its `loads` must
accept the text. If a place is uncertain, `Unreadable` is raised.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

from agent.toml import dialect
from agent.toml.dialect import PARTS, TOKEN
from agent.toml.write import Path

Kind: TypeAlias = Literal["table", "array", "key"]

_PART = r"""(?:"(?:\\.|[^"\\\n])*"|'[^'\n]*'|[A-Za-z0-9_-]+)"""
_PARTS = re.compile(_PART)
_KEY = rf"[ \t]*({_PART}(?:[ \t]*\.[ \t]*{_PART})*)[ \t]*"
_HEADER = re.compile(rf"\[{_KEY}\]|\[\[{_KEY}\]\]")
_PAIR = re.compile(rf"{_KEY}=[ \t]*")
_CODE = re.compile(r"[ \t]*")
_NO_CODE = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\r?\n|\Z)")
_BLANK_LINE = re.compile(r"(?:\A|\n)[ \t]*\r?\n")
_BARE = re.compile(r"[^,#\]}\r\n]+")


class Unreadable(ValueError):
    """The scanner cannot find the places in the text."""


@dataclass(frozen=True)
class Entry:
    """A key and its value, `text[value]`. `path` is relative to the table of the entry; `raw` has
    the spellings of its parts."""

    path: Path
    raw: Path
    value: slice


@dataclass(frozen=True)
class Statement:
    """One header, or one key with its value; `text[start:end]` are its whole lines.

    `path` and `base`, the table of the block that it is in, are relative to the root. `raw` has the
    spellings of the key's parts. `code` is the offset after the indentation. A header has an empty
    `value` after its closing bracket.
    """

    kind: Kind
    path: Path
    raw: Path
    base: Path
    start: int
    code: int
    value: slice
    end: int


@lru_cache(maxsize=2)  # for the texts before and after an edit, each used several times
def statements(text: str) -> tuple[Statement, ...]:
    """All statements in the order of the text. Raises Unreadable."""
    found: list[Statement] = []
    base: Path = ()
    at = 0
    while at < len(text):
        if blank := _NO_CODE.match(text, at):
            at = blank.end()
            continue
        code = at + len(_matched(_CODE, text, at)[0])
        kind: Kind = "key"
        if text[code] == "[":
            header = _matched(_HEADER, text, code)
            kind = "table" if header[1] else "array"
            raw = tuple(_PARTS.findall(header[1] or header[2]))
            base = path = tuple(map(name, raw))
            entry = Entry(path, raw, slice(header.end(), header.end()))
        else:
            entry = _entry(text, code)
            path = (*base, *entry.path)
        rest = _matched(_NO_CODE, text, entry.value.stop)
        found.append(Statement(kind, path, entry.raw, base, at, code, entry.value, rest.end()))
        at = rest.end()
    return tuple(found)


def entries(text: str, value: slice) -> list[Entry]:
    """The entries of the inline table `text[value]`. Raises Unreadable."""
    return [_entry(text, start) for start in _group(text, value.start)[0]]


def name(raw: str) -> str:
    """The key that a spelling of it means."""
    if raw[0] not in "\"'":
        return raw
    if "\\" not in raw or raw[0] == "'":
        return raw[1:-1]
    return str(dialect.loads(f"k = {raw}")["k"])


def comments(text: str) -> Counter[str]:
    """Every comment, on its own line or after code, with its count. `text` may be a part that
    begins and ends outside of strings."""
    return Counter(part[0].rstrip() for part in PARTS.finditer(text) if part[0][0] == "#")


def comments_behind(text: str, path: Path) -> Counter[str]:
    """The comments at the end of the last line of a key, or of each key and header of a table."""
    found: Counter[str] = Counter()
    for statement in statements(text):
        if statement.path[: len(path)] == path:
            found += comments(text[statement.value.stop : statement.end])
    return found


def comments_above(text: str, excluded: Path) -> Counter[tuple[str, Path]]:
    """(comment, path of the header or key below it) of the comments right above headers and keys,
    except for those of the key or table `excluded`."""
    found: Counter[tuple[str, Path]] = Counter()
    at = 0
    for statement in statements(text):
        if "#" in text[at : statement.start] and statement.path[: len(excluded)] != excluded:
            near = _BLANK_LINE.split(text[at : statement.start])[-1]
            found.update((comment, statement.path) for comment in comments(near).elements())
        at = statement.end
    return found


def _matched(pattern: re.Pattern[str], text: str, at: int) -> re.Match[str]:
    found = pattern.match(text, at)
    if found is None:
        raise Unreadable
    return found


def _entry(text: str, at: int) -> Entry:
    key = _matched(_PAIR, text, at)
    raw = tuple(_PARTS.findall(key[1]))
    return Entry(tuple(map(name, raw)), raw, slice(key.end(), _value_end(text, key.end())))


def _value_end(text: str, at: int) -> int:
    if text[at : at + 1] in ("[", "{"):
        return _group(text, at)[1]
    if text[at : at + 1] in ('"', "'"):
        return _token(text, at).end()
    return at + len(_matched(_BARE, text, at)[0].rstrip())


def _token(text: str, at: int) -> re.Match[str]:
    found = _matched(TOKEN, text, at)
    if found[0][0] in "\"'" and (len(found[0]) == 1 or found[0][-1] != found[0][0]):
        raise Unreadable
    return found


def _group(text: str, at: int) -> tuple[list[int], int]:
    """The offsets of the items in the list or inline table that opens at `at`, and the offset after
    it."""
    starts: list[int] = []
    depth, at, between = 1, at + 1, True
    while True:
        token = _token(text, at)
        word, at = token[0], token.end()
        depth -= word in ("]", "}")
        if depth == 0:
            return starts, at
        if not (word[0] == "#" or word.isspace()):
            if between:
                starts.append(token.start())
            between = depth == 1 and word == ","
        depth += word in ("[", "{")
