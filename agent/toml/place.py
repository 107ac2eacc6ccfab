"""Where an edit goes in a TOML text: the statement that it is about, or where a new one belongs.

Invariant: every proposal differs from the text in the lines of the edited key alone, plus new ones
in the style of their neighbours. Comments that would be lost move to lines of their own, except for
those behind a removed value. `edit` checks whether a proposal has the desired meaning.

A key goes where its table is: into the braces of an inline table, below a [header], beside dotted
keys; else its table gets a header at the end of the file, where it cannot come between a comment
and what the comment is about. tomlkit writes keys and values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from agent.toml import scan, statement
from agent.toml.dialect import Data
from agent.toml.ops import get
from agent.toml.scan import Statement
from agent.toml.write import Path, quote, scalar, tables

# The name of a way to write an edit, and the way itself. It returns None if it does not fit, and
# may raise one of `statement.ERRORS`.
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


def ways(text: str, path: Path, wanted: Data) -> Iterator[Way]:
    """Ways to give the key at `path` the value that it has in the wanted data, or to remove it if
    these do not have it. New lines end with LF. To turn one table into another, call this for each
    of its parts."""
    sheet = _Sheet(text, scan.statements(text))
    value = get(wanted, path)
    one = sheet.owner(path)
    if one is None:
        if value is not None:
            yield from _adding(sheet, path, value)
        else:
            yield "lines out", lambda: _without_lines(sheet, path)
        return
    old, size = sheet.lines(one), len(one.base)
    if value is None:
        # Inline tables that this leaves empty: the first proposal removes them, as `apply` does,
        # and the second one keeps them.
        empty = next(n for n in range(len(path) + 1) if get(wanted, path[:n]) is None)
        for end in [max(empty, len(one.path) + 1), len(path)]:
            rest = path[size:end] if one.path != path else path[size : size + 1]
            yield "tomlkit", partial(_changed, sheet, one, partial(statement.without, old, rest))
    else:
        for like, way in ((old, "tomlkit"), (statement.with_comma(old), "tomlkit after a comma")):
            new = partial(statement.with_value, like, path[size:], value)
            yield way, partial(_changed, sheet, one, new)
    anew = get(wanted, one.path)
    if anew is not None:
        start, end = one.value.start - one.start, one.value.end - one.start
        lines = old[:start] + scalar(anew) + old[end:]
        yield "value anew", lambda: _changed(sheet, one, lambda: lines)


# New keys and tables


def _adding(sheet: _Sheet, path: Path, value: Any) -> Iterator[Way]:
    if not isinstance(value, dict):
        yield "tomlkit", lambda: _after(sheet, sheet.last(path[:-1]), path, value)
    if isinstance(value, dict) or len(path) > 1:
        yield "tomlkit, below a new header", lambda: _at_end(sheet, path, value)


def _after(sheet: _Sheet, one: Statement | None, path: Path, value: Any) -> str | None:
    """A key on the line after a statement of its table; at the root after `version`, if there, and
    without any key before the first table and the comment that is about it."""
    if len(path) == 1:
        one = next((s for s in sheet.statements if s.path == ("version",)), one)
    if one is not None:
        like, step = (one.raw, "") if one.kind == "key" else ((), _style(sheet).key_step)
        line = statement.beside(like, path[len(one.base) :], value)
        return _insert(sheet.text, one.end, sheet.indent(one) + step + line)
    if len(path) > 1:
        return None
    lines = sheet.text[: sheet.statements[0].start].split("\n")[:-1] if sheet.statements else []
    while lines and lines[-1].lstrip().startswith("#"):
        lines.pop()
    at = sum(len(line) + 1 for line in lines) if sheet.statements else len(sheet.text)
    return _insert(sheet.text, at, statement.beside((), path, value))


def _at_end(sheet: _Sheet, path: Path, value: Any) -> str:
    """A table, or the table of a key, at the end of the text, with headers of its own."""
    table, path = (value, path) if isinstance(value, dict) else ({path[-1]: value}, path[:-1])
    style, blocks = _style(sheet), []
    for inner, keys in tables(table, path):
        indent = style.indent(path) + style.table_step * (len(inner) - len(path))
        lines = [f"[{'.'.join(style.spelling.get(part) or quote(part) for part in inner)}]\n"]
        lines += [style.key_step + statement.beside((), (k,), v) for k, v in keys.items()]
        blocks.append("".join(indent + line for line in lines))
    text = sheet.text
    gap = "\n" if text.strip() and not text.endswith("\n\n") else ""
    return _insert(text, len(text), gap + "\n".join(blocks))


def _insert(text: str, at: int, lines: str) -> str:
    gap = "\n" if at and text[at - 1] != "\n" else ""
    return text[:at] + gap + lines + text[at:]


@dataclass(frozen=True)
class _Style:
    """How most of a text is written: the spelling of keys, the indentation of the headers that are
    there, and what is added to it for a table that is in another one, and for a key."""

    spelling: Mapping[str, str]
    indents: Mapping[Path, str]
    table_step: str
    key_step: str

    def indent(self, path: Path) -> str:
        """The indentation of a new header."""
        like = (self.indents[other] for other in self.indents if other[:-1] == path[:-1])
        above = _nearest(self.indents, path)
        return next(like, "" if above is None else above + self.table_step)


def _style(sheet: _Sheet) -> _Style:
    spelling: dict[str, str] = {}
    indents: dict[Path, str] = {}
    steps: Counter[tuple[bool, str]] = Counter()
    for one in sheet.statements:
        for part, raw in zip(one.path[-len(one.raw) :], one.raw, strict=True):
            if "\\" not in raw:  # containerd 1.x takes an escape in a key as it stands (observed)
                spelling.setdefault(part, raw)
        is_key, indent = one.kind == "key", sheet.indent(one)
        outer = indents.get(one.base) if is_key else _nearest(indents, one.path)
        if outer is not None and indent.startswith(outer):
            steps[is_key, indent[len(outer) :]] += 1
        if not is_key:
            indents[one.path] = indent
    usual = dict(step for step, _ in reversed(steps.most_common()))
    return _Style(spelling, indents, usual.get(False, ""), usual.get(True, ""))


def _nearest(indents: Mapping[Path, str], path: Path) -> str | None:
    """The indentation of the innermost table on a path that has a header."""
    outer = (path[:size] for size in reversed(range(1, len(path))))
    return next((indents[path] for path in outer if path in indents), None)


# Statements that are there


def _changed(sheet: _Sheet, one: Statement, change: Callable[[], str]) -> str:
    """The text with other lines for a statement, and comments that these lack above them."""
    old, new = sheet.lines(one), change()
    kept = scan.comments(new) if new else scan.comments(sheet.text[one.value.end : one.end])
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
            kept += above
            inside = scan.comments(text[one.value.start : one.value.end])
            kept += _comment_lines(sheet, one, inside)
            at = one.end
    return kept + text[at:]
