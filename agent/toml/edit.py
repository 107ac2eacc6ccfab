"""Surgical edits of TOML files, behind a guard.

Invariant: the text that `edit` returns parses, with the standard library, to exactly the data that
was wanted, and has every comment of the text that it was given; where no way of writing achieves
that, nothing is returned and the edit is refused. tomlkit alone writes wrong data for one valid
document in five (facts measured on 0.15.2), so it is only ever one of several proposals.
"""

from __future__ import annotations

import contextlib
import copy
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from agent.errors import Refused
from agent.host import budget
from agent.host.budget import OverBudget
from agent.toml import text as tomltext
from agent.toml.text import BOM, Data, NotText, Oddity, encoded
from agent.toml.write import Path, dotted, render, scalar

__all__ = [
    "Append", "Data", "Op", "Path", "Set", "Unset", "apply", "decoded", "dotted", "edit", "encoded",
    "get", "has_comments", "parse", "render", "scalar", "without_empty",
]  # fmt: skip


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

# A carriage return that ends a line is none to the scanner.
_EDITABLE = {*tomltext.GO_TOML_1, *tomltext.GO_TOML_2} - {"carriage return"}


def parse(data: bytes, name: str) -> Data:
    """TOML of a file's bytes, as the runtimes read them: what some runtime takes besides TOML 1.0
    is no error here (`tomltext.oddities` tells it). Raises Refused naming the file and the place
    of the error."""
    return _parse(decoded(data, name), name)


def decoded(data: bytes, name: str) -> str:
    """A file's bytes as text to edit; `encoded` makes the same bytes of it. Raises Refused."""
    try:
        return tomltext.decoded(data)
    except NotText as error:
        raise Refused(f"cannot read {name}: {error}") from error


def _parse(text: str, name: str) -> Data:
    try:
        return tomltext.loads(text)
    except tomllib.TOMLDecodeError as error:
        from agent.toml.masking import masked  # needed only where something failed

        why = masked(str(error))  # it can repeat what stands there
        raise Refused(f"cannot read {name}: it is not valid TOML: {why}; repair it") from error
    except OverBudget as error:
        raise Refused(f"cannot read {name}: {error}; make it smaller") from error


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

    `text` is what `decoded` gives; bytes that are no TOML 1.0 stay where they are. Raises Refused,
    naming the file, where the result cannot be written faithfully.
    """
    mark, text = text[: text.startswith(BOM)], text.removeprefix(BOM)
    current = _parse(text, name)
    for op in ops:
        wanted = apply(current, [op])
        if not _identical(wanted, current):
            _refuse_unsafe(text, name)
            text, current = _propose(text, op, current, wanted, name)
    return mark + text


def _refuse_unsafe(text: str, name: str) -> None:
    """Refuse a text in which a place cannot be told, or a value not be written as it is, and one
    of which all places do not fit into memory."""
    if text.count("\n") > budget.TOML_LINES:
        raise Refused(
            f"cannot edit {name}: it has more than {budget.TOML_LINES} lines; make it smaller"
        )
    line = tomltext.in_values(text)
    odd = Oddity("encoding", line) if line else tomltext.minds(text, _EDITABLE)
    if odd is not None:
        raise Refused(f"cannot edit {name}: {odd.words} ({odd.readers}); {odd.remedy}")


def _propose(text: str, op: Op, data: Data, wanted: Data, name: str) -> tuple[str, Data]:
    """The first proposal that passes the guard, with its data."""
    before = _comments(text)
    for proposal in _proposals(text, op, data, wanted):
        try:
            found = tomltext.loads(proposal)
        except ValueError:
            continue
        right = (
            _identical(without_empty(found), without_empty(wanted))
            if isinstance(op, Unset)
            else _identical(found, wanted)
        )
        if right and not before - _comments(proposal) - _comments_behind(text, op, data):
            return proposal, found
    odd = next((f"; {one.words}" for one in tomltext.oddities(text) if "1.1" in one.words), "")
    raise Refused(
        f"cannot edit {name}: no safe way to set {dotted(op.path)} in its spelling was found{odd}; "
        "write that table with plain [headers] and try again"
    )


def _proposals(text: str, op: Op, data: Data, wanted: Data) -> Iterator[str]:
    from agent.toml import scan, spell  # needed only where a file changes

    with contextlib.suppress(scan.Unreadable):
        if isinstance(op, Unset):
            gone = (n for n in range(len(op.path)) if get(wanted, op.path[:n]) is None)
            yield from spell.removing(text, op.path, next(gone, len(op.path)))
        else:
            old, new = get(data, op.path), get(wanted, op.path)
            yield from spell.setting(text, op.path, old, new)
            if isinstance(old, dict) and isinstance(new, dict):
                with contextlib.suppress(Refused):
                    yield edit(text, _parts(op.path, old, new), "")
    proposal = _with_tomlkit(text, op)
    if proposal is not None:
        yield proposal


def _parts(path: Path, old: Data, new: Data) -> Iterator[Op]:
    """The single edits that make one table into another."""
    for key, value in new.items():
        below = (*path, key)
        if isinstance(old.get(key), dict) and isinstance(value, dict):
            yield from _parts(below, old[key], value)
        else:
            yield Set(below, value)
    for key in old:
        if key not in new:
            yield Unset((*path, key))
    if not new:
        yield Set(path, {})


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


def has_comments(text: str) -> bool:
    """Is there any comment in a text?"""
    return bool(_comments(text))


def _comments(text: str) -> Counter[str]:
    from agent.toml import scan

    try:
        return scan.comments(text)
    except scan.Unreadable:
        lines = (line.strip() for line in text.splitlines())
        return Counter(line for line in lines if line.startswith("#"))


def _comments_behind(text: str, op: Op, data: Data) -> Counter[str]:
    """Comments that may go: those behind a key or a header that an operation takes out."""
    from agent.toml import scan

    if not isinstance(op, Unset) and not isinstance(get(data, op.path), dict):
        return Counter()
    try:
        return scan.comments_behind(text, op.path)
    except scan.Unreadable:
        return Counter()


def _with_tomlkit(text: str, op: Op) -> str | None:
    """tomlkit's own idea of the edit; whatever it raises means that it has none.

    It is asked last: it writes wrong data for one valid document in five.
    """
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
