"""Where an edit goes in a TOML text: the statement that it is about, or where a new one belongs.

Invariant: every proposal differs from the text in the lines of the edited key alone, plus new ones
in the style of their neighbours. Comments that would be lost move to lines of their own, except for
those behind a removed value. `document.edit` checks whether a proposal has the desired meaning.

A key goes where its table is: into the braces of an inline table, below a [header], beside dotted
keys; else its table gets a header at the end of the file, where it cannot come between a comment
and what the comment is about.

tomlkit writes keys and values. It gets the lines of one statement, never a file. With whole files
it writes wrong data for one valid document in five (tables out of order, dotted keys beside
headers), needs seconds for a thousand tables, and puts new keys below comments that are about
something else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeAlias

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import InlineTable, Whitespace

from agent.toml import scan
from agent.toml.dialect import TOKEN, Data
from agent.toml.ops import get
from agent.toml.scan import Statement
from agent.toml.write import Path, quote, scalar, tables

# tomlkit raises what its lists and dictionaries raise, too.
ERRORS = (
    TOMLKitError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    RecursionError,
)  # fmt: skip

_MOST_TOKENS = 20_000  # with an inline table: each dotted key in one takes longer than the last
_MOST_GONE = 100  # items that are taken out of a list one by one: each time tomlkit copies the list

# The name of a way to write an edit, and the way itself. It returns None if it does not fit, and
# may raise one of ERRORS.
Way: TypeAlias = tuple[str, Callable[[], str | None]]


@dataclass(frozen=True)
class _Sheet:
    """A text and the places of its statements."""

    text: str
    statements: tuple[Statement, ...]

    def lines(self, one: Statement) -> str:
        return self.text[one.start : one.end]

    def indent(self, one: Statement) -> str:
        return self.text[one.start : one.code]

    def owner(self, path: Path) -> Statement | None:
        """The statement whose value is that of the key at `path`, or an inline table above it."""
        for one in self.statements:
            size = len(one.path)
            if one.kind == "key" and one.path == path[:size]:
                return one if size == len(path) or self.text[one.value.start] == "{" else None
        return None

    def last(self, path: Path) -> Statement | None:
        """The last key of a table, below its header or dotted; without keys its header."""
        found, size = None, len(path)
        for one in self.statements:
            if one.path[:size] == path and len(one.base) <= size and one.kind != "array":
                found = one
        return found

    def header_indent(self, path: Path) -> str:
        """The indentation of a new header: that of headers with as many parts, else one step more
        than that of headers with fewer parts, if those are indented."""
        indents: dict[int, str] = {}
        for one in self.statements:
            if one.kind != "key":
                indents.setdefault(len(one.path), self.indent(one))
        above = max((size for size in indents if size < len(path)), default=None)
        outer = indents[above] if above else ""
        return indents.get(len(path), outer and outer + self.step)

    @cached_property
    def step(self) -> str:
        """By how much the first key below a header is indented more than the header."""
        header = ""
        for one in self.statements:
            indent = self.indent(one)
            if one.kind == "key" and one.base:
                return indent.removeprefix(header)
            header = indent
        return ""

    def spelling(self, part: str) -> str:
        """A part of a key as it is written first; containerd 1.x takes an escape in a key as it
        stands (observed)."""
        for one in self.statements:
            for known, raw in zip(reversed(one.path), reversed(one.raw), strict=False):
                if known == part and "\\" not in raw:
                    return raw
        return quote(part)


def ways(text: str, path: Path, wanted: Data) -> Iterator[Way]:
    """Ways to give the key at `path` the value that it has in the wanted data, or to remove it if
    these do not have it. New lines end with LF. To turn one table into another, call this for each
    of its parts."""
    sheet = _Sheet(text, scan.statements(text))
    value = get(wanted, path)
    one = sheet.owner(path)
    if one is None:
        if value is None:
            yield "lines out", lambda: _without_lines(sheet, path)
            return
        if not isinstance(value, dict):
            yield "tomlkit", lambda: _after(sheet, sheet.last(path[:-1]), path, value)
        if isinstance(value, dict) or len(path) > 1:
            yield "tomlkit, below a new header", lambda: _at_end(sheet, path, value)
        return
    old, size = sheet.lines(one), len(one.base)
    if value is None:
        # Inline tables that this leaves empty: the first proposal removes them, as `apply` does,
        # and the second one keeps them.
        empty = next(n for n in range(len(path) + 1) if get(wanted, path[:n]) is None)
        for end in [max(empty, len(one.path) + 1), len(path)]:
            rest = path[size:end] if one.path != path else path[size : size + 1]
            yield "tomlkit", partial(_changed, sheet, one, partial(_without, old, rest))
    else:
        for like, way in ((old, "tomlkit"), (_with_comma(old), "tomlkit after a comma")):
            new = partial(_with_value, like, path[size:], value)
            yield way, partial(_changed, sheet, one, new)
    anew = get(wanted, one.path)
    if anew is not None:
        lines = text[one.start : one.value.start] + scalar(anew) + text[one.value.stop : one.end]
        yield "value anew", lambda: _changed(sheet, one, lambda: lines)


# New keys and tables


def _after(sheet: _Sheet, one: Statement | None, path: Path, value: Any) -> str | None:
    """A key on the line after a statement of its table; at the root after `version`, if there, and
    without any key before the first table and the comment that is about it."""
    if len(path) == 1:
        one = next((s for s in sheet.statements if s.path == ("version",)), one)
    if one is not None:
        like, step = (one.raw, "") if one.kind == "key" else ((), sheet.step)
        line = _beside(like, path[len(one.base) :], value)
        return _insert(sheet.text, one.end, sheet.indent(one) + step + line)
    if len(path) > 1:
        return None
    lines = sheet.text[: sheet.statements[0].start].split("\n")[:-1] if sheet.statements else []
    while lines and lines[-1].lstrip().startswith("#"):
        lines.pop()
    at = sum(len(line) + 1 for line in lines) if sheet.statements else len(sheet.text)
    return _insert(sheet.text, at, _beside((), path, value))


def _at_end(sheet: _Sheet, path: Path, value: Any) -> str:
    """A table, or the table of a key, at the end of the text, with headers of its own."""
    table, path = (value, path) if isinstance(value, dict) else ({path[-1]: value}, path[:-1])
    blocks = []
    for inner, keys in tables(table, path):
        indent = sheet.header_indent(inner)
        lines = [f"[{'.'.join(map(sheet.spelling, inner))}]\n"]
        lines += [sheet.step + _beside((), (key,), item) for key, item in keys.items()]
        blocks.append("".join(indent + line for line in lines))
    text = sheet.text
    gap = "\n" if text.strip() and not text.endswith("\n\n") else ""
    return _insert(text, len(text), gap + "\n".join(blocks))


def _insert(text: str, at: int, lines: str) -> str:
    gap = "\n" if at and text[at - 1] != "\n" else ""
    return text[:at] + gap + lines + text[at:]


def _beside(raw: Path, path: Path, value: Any) -> str:
    """A new statement, written like one whose key has the parts `raw`."""
    like = f"{'.'.join(raw)} = 0\n" if raw else ""
    return _with_value(like, path, value).removeprefix(like)


# Statements that are there


def _changed(sheet: _Sheet, one: Statement, change: Callable[[], str]) -> str:
    """The text with other lines for a statement, and comments that these lack above them."""
    old, new = sheet.lines(one), change()
    kept = scan.comments(new) if new else scan.comments(sheet.text[one.value.stop : one.end])
    above = _comment_lines(sheet, one, scan.comments(old) - kept)
    return sheet.text[: one.start] + above + new + sheet.text[one.end :]


def _comment_lines(sheet: _Sheet, one: Statement, comments: Counter[str]) -> str:
    """Comments, each on a line indented as the statement is."""
    return "".join(f"{sheet.indent(one)}{comment}\n" for comment in comments.elements())


def _without_lines(sheet: _Sheet, path: Path) -> str:
    """All statements of a key or a table taken out, and the empty lines above its headers; lines
    with a comment of their own stay."""
    text, kept, at = sheet.text, "", 0
    for one in sheet.statements:
        if one.path[: len(path)] == path:
            above = text[at : one.start]
            if one.kind != "key":
                code = len(above.rstrip())
                above = above[: above.index("\n", code) + 1] if code else ""
            kept += above + _comment_lines(sheet, one, scan.comments(text[one.value]))
            at = one.end
    return kept + text[at:]


# One statement, changed by tomlkit. `text` is its whole lines, and so is the result. `path` counts
# from the table that the statement stands in. Each raises one of ERRORS if tomlkit cannot do it.


def _with_value(text: str, path: Path, value: Any) -> str:
    """The statement with another value: for its own key, or for one in its inline table."""
    document, table, (key, *below) = _innermost(text, path)
    for part in reversed(below):
        value = {part: value}
    old = table.get(key)
    if not (isinstance(old, list) and isinstance(value, list) and _relist(old, value)):
        _put(table, key, value)
    return tomlkit.dumps(document)


def _without(text: str, path: Path) -> str:
    """The statement without the key at `path`; an empty text if that is all of it."""
    document, table, (key, *_) = _innermost(text, path)
    if isinstance(table, InlineTable):  # of the spaces around it, those behind it remain
        body = table.value.body
        at = next((at for at, (other, _) in enumerate(body) if other == key), 0)
        if at and isinstance(body[at - 1][1], Whitespace) and body[at - 1][1].as_string() != ",":
            body[at - 1] = (None, tomlkit.ws(""))
    del table[key]
    return tomlkit.dumps(document)


def _with_comma(text: str) -> str:
    """The statement with a comma behind the last item of its list: tomlkit forgets that comma if
    a comment follows the item."""
    code = [t for t in TOKEN.finditer(text) if not (t[0][0] == "#" or t[0].isspace())]
    if len(code) < 2 or code[-1][0] != "]" or code[-2][0] in ("[", ","):
        return text
    at = code[-2].end()
    return f"{text[:at]},{text[at:]}"


def _innermost(text: str, path: Path) -> tuple[Any, Any, Path]:
    """The parsed text, its innermost table on a path that has keys, and the rest of the path."""
    if "{" in text and sum(1 for _ in TOKEN.finditer(text)) > _MOST_TOKENS:
        raise ValueError("too long for tomlkit")
    document = tomlkit.parse(text)
    table: Any = document
    while len(path) > 1 and isinstance(table.get(path[0]), dict) and table[path[0]]:
        table, path = table[path[0]], path[1:]
    return document, table, path


def _put(table: Any, key: str, value: Any) -> None:
    """Set a key; a new one in an inline table is spaced, or on a line, like the others there."""
    item = tomlkit.value(scalar(value))
    body = table.value.body if isinstance(table, InlineTable) and key not in table else ()
    spaces = [part.s if isinstance(part, Whitespace) else "" for _, part in body] or [""]
    first, last = spaces[0], spaces[-1]
    if "\n" in last:
        item.trivia.indent = first.rpartition("\n")[2]
    table[key] = item
    if last and "," not in last:
        table.append(None, tomlkit.ws(last))


def _relist(old: Any, new: list[Any]) -> bool:
    """Add items at the end of a list, or take some out; False if neither makes the new one."""
    items = old.unwrap()
    if new[: len(items)] != items:
        gone, kept = [], 0
        for number, item in enumerate(items):
            if kept < len(new) and item == new[kept]:
                kept += 1
            else:
                gone.append(number)
        if kept < len(new) or len(gone) > _MOST_GONE:
            return False
        for number in reversed(gone):
            del old[number]
    for item in new[len(old) :]:
        old.append(tomlkit.value(scalar(item)))
    return True
