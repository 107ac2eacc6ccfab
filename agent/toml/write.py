"""Writes TOML: values, keys, headers, whole tables.

Invariant: the result parses to exactly the given data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

Path: TypeAlias = tuple[str, ...]


def render(table: Mapping[str, Any], path: Path = ()) -> str:
    """A table as TOML text with plain headers, keys before sub-tables, in the given order. `path`
    is the table's own path."""
    parts: list[str] = []
    for inner, keys in tables(table, path):
        lines = [f"[{dotted(inner)}]"] if inner else []
        lines += [f"{quote(key)} = {scalar(value)}" for key, value in keys.items()]
        parts.append("".join(line + "\n" for line in lines))
    return "\n".join(filter(None, parts))


def tables(table: Mapping[str, Any], path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """(path, its keys other than tables) of a table and of each table in it, if it needs a
    header."""
    keys = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    found = [(path, keys)] if keys or len(table) == 0 else []
    for key, value in table.items():
        if isinstance(value, Mapping):
            found += tables(value, (*path, key))
    return found


def dotted(path: Path) -> str:
    """A path in TOML's notation."""
    return ".".join(map(quote, path))


def quote(key: str) -> str:
    """A key in TOML's notation: bare if possible, else quoted."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else scalar(key)


def scalar(value: Any) -> str:
    """A value as TOML on one line; a table becomes an inline table. JSON's strings are valid basic
    strings of TOML."""
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
