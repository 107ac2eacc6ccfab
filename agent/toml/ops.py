"""Edits as data: operations that set or remove keys, and the data after them.

Invariant: depends on the arguments only, which are never changed. `agent.toml.document` carries the
operations out on a text.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from agent.errors import Refused
from agent.toml.dialect import Data
from agent.toml.write import Path, dotted


@dataclass(frozen=True)
class Set:
    """Give the key at `path` this value, whatever it had before."""

    path: Path
    value: Any


@dataclass(frozen=True)
class Unset:
    """Remove the key at `path`; a missing key is no error. A table that becomes empty may stay in
    the text, depending on its spelling; no reader of these files treats it differently."""

    path: Path


@dataclass(frozen=True)
class Append:
    """Add `value` to the list at `path`, unless the list has it. A missing list is made."""

    path: Path
    value: Any


Op: TypeAlias = Set | Unset | Append


def get(data: Any, path: Path, default: Any = None) -> Any:
    """The value at `path`; `default` if a part of the path is missing or is no table."""
    for part in path:
        if not isinstance(data, Mapping) or part not in data:
            return default
        data = data[part]
    return data


def apply(data: Data, ops: Iterable[Op]) -> Data:
    """The data after the operations.

    Raises Refused if a part of a path is not a table, or if the value to extend is not a list.
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


def deep_merge(below: Data, above: Mapping[str, Any]) -> Data:
    """Two tables merged key by key. A value of `above` that is no table replaces that of
    `below`."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            result[key] = deep_merge(old, value)
        else:
            result[key] = value
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


def identical(first: Any, second: Any) -> bool:
    """Are the values equal, with equal types at every depth? (True == 1 in Python, but not in
    TOML.)"""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(identical(first[k], second[k]) for k in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(identical, first, second))
    return type(first) is type(second) and bool(first == second)


def without_empty(data: Data) -> Data:
    """The data without empty tables at any depth, which have no meaning for runtimes."""
    pruned = {k: without_empty(v) if isinstance(v, dict) else v for k, v in data.items()}
    return {key: value for key, value in pruned.items() if value != {}}
