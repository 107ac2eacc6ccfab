"""Ways to write one edit into a TOML text, most natural first.

Invariant: every proposal differs from the text in the lines or entries of the edited key alone,
plus new ones in the style of their neighbours; comments that would go move to lines of their own,
but for those behind what is taken out. Whether a proposal means what was wanted is not judged here.

A key goes where its table is: into the braces of an inline table, below a [header], beside dotted
keys; else its table gets a header at the end of the file, where it cannot come between a comment
and what the comment is about.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agent.toml import scan
from agent.toml import value as tomlvalue
from agent.toml.scan import Span, Statement
from agent.toml.write import Path, Style, render, scalar


@dataclass(frozen=True, slots=True)
class _Sheet:
    """A text and the places of its statements."""

    text: str
    statements: tuple[Statement, ...]

    def indent(self, one: Statement) -> str:
        return self.text[one.start : one.code]


def _sheet(text: str) -> _Sheet:
    return _Sheet(text, scan.statements(text))


def setting(text: str, path: Path, old: Any, value: Any) -> Iterator[str]:
    """Texts in which the key at `path` has a value; `old` is the one that it has, None if none.

    A table of several statements that is to become another one is not for here: its parts are.
    """
    sheet = _sheet(text)
    if old is None:
        yield from _adding(sheet, path, value)
        return
    place = _place(sheet, path)
    if place is None:
        if not (isinstance(old, dict) and isinstance(value, dict)):
            yield from _adding(_sheet(_without_statements(sheet, path)), path, value)
        return
    if isinstance(old, list) and isinstance(value, list):
        changed = tomlvalue.relisted(text, place, old, value)
        if changed is not None:
            yield changed
    yield _replaced(sheet, path, place, scalar(value))


def removing(text: str, path: Path, empty: int) -> Iterator[str]:
    """Texts without the key at `path`. Tables on that path with `empty` parts or more hold nothing
    else; inline they go too."""
    sheet = _sheet(text)
    size = len(path)
    if any(one.path[:size] == path for one in sheet.statements):
        yield _without_statements(sheet, path)
        return
    for one in sheet.statements:
        if tomlvalue.holds(text, one.path, one.value, path):
            for length in sorted({max(empty, len(one.path) + 1), size}):
                yield tomlvalue.without_entry(text, one.value, path[len(one.path) : length])


def _adding(sheet: _Sheet, path: Path, value: Any) -> Iterator[str]:
    for one in sheet.statements:
        if tomlvalue.holds(sheet.text, one.path, one.value, path):
            yield tomlvalue.with_entry(sheet.text, one.value, path[len(one.path) :], value)
            return
    if not isinstance(value, dict):
        for way in (_into_block, _beside):
            proposal = way(sheet, path, value)
            if proposal is not None:
                yield proposal
    if len(path) > 1 or isinstance(value, dict):
        yield _at_end(sheet, path, value)
    yield _dotted_below(sheet, path, value)


# Lines


def _into_block(sheet: _Sheet, path: Path, value: Any) -> str | None:
    """A line below the header of its table, after the keys that are there."""
    above = path[:-1]
    if not above:
        return _into_root(sheet, path, value)
    keys, head = _block(sheet, above)
    if keys:
        return _insert(
            sheet, keys[-1].end, [_style(sheet).line(path[-1:], value, sheet.indent(keys[-1]))]
        )
    if head is None:
        return None
    style = _style(sheet)
    line = style.line(path[-1:], value, sheet.indent(head) + style.key_step)
    return _insert(sheet, head.end, [line])


def _block(sheet: _Sheet, path: Path) -> tuple[list[Statement], Statement | None]:
    """The keys below the header of a table, and the header."""
    head = next((s for s in sheet.statements if s.kind == "table" and s.path == path), None)
    if head is None:
        return [], None
    return [s for s in sheet.statements if s.kind == "key" and s.base == path], head


def _into_root(sheet: _Sheet, path: Path, value: Any) -> str:
    """A line after `version`, else after the other keys, else before the first table."""
    keys = [one for one in sheet.statements if one.kind == "key" and not one.base]
    line = _style(sheet).line(path, value)
    if keys:
        after = next((one for one in keys if one.path == ("version",)), keys[-1])
        return _insert(sheet, after.end, [sheet.indent(after) + line])
    lines = sheet.text.splitlines(keepends=True)
    at = len(lines)
    if sheet.statements:
        at = sheet.text.count("\n", 0, sheet.statements[0].start)
        while at and lines[at - 1].lstrip().startswith("#"):
            at -= 1  # the comment belongs to the table below it
    return _insert(sheet, len("".join(lines[:at])), [line])


def _beside(sheet: _Sheet, path: Path, value: Any) -> str | None:
    """A line with a dotted key, after the dotted keys that make its table."""
    size = len(path) - 1
    for one in reversed(sheet.statements):
        if one.kind == "key" and len(one.base) < size and one.path[:size] == path[:size]:
            line = _style(sheet).line(path[len(one.base) :], value, sheet.indent(one))
            return _insert(sheet, one.end, [line])
    return None


def _dotted_below(sheet: _Sheet, path: Path, value: Any) -> str:
    """A line with a dotted key in the nearest table above that has a header."""
    for size in range(len(path) - 1, 0, -1):
        keys, head = _block(sheet, path[:size])
        if head is not None:
            after = keys[-1] if keys else head
            line = _style(sheet).line(path[size:], value, sheet.indent(after))
            return _insert(sheet, after.end, [line])
    return _into_root(sheet, path, value)


def _at_end(sheet: _Sheet, path: Path, value: Any) -> str:
    """A table with a header of its own, as the last one."""
    text, style = sheet.text, _style(sheet)
    table = value if isinstance(value, dict) else {path[-1]: value}
    path = path if isinstance(value, dict) else path[:-1]
    lines = render(table, path, style, _table_indent(sheet, path, style)).splitlines()
    gap = [] if not text.strip() or text.endswith(("\n\n", "\n\r\n")) else [""]
    return _insert(sheet, len(text), [*gap, *lines])


def _insert(sheet: _Sheet, at: int, lines: list[str]) -> str:
    text = sheet.text
    near = text.rfind("\n", 0, at)
    near = text.find("\n") if near < 0 else near
    newline = "\r\n" if near > 0 and text[near - 1] == "\r" else "\n"
    block = "".join(line + newline for line in lines)
    if at and text[at - 1] != "\n":
        block = newline + block
    return text[:at] + block + text[at:]


def _without_statements(sheet: _Sheet, path: Path) -> str:
    """All lines of a key or a table taken out, and the empty ones above its headers; lines with a
    comment of their own stay."""
    text, size = sheet.text, len(path)
    kept, at = "", 0
    for one in sheet.statements:
        if one.path[:size] != path:
            continue
        before = text[at : one.start]
        if one.kind != "key":
            before = re.sub(r"(?:(?<=\n)|\A)(?:[ \t]*\r?\n)+\Z", "", before)
        kept += before + _hoisted(sheet, one)
        at = one.end
    return kept + text[at:]


def _hoisted(sheet: _Sheet, one: Statement) -> str:
    """The comments inside a value, each as a line."""
    newline = "\r\n" if sheet.text[: one.end].endswith("\r\n") else "\n"
    found = scan.within(sheet.text, one.value)
    return "".join(f"{sheet.indent(one)}{comment}{newline}" for comment in found)


# Style


def _style(sheet: _Sheet) -> Style:
    """How most of the text is written."""
    spelling: dict[str, str] = {}
    tables: dict[Path, str] = {}
    steps: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    for one in sheet.statements:
        names = one.path if one.kind != "key" else one.path[len(one.base) :]
        for part, raw in zip(names, one.raw, strict=True):
            if "\\" not in raw:  # containerd 1.x takes an escape in a key as it stands (observed)
                spelling.setdefault(part, raw)
        indent = sheet.indent(one)
        if one.kind == "key":
            _count(inside, tables.get(one.base), indent)
        else:
            above = (tables.get(one.path[:n]) for n in range(len(one.path) - 1, 0, -1))
            _count(steps, next((a for a in above if a is not None), None), indent)
            tables[one.path] = indent
    return Style(spelling, _usual(steps), _usual(inside))


def _count(steps: Counter[str], outer: str | None, inner: str) -> None:
    if outer is not None and inner.startswith(outer):
        steps[inner[len(outer) :]] += 1


def _usual(steps: Counter[str]) -> str:
    return steps.most_common(1)[0][0] if steps else ""


def _table_indent(sheet: _Sheet, path: Path, style: Style) -> str:
    """The indentation of a new header: that of its like, else a step more than the table's that
    it is in."""
    tables = {one.path: sheet.indent(one) for one in sheet.statements if one.kind != "key"}
    for other, indent in reversed(tables.items()):
        if other[:-1] == path[:-1]:
            return indent
    for size in range(len(path) - 1, 0, -1):
        if path[:size] in tables:
            return tables[path[:size]] + style.table_step
    return ""


# Values


def _place(sheet: _Sheet, path: Path) -> Span | None:
    """Where the value of a key is, if it is in one place."""
    for one in sheet.statements:
        if one.kind == "key" and one.path == path:
            return one.value
        if tomlvalue.holds(sheet.text, one.path, one.value, path):
            return tomlvalue.place(sheet.text, one.value, path[len(one.path) :])
    return None


def _replaced(sheet: _Sheet, path: Path, place: Span, new: str) -> str:
    """Another value in its place; comments that the old one had go above it."""
    text = sheet.text
    one = next(one for one in sheet.statements if one.start <= place.start < one.end)
    above = _hoisted(sheet, one) if one.path == path else ""
    return "".join([
        text[: one.start], above, text[one.start : place.start], new, text[place.end :],
    ])  # fmt: skip
