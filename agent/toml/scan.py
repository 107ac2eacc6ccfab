"""Where everything lies in a TOML text: headers, keys, values, entries, comments, as offsets.

Invariant: nothing is read here but places; what a text means is `tomltext`'s to say. The text has
to be one that `tomltext.loads` accepts. Where a place cannot be told, `Unreadable` is raised, never
a guess made.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from agent.toml import text as tomltext
from agent.toml.text import TOKEN
from agent.toml.write import Path

_PART = re.compile(r"""[ \t]*("(?:\\.|[^"\\\n])*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*""")
_NO_CODE = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\r?\n|\Z)")
_BARE = re.compile(r"[^,#\]}\r\n]+")


class Unreadable(Exception):
    """The text is not what the scanner takes TOML to be."""


@dataclass(frozen=True, slots=True)
class Span:
    """A value's place, or an entry's: `text[start:end]`."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A key and its value. `path` counts from the table that the entry stands in; `raw` is how
    its parts are written; the key begins at `key`."""

    path: Path
    raw: Path
    key: int
    value: Span


@dataclass(frozen=True, slots=True)
class Statement:
    """One header, or one key with its value; `text[start:end]` are its whole lines.

    `path` counts from the root, and so does `base`, the table whose block it stands in. `code` is
    where the indentation ends. For a header `value` is empty and lies behind the closing bracket.
    """

    kind: Literal["table", "array", "key"]
    path: Path
    raw: Path
    base: Path
    start: int
    code: int
    value: Span
    end: int


@dataclass(frozen=True, slots=True)
class Group:
    """The inside of an array or an inline table: its items, the commas, and the closing bracket."""

    items: tuple[Span, ...]
    commas: tuple[int, ...]
    close: int


@lru_cache(maxsize=2)  # a text before and after an edit, each looked at several times
def statements(text: str) -> tuple[Statement, ...]:
    """All statements in their order."""
    found: list[Statement] = []
    base: Path = ()
    at = 0
    while at < len(text):
        blank = _NO_CODE.match(text, at)
        if blank:
            at = blank.end()
            continue
        start, at = at, _skip(text, at)
        kind: Literal["table", "array", "key"]
        if text[at] != "[":
            entry = _entry(text, at)
            kind, path, raw, value = "key", (*base, *entry.path), entry.raw, entry.value
        else:
            kind = "array" if text.startswith("[[", at) else "table"
            base, raw, value = _header(text, at, 2 if kind == "array" else 1)
            path = base
        rest = _NO_CODE.match(text, value.end)
        if rest is None:
            raise Unreadable
        found.append(Statement(kind, path, raw, base, start, at, value, rest.end()))
        at = rest.end()
    return tuple(found)


def _header(text: str, at: int, width: int) -> tuple[Path, Path, Span]:
    path, raw, after = _key(text, at + width)
    if text[after : after + width] != "]" * width:
        raise Unreadable
    return path, raw, Span(after + width, after + width)


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t"):
        at += 1
    return at


def _key(text: str, at: int) -> tuple[Path, Path, int]:
    """The parts of a key, how they are written, and where it ends."""
    path: list[str] = []
    raw: list[str] = []
    while True:
        part = _PART.match(text, at)
        if part is None:
            raise Unreadable
        raw.append(part[1])
        path.append(name(part[1]))
        at = part.end()
        if text[at : at + 1] != ".":
            return tuple(path), tuple(raw), at
        at += 1


def name(raw: str) -> str:
    """The key that a part of a written key means."""
    if raw[0] not in "\"'":
        return raw
    if "\\" not in raw or raw[0] == "'":
        return raw[1:-1]
    return str(tomltext.loads(f"k = {raw}")["k"])


def _entry(text: str, at: int) -> Entry:
    path, raw, after = _key(text, at)
    if text[after : after + 1] != "=":
        raise Unreadable
    start = _skip(text, after + 1)
    return Entry(path, raw, at, Span(start, _value_end(text, start)))


def _value_end(text: str, at: int) -> int:
    if text[at : at + 1] in ("[", "{"):
        return group(text, at).close + 1
    if text[at : at + 1] in ('"', "'"):
        return _token(text, at).end()
    bare = _BARE.match(text, at)
    if bare is None:
        raise Unreadable
    return at + len(bare[0].rstrip())


def _token(text: str, at: int) -> re.Match[str]:
    found = TOKEN.match(text, at)
    if found is None or (
        found[0][0] in "\"'" and (len(found[0]) == 1 or found[0][-1] != found[0][0])
    ):
        raise Unreadable
    return found


def group(text: str, at: int) -> Group:
    """The array or inline table that opens at `at`."""
    items: list[Span] = []
    commas: list[int] = []
    depth, at = 1, at + 1
    first = last = -1  # of the item that is being read

    def close() -> None:
        nonlocal first
        if first >= 0:
            items.append(Span(first, last))
        first = -1

    while True:
        token = _token(text, at)
        word = token[0]
        if word in ("]", "}"):
            depth -= 1
            if depth == 0:
                close()
                return Group(tuple(items), tuple(commas), at)
        if word == "," and depth == 1:
            close()
            commas.append(at)
        elif word[0] != "#" and not word.isspace():
            first = at if first < 0 else first
            last = token.end()
        depth += word in ("[", "{")
        at = token.end()


def entries(text: str, at: int) -> tuple[Group, list[Entry]]:
    """The inline table that opens at `at`, and its entries."""
    found = group(text, at)
    return found, [_entry(text, item.start) for item in found.items]


def comments(text: str) -> Counter[str]:
    """Every comment, on a line of its own or behind something."""
    found: Counter[str] = Counter()
    at = 0
    for one in statements(text):
        found.update(_lines(text[at : one.start]))
        found.update(within(text, one.value))
        found.update(_lines(text[one.value.end : one.end]))
        at = one.end
    found.update(_lines(text[at:]))
    return found


def comments_behind(text: str, path: Path) -> Counter[str]:
    """The comments on the last lines of a key, or of all keys and headers of a table."""
    found: Counter[str] = Counter()
    for one in statements(text):
        if one.path[: len(path)] == path:
            found.update(_lines(text[one.value.end : one.end]))
    return found


def _lines(text: str) -> list[str]:
    """The comments of lines without any other code."""
    return [line[line.index("#") :].strip() for line in text.split("\n") if "#" in line]


def within(text: str, value: Span) -> list[str]:
    """The comments inside a value: in TOML 1.0, those of a list that has several lines."""
    if text[value.start : value.start + 1] not in ("[", "{"):
        return []
    tokens = (match[0] for match in TOKEN.finditer(text, value.start, value.end))
    return [word.rstrip() for word in tokens if word[0] == "#"]
