"""TOML written anew: values, keys, headers, whole tables.

Invariant: what is written here parses to exactly what it was made from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Style:
    """How a file is written: its spelling of keys, and what a table that is in another one, and
    a key that is in a table, are indented by."""

    spelling: Mapping[str, str] = field(default_factory=dict)
    table_step: str = ""
    key_step: str = ""

    def dotted(self, path: Path) -> str:
        """A path in the file's own spelling."""
        return ".".join(self.spelling.get(part) or quote(part) for part in path)

    def line(self, path: Path, value: Any, indent: str = "") -> str:
        """A key with its value."""
        return f"{indent}{self.dotted(path)} = {scalar(value)}"


PLAIN = Style()


def render(
    table: Mapping[str, Any], path: Path = (), style: Style = PLAIN, indent: str = ""
) -> str:
    """A table as TOML text with plain headers, keys before sub-tables, in the order given."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    tables = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines, below = [], indent
    if path and (plain or not tables):
        lines.append(f"{indent}[{style.dotted(path)}]")
        below = indent + style.table_step
    inside = indent + style.key_step if path else indent
    lines += [style.line((key,), value, inside) for key, value in plain.items()]
    text = "".join(line + "\n" for line in lines)
    for key, value in tables.items():
        text += ("\n" if text else "") + render(value, (*path, key), style, below)
    return text


def dotted(path: Path) -> str:
    """A path as it is written in TOML, for messages."""
    return ".".join(map(quote, path))


def quote(key: str) -> str:
    """A key, bare where TOML allows it."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else scalar(key)


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
