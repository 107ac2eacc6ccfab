"""The place of an edit in a TOML text: an existing statement, or the position for a new one.

Invariant: a proposed text differs from the original only in the lines of the edited key, and in new
lines in the style of their neighbours. Comments that would be lost move to lines of their own,
except for those behind a removed value. `document.edit` checks whether a proposed text has the
desired data.

A key is added where its table is: into the braces of an inline table, below a [header], or beside
dotted keys. Otherwise its table gets a header at the end of the file, where it cannot separate a
comment from its key.

tomlkit writes keys and values. It gets the lines of one statement, never a whole file. With whole
files it writes wrong data for one valid document in five (tables out of order, dotted keys beside
headers), needs seconds for a thousand tables, and puts new keys below comments on other keys.
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

# Errors of tomlkit, and those of its lists and dictionaries.
ERRORS = (
    TOMLKitError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    RecursionError,
)  # fmt: skip

_MOST_TOKENS = 20_000  # with an inline table, whose dotted keys take quadratic time
_MOST_REMOVED = 100  # items of a list, because tomlkit copies the list for each

# (name, function) of a way to write an edit. The function returns the new text, or None if the way
# does not fit, and may raise one of ERRORS.
Way: TypeAlias = tuple[str, Callable[[], str | None]]


@dataclass(frozen=True)
class _Sheet:
    """A text and its statements."""

    text: str
    statements: tuple[Statement, ...]

    def lines(self, statement: Statement) -> str:
        return self.text[statement.start : statement.end]

    def indent(self, statement: Statement) -> str:
        return self.text[statement.start : statement.code]

    def owner(self, path: Path) -> Statement | None:
        """The statement that has the value of the key at `path`: its own, or that of an inline
        table above it; None if there is none."""
        for statement in self.statements:
            size = len(statement.path)
            if statement.kind == "key" and statement.path == path[:size]:
                has_key = size == len(path) or self.text[statement.value.start] == "{"
                return statement if has_key else None
        return None

    def last(self, path: Path) -> Statement | None:
        """The last statement of a table: a key below its header or a dotted key, else its
        header."""
        found, size = None, len(path)
        for statement in self.statements:
            is_inside = statement.path[:size] == path and len(statement.base) <= size
            if is_inside and statement.kind != "array":
                found = statement
        return found

    def header_indent(self, path: Path) -> str:
        """The indentation for a new header: that of headers with as many parts; else one step more
        than that of headers with fewer parts, if these are indented."""
        indents: dict[int, str] = {}
        for statement in self.statements:
            if statement.kind != "key":
                indents.setdefault(len(statement.path), self.indent(statement))
        above = max((size for size in indents if size < len(path)), default=None)
        outer = indents[above] if above else ""
        return indents.get(len(path), outer and outer + self.step)

    @cached_property
    def step(self) -> str:
        """The additional indentation of the first key below a header."""
        header = ""
        for statement in self.statements:
            indent = self.indent(statement)
            if statement.kind == "key" and statement.base:
                return indent.removeprefix(header)
            header = indent
        return ""

    def spelling(self, part: str) -> str:
        """A part of a key in the spelling of the text. A spelling with escapes is not used, because
        containerd 1.x reads an escape in a key literally (observed)."""
        for statement in self.statements:
            for known, raw in zip(reversed(statement.path), reversed(statement.raw), strict=False):
                if known == part and "\\" not in raw:
                    return raw
        return quote(part)


def ways(text: str, path: Path, desired: Data) -> Iterator[Way]:
    """The ways to give the key at `path` the value that it has in the desired data, or to remove it
    if they lack it. New lines end with LF. To change a table, call this for each key in it."""
    sheet = _Sheet(text, scan.statements(text))
    value = get(desired, path)
    statement = sheet.owner(path)
    if statement is None:
        if value is None:
            yield "lines out", lambda: _without_lines(sheet, path)
            return
        if not isinstance(value, dict):
            yield "tomlkit", lambda: _after(sheet, sheet.last(path[:-1]), path, value)
        if isinstance(value, dict) or len(path) > 1:
            yield "tomlkit, below a new header", lambda: _at_end(sheet, path, value)
        return
    old, size = sheet.lines(statement), len(statement.base)
    if value is None:
        # The first proposal also removes inline tables that become empty, as `apply` does. The
        # second one keeps them.
        empty = next(n for n in range(len(path) + 1) if get(desired, path[:n]) is None)
        for end in [max(empty, len(statement.path) + 1), len(path)]:
            rest = path[size:end] if statement.path != path else path[size : size + 1]
            yield "tomlkit", partial(_changed, sheet, statement, partial(_without, old, rest))
    else:
        for like, way in ((old, "tomlkit"), (_with_comma(old), "tomlkit after a comma")):
            new = partial(_with_value, like, path[size:], value)
            yield way, partial(_changed, sheet, statement, new)
    rewritten = get(desired, statement.path)
    if rewritten is not None:
        lines = (
            text[statement.start : statement.value.start]
            + scalar(rewritten)
            + text[statement.value.stop : statement.end]
        )
        yield "rewritten value", lambda: _changed(sheet, statement, lambda: lines)


# New keys and tables


def _after(sheet: _Sheet, statement: Statement | None, path: Path, value: Any) -> str | None:
    """The text with a key on the line after a statement of its table. A root key comes after
    `version`, else after the last root key, else before the first table and its comment. None if
    the table has no statement."""
    if len(path) == 1:
        statement = next((s for s in sheet.statements if s.path == ("version",)), statement)
    if statement is not None:
        like, step = (statement.raw, "") if statement.kind == "key" else ((), sheet.step)
        line = _beside(like, path[len(statement.base) :], value)
        return _insert(sheet.text, statement.end, sheet.indent(statement) + step + line)
    if len(path) > 1:
        return None
    lines = sheet.text[: sheet.statements[0].start].split("\n")[:-1] if sheet.statements else []
    while lines and lines[-1].lstrip().startswith("#"):
        lines.pop()
    at = sum(len(line) + 1 for line in lines) if sheet.statements else len(sheet.text)
    return _insert(sheet.text, at, _beside((), path, value))


def _at_end(sheet: _Sheet, path: Path, value: Any) -> str:
    """The text with a table, or with the table of a key, under new headers at its end."""
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
    """The line of a new key, spelled like a neighbour whose key has the parts `raw`."""
    like = f"{'.'.join(raw)} = 0\n" if raw else ""
    return _with_value(like, path, value).removeprefix(like)


# Existing statements


def _changed(sheet: _Sheet, statement: Statement, change: Callable[[], str]) -> str:
    """The text with new lines for a statement. Comments that the new lines lack are put above
    them."""
    old, new = sheet.lines(statement), change()
    kept = scan.comments(new or sheet.text[statement.value.stop : statement.end])
    above = _comment_lines(sheet, statement, scan.comments(old) - kept)
    return sheet.text[: statement.start] + above + new + sheet.text[statement.end :]


def _comment_lines(sheet: _Sheet, statement: Statement, comments: Counter[str]) -> str:
    """Comments, each on its own line with the statement's indentation."""
    return "".join(f"{sheet.indent(statement)}{comment}\n" for comment in comments.elements())


def _without_lines(sheet: _Sheet, path: Path) -> str:
    """The text without the statements of a key or a table, and without the empty lines above its
    headers. Comments on their own lines stay."""
    text, kept, at = sheet.text, "", 0
    for statement in sheet.statements:
        if statement.path[: len(path)] == path:
            above = text[at : statement.start]
            if statement.kind != "key":
                code = len(above.rstrip())
                above = above[: above.index("\n", code) + 1] if code else ""
            kept += above + _comment_lines(sheet, statement, scan.comments(text[statement.value]))
            at = statement.end
    return kept + text[at:]


# One statement, changed by tomlkit. The argument `text` and the result are the whole lines of the
# statement. `path` is relative to the statement's table. Each function may raise one of ERRORS.


def _with_value(text: str, path: Path, value: Any) -> str:
    """The statement with another value for its key, or for a key in its inline table."""
    document, table, (key, *below) = _innermost(text, path)
    for part in reversed(below):
        value = {part: value}
    old = table.get(key)
    if not (isinstance(old, list) and isinstance(value, list) and _relist(old, value)):
        _put(table, key, value)
    return tomlkit.dumps(document)


def _without(text: str, path: Path) -> str:
    """The statement without the key at `path`; "" if nothing remains."""
    document, table, (key, *_) = _innermost(text, path)
    if isinstance(table, InlineTable):  # remove the spaces before the key, too
        body = table.value.body
        at = next((at for at, (other, _) in enumerate(body) if other == key), 0)
        if at and isinstance(body[at - 1][1], Whitespace) and body[at - 1][1].as_string() != ",":
            body[at - 1] = (None, tomlkit.ws(""))
    del table[key]
    return tomlkit.dumps(document)


def _with_comma(text: str) -> str:
    """The statement with a comma after the last item of its list. Without it, tomlkit forgets to
    add one if a comment follows the item."""
    code = [t for t in TOKEN.finditer(text) if not (t[0][0] == "#" or t[0].isspace())]
    if len(code) < 2 or code[-1][0] != "]" or code[-2][0] in ("[", ","):
        return text
    at = code[-2].end()
    return f"{text[:at]},{text[at:]}"


def _innermost(text: str, path: Path) -> tuple[Any, Any, Path]:
    """(parsed text, innermost non-empty table on the path, rest of the path). Raises ValueError for
    a text that takes tomlkit too long."""
    if "{" in text and sum(1 for _ in TOKEN.finditer(text)) > _MOST_TOKENS:
        raise ValueError("too long for tomlkit")
    document = tomlkit.parse(text)
    table: Any = document
    while len(path) > 1 and isinstance(table.get(path[0]), dict) and table[path[0]]:
        table, path = table[path[0]], path[1:]
    return document, table, path


def _put(table: Any, key: str, value: Any) -> None:
    """Set a key. A new key in an inline table gets the spaces or the line break of its
    neighbours."""
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
    """Turn a list of tomlkit into `new` by adding items at its end or removing items. Returns False
    if that is not possible."""
    items = old.unwrap()
    if new[: len(items)] != items:
        removed, kept = [], 0
        for number, item in enumerate(items):
            if kept < len(new) and item == new[kept]:
                kept += 1
            else:
                removed.append(number)
        if kept < len(new) or len(removed) > _MOST_REMOVED:
            return False
        for number in reversed(removed):
            del old[number]
    for item in new[len(old) :]:
        old.append(tomlkit.value(scalar(item)))
    return True
