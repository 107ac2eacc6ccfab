"""Edits inside one value: an entry of an inline table, an item of a list.

Invariant: what is not that entry or item stays as it is written, comments between items included.
`text` is always the whole text, and what is returned is a whole text again.
"""

from __future__ import annotations

import re
from typing import Any

from agent.toml import scan
from agent.toml.scan import Entry, Span
from agent.toml.write import PLAIN, Path, scalar


def holds(text: str, above: Path, value: Span, path: Path) -> bool:
    """Is the value at `above` an inline table on the way to `path`?"""
    size = len(above)
    return size < len(path) and path[:size] == above and text.startswith("{", value.start)


def place(text: str, value: Span, rest: Path) -> Span | None:
    """Where the value of the key at `rest` in an inline table is, if it is in one place."""
    for entry in scan.entries(text, value.start)[1]:
        if entry.path == rest:
            return entry.value
        if holds(text, entry.path, entry.value, rest):
            return place(text, entry.value, rest[len(entry.path) :])
    return None


def with_entry(text: str, value: Span, rest: Path, new: Any) -> str:
    """An entry more in an inline table, in the innermost one that is there."""
    group, entries = scan.entries(text, value.start)
    for entry in entries:
        if holds(text, entry.path, entry.value, rest):
            return with_entry(text, entry.value, rest[len(entry.path) :], new)
    # Where dotted keys make a part of the way, the new key has to be a dotted one too.
    size = 1 + max((_shared(entry, rest[:-1]) for entry in entries), default=0)
    for part in reversed(rest[size:]):
        new = {part: new}
    word = PLAIN.line(rest[:size], new)
    if not entries:
        return f"{text[: value.start]}{{ {word} }}{text[group.close + 1 :]}"
    return _with_item(text, value.start, word)


def _shared(entry: Entry, path: Path) -> int:
    size = 0
    while size < min(len(path), len(entry.path)) and path[size] == entry.path[size]:
        size += 1
    return size


def without_entry(text: str, value: Span, rest: Path) -> str:
    """An inline table without the entries that are the key at `rest`, or below it."""
    entries = scan.entries(text, value.start)[1]
    for entry in entries:
        if holds(text, entry.path, entry.value, rest):
            return without_entry(text, entry.value, rest[len(entry.path) :])
    for number in reversed(range(len(entries))):
        if entries[number].path[: len(rest)] == rest:
            text = _without_item(text, value.start, number)
    return text


def _without_item(text: str, at: int, number: int) -> str:
    """A list or an inline table without one item and the comma that goes with it."""
    group = scan.group(text, at)
    item = group.items[number]
    if len(group.items) == 1 and not scan.within(text, Span(at, group.close + 1)):
        return text[: at + 1] + text[group.close :]
    comma = group.commas[number] if number < len(group.commas) else None
    if comma is None and number:
        before, comma_before = group.items[number - 1].end, group.commas[number - 1]
        if "\n" not in text[before : item.start]:
            return text[:before] + text[item.end :]
        text = text[:comma_before] + text[comma_before + 1 :]
        item = Span(item.start - 1, item.end - 1)
    end = item.end if comma is None else comma + 1
    end += len(text[end:]) - len(text[end:].lstrip(" \t"))
    line = text.rfind("\n", 0, item.start) + 1
    rest = re.compile(r"\r?\n").match(text, end)
    if rest and line > at and not text[line : item.start].strip():
        return text[:line] + text[rest.end() :]
    return text[: item.start] + text[end:]


def relisted(text: str, place: Span, old: list[Any], new: list[Any]) -> str | None:
    """A list with items added at its end, or with items taken out; all others stay as written."""
    if len(new) > len(old) and new[: len(old)] == old:
        for item in new[len(old) :]:
            text = _with_item(text, place.start, scalar(item))
        return text
    gone, rest = [], list(new)
    for number, item in enumerate(old):
        if rest and rest[0] == item:
            rest.pop(0)
        else:
            gone.append(number)
    if rest:
        return None
    for number in reversed(gone):
        text = _without_item(text, place.start, number)
    return text


def _with_item(text: str, at: int, item: str) -> str:
    """A list or an inline table with one item more: on a line of its own where the bracket closes
    on one (a table does so in TOML 1.1 only)."""
    group = scan.group(text, at)
    if not group.items:
        if not scan.within(text, Span(at, group.close + 1)):
            return f"{text[: at + 1]}{item}{text[group.close :]}"
        return f"{text[: group.close]}{item}{text[group.close :]}"
    last, comma = group.items[-1].end, len(group.commas) == len(group.items)
    after = group.commas[-1] + 1 if comma else last
    close = text.rfind("\n", after, group.close) + 1
    if not close:
        word = f" {item}" if comma else f", {item}"
        return text[:after] + word + text[after:]
    start = text.rfind("\n", 0, group.items[-1].start) + 1
    indent = re.compile(r"[ \t]*").match(text, start)
    assert indent is not None
    newline = "\r\n" if text[:close].endswith("\r\n") else "\n"
    line = (indent[0] if start > at else "  ") + item + ("," if comma else "") + newline
    return text[:last] + ("" if comma else ",") + text[last:close] + line + text[close:]
