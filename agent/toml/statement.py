"""One statement of TOML, a key with its value, changed by tomlkit.

tomlkit gets the lines of one statement, never a file. With whole files it writes wrong data for one
valid document in five (tables out of order, dotted keys beside headers), needs seconds for a
thousand tables, and puts new keys below comments that are about something else.

Invariant: `text` is the whole lines of a statement. The result is whole lines too, and differs only
in the key at `path`. `path` counts from the table that the statement stands in. `edit` checks
whether the result has the desired meaning. tomlkit raises one of `ERRORS` if it cannot do it.
"""

from __future__ import annotations

from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import InlineTable, Whitespace

from agent.toml.dialect import TOKEN
from agent.toml.write import Path, scalar

# tomlkit raises what its lists and dictionaries raise, too.
ERRORS = (
    TOMLKitError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    RecursionError,
)  # fmt: skip

_MOST_TOKENS = 20_000  # with an inline table: each dotted key in one takes longer than the last
_MOST_GONE = 100  # items that are taken out of a list one by one: each time tomlkit copies the list


def with_value(text: str, path: Path, value: Any) -> str:
    """The statement with another value: for its own key, or for one in its inline table."""
    document, table, (key, *below) = _innermost(text, path)
    for part in reversed(below):
        value = {part: value}
    old = table.get(key)
    if not (isinstance(old, list) and isinstance(value, list) and _relist(old, value)):
        _put(table, key, value)
    return tomlkit.dumps(document)


def without(text: str, path: Path) -> str:
    """The statement without the key at `path`; an empty text if that is all of it."""
    document, table, (key, *_) = _innermost(text, path)
    if isinstance(table, InlineTable):  # of the spaces around it, those behind it remain
        body = table.value.body
        at = next((at for at, (other, _) in enumerate(body) if other == key), 0)
        if at and isinstance(body[at - 1][1], Whitespace) and body[at - 1][1].as_string() != ",":
            body[at - 1] = (None, tomlkit.ws(""))
    del table[key]
    return tomlkit.dumps(document)


def beside(raw: Path, path: Path, value: Any) -> str:
    """A new statement, written like one whose key has the parts `raw`."""
    like = f"{'.'.join(raw)} = 0\n" if raw else ""
    return with_value(like, path, value).removeprefix(like)


def with_comma(text: str) -> str:
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
