"""Surgical edits of TOML files, behind a guard.

Invariant: the text that `edit` returns parses, with the standard library, to exactly the data that
was wanted, and has every comment of the text that it was given; where no way of writing achieves
that, nothing is returned and the edit is refused. tomlkit alone writes wrong data for one valid
document in five (facts measured on 0.15.2), so it is only ever one of several proposals.
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from agent.data import dataclass
from agent.errors import Refused

Path: TypeAlias = tuple[str, ...]
Data: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Set:
    """Give the key at `path` this value; a table replaces whatever was there."""

    path: Path
    value: Any


@dataclass(frozen=True, slots=True)
class Unset:
    """Remove the key at `path`; absent is fine. Whether a table that this leaves empty stays in the
    text depends on its spelling; to every reader of these files it is the same."""

    path: Path


@dataclass(frozen=True, slots=True)
class Append:
    """Add `value` to the list at `path` unless it is in it; an absent list is made."""

    path: Path
    value: Any


Op: TypeAlias = Set | Unset | Append


def parse(data: bytes, name: str) -> Data:
    """TOML of a file's bytes. Raises Refused naming the file and the place of the error."""
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refused(f"cannot read {name}: byte {error.start} is not UTF-8; repair it") from error
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"cannot read {name}: it is not valid TOML: {error}; repair it") from error
    except RecursionError as error:
        raise Refused(f"cannot read {name}: it is nested too deeply; repair it") from error


def get(data: Any, path: Path, default: Any = None) -> Any:
    """The value at a path, or the default where a step is missing or not a table."""
    for part in path:
        if not isinstance(data, Mapping) or part not in data:
            return default
        data = data[part]
    return data


def apply(data: Data, ops: Iterable[Op]) -> Data:
    """What the operations mean, on plain data; the argument stays as it is.

    Raises Refused where a step of a path exists and is not a table, or a list is none.
    """
    result = copy.deepcopy(data)
    for op in ops:
        if isinstance(op, Unset):
            _unset(result, op.path)
            continue
        table = result
        for part in op.path[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise Refused(f"cannot set {dotted(op.path)}: {part} is not a table; repair it")
        key = op.path[-1]
        if isinstance(op, Set):
            table[key] = copy.deepcopy(op.value)
        elif not isinstance(table.setdefault(key, []), list):
            raise Refused(f"cannot extend {dotted(op.path)}: it is not a list; repair it")
        elif op.value not in table[key]:
            table[key].append(op.value)
    return result


def _unset(data: Any, path: Path) -> None:
    if not isinstance(data, dict) or path[0] not in data:
        return
    if len(path) == 1:
        del data[path[0]]
        return
    below = data[path[0]]
    if below:
        _unset(below, path[1:])
        if below == {}:
            del data[path[0]]


def edit(text: str, ops: Iterable[Op], name: str) -> str:
    """The text with the operations carried out, or the same text where they change nothing.

    Raises Refused, naming the file, where the result cannot be written faithfully.
    """
    current = parse(text.encode(), name)
    for op in ops:
        wanted = apply(current, [op])
        if not _identical(wanted, current):
            text = _propose(text, op, current, wanted, name)
            current = tomllib.loads(text)
    return text


def _propose(text: str, op: Op, data: Data, wanted: Data, name: str) -> str:
    crlf = "\r\n" in text
    comments = _comments(text)
    for way in (_append_table, _insert_root_key, _cut_table, _cut_line, _with_tomlkit):
        proposal = way(text, op, data)
        if proposal is None:
            continue
        if crlf:
            proposal = re.sub(r"(?<!\r)\n", "\r\n", proposal)
        try:
            found = tomllib.loads(proposal)
        except (tomllib.TOMLDecodeError, RecursionError):
            continue
        if isinstance(op, Unset):
            found, wanted = without_empty(found), without_empty(wanted)
        if _identical(found, wanted) and all(
            _comments(proposal).get(line, 0) >= count for line, count in comments.items()
        ):
            return proposal
    raise Refused(
        f"cannot edit {name}: no safe way to set {dotted(op.path)} in its spelling was found; "
        "write that table with plain [headers] and try again"
    )


def _identical(one: Any, other: Any) -> bool:
    """Equal, and of equal types all the way down (True == 1 in Python, not in TOML)."""
    return bool(one == other) and repr(one) == repr(_reorder(other, one))


def without_empty(data: Data) -> Data:
    """Data without empty tables, however deep; to containerd they are as good as absent."""
    pruned = {k: without_empty(v) if isinstance(v, dict) else v for k, v in data.items()}
    return {key: value for key, value in pruned.items() if value != {}}


def _reorder(value: Any, like: Any) -> Any:
    if isinstance(value, dict) and isinstance(like, dict):
        return {key: _reorder(value[key], like[key]) for key in like}
    return value


def _comments(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("#"):
            found[line] = found.get(line, 0) + 1
    return found


def _append_table(text: str, op: Op, data: Data) -> str | None:
    """A new table, or a key in a table that no header names yet: written at the end of the file,
    where it cannot come between a comment and what the comment is about."""
    if not isinstance(op, Set) or get(data, op.path) is not None or len(op.path) < 2:
        return None
    block = (
        render(op.value, op.path)
        if isinstance(op.value, dict)
        else f"{header(op.path[:-1])}\n{quote(op.path[-1])} = {scalar(op.value)}\n"
    )
    gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
    return f"{text}{gap}{block}"


def _insert_root_key(text: str, op: Op, data: Data) -> str | None:
    """A new key at the top level: after `version` where that is, else before the first table."""
    if isinstance(op, Unset) or len(op.path) != 1 or op.path[0] in data:
        return None
    value = [op.value] if isinstance(op, Append) else op.value
    if isinstance(value, dict):
        return None
    line = f"{quote(op.path[0])} = {scalar(value)}\n"
    lines = text.splitlines(keepends=True)
    at = next((i + 1 for i, old in enumerate(lines) if re.match(r"\s*version\s*=", old)), None)
    if at is None:
        at = next((i for i, old in enumerate(lines) if re.match(r"\s*\[", old)), len(lines))
        while 0 < at < len(lines) and lines[at - 1].lstrip().startswith("#"):
            at -= 1  # the comment belongs to the table below it
    if at and not lines[at - 1].endswith("\n"):
        lines[at - 1] += "\n"
    return "".join([*lines[:at], line, *lines[at:]])


def _cut_table(text: str, op: Op, _: Data) -> str | None:
    """A table with [headers] of its own taken out by its lines; comments in and below it stay."""
    if not isinstance(op, Unset):
        return None
    kept, inside, found = [], False, False
    for line in text.splitlines(keepends=True):
        path = _header_path(line)
        if path is not None:
            inside = path[: len(op.path)] == op.path
            found = found or inside
        if not inside or (path is None and (not line.strip() or line.lstrip().startswith("#"))):
            kept.append(line)
    return "".join(kept) if found else None


def _cut_line(text: str, op: Op, _: Data) -> str | None:
    """A key on a line of its own taken out with that line."""
    if not isinstance(op, Unset):
        return None
    lines = text.splitlines(keepends=True)
    table: Path | None = ()
    for index, line in enumerate(lines):
        if line.lstrip().startswith("["):
            table = _header_path(line)
        elif table == op.path[:-1] and re.match(rf"\s*{re.escape(op.path[-1])}\s*=", line):
            return "".join(lines[:index] + lines[index + 1 :])
    return None


def _header_path(line: str) -> Path | None:
    """The path of a line that is a [header]; None for any other line."""
    if not line.lstrip().startswith("[") or line.lstrip().startswith("[["):
        return None
    try:
        data: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None
    path: list[str] = []
    while isinstance(data, dict) and data:
        (key,) = data
        path.append(key)
        data = data[key]
    return tuple(path)


def _with_tomlkit(text: str, op: Op, _: Data) -> str | None:
    """tomlkit's own idea of the edit; whatever it raises means that it has none."""
    import tomlkit  # 35 ms, and needed only where a file changes

    try:
        document: Any = tomlkit.parse(text)
        table = document
        for part in op.path[:-1]:
            if part not in table:
                if isinstance(op, Unset):
                    return None
                table[part] = tomlkit.table(is_super_table=True)
            table = table[part]
        match op:
            case Set():
                table[op.path[-1]] = op.value
            case Unset():
                del table[op.path[-1]]
            case Append() if op.path[-1] in table:
                table[op.path[-1]].append(op.value)
            case Append():
                table[op.path[-1]] = [op.value]
        return tomlkit.dumps(document)
    except (tomlkit.exceptions.TOMLKitError, ValueError, TypeError, KeyError, IndexError,
            AttributeError, AssertionError, RecursionError):  # fmt: skip
        return None


def render(table: Mapping[str, Any], path: Path = ()) -> str:
    """A table as TOML text with plain headers, keys before sub-tables, in the order given."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    tables = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    blocks = []
    if path and (plain or not tables):
        blocks.append(header(path) + "\n")
    blocks += [f"{quote(key)} = {scalar(value)}\n" for key, value in plain.items()]
    text = "".join(blocks)
    for key, value in tables.items():
        text += ("\n" if text else "") + render(value, (*path, key))
    return text


def header(path: Path) -> str:
    """The line that opens a table."""
    return f"[{'.'.join(map(quote, path))}]"


def dotted(path: Path) -> str:
    """A path as it is written in TOML, for messages."""
    return ".".join(map(quote, path))


def quote(key: str) -> str:
    """A key, bare where TOML allows it."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def scalar(value: Any) -> str:
    """A value as TOML; tables become inline ones. JSON strings are basic strings of TOML."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case int() | float():
            return repr(value)
        case list():
            return f"[{', '.join(map(scalar, value))}]"
        case dict():
            pairs = ", ".join(f"{quote(key)} = {scalar(item)}" for key, item in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
    return str(value.isoformat())
