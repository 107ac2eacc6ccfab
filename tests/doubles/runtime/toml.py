"""TOML as runtimes read it, and as `containerd config dump` writes it: indented, every table with
its header."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator

import tomlkit

from tests.doubles.containerd.generation import Table


def loads(text: str, *, toml_11: bool) -> Table:
    """Read a document; raises ValueError. `toml_11`: also TOML 1.1, which tomlkit reads."""
    try:
        return tomllib.loads(text)
    except ValueError:
        if not toml_11:
            raise
    found: Table = tomlkit.parse(text).unwrap()
    return found


def dumps(document: Table, quote: str = '"') -> str:
    """Write a document; `quote` is `"` for 1.x and `'` for 2.x."""
    return "\n".join(_lines(document, (), quote)).strip("\n") + "\n"


def _lines(table: Table, path: tuple[str, ...], quote: str) -> Iterator[str]:
    indent = "  " * len(path)
    for key, value in table.items():
        if not _is_tables(value):
            yield f"{indent}{_key(key, quote)} = {_value(value, quote)}"
    for key, value in table.items():
        if _is_tables(value):
            name = ".".join(_key(part, quote) for part in (*path, key))
            for item in value if isinstance(value, list) else [value]:
                header = f"[[{name}]]" if isinstance(value, list) else f"[{name}]"
                yield ""
                yield f"{indent}{header}"
                yield from _lines(item, (*path, key), quote)


def _is_tables(value: object) -> bool:
    """Whether it is a table, or a list of nothing but tables."""
    several = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    return isinstance(value, dict) or bool(several)


def _key(key: str, quote: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _string(key, quote)


def _value(value: object, quote: str) -> str:
    if isinstance(value, str):
        return _string(value, quote)
    if isinstance(value, list):
        return f"[{', '.join(_value(item, quote) for item in value)}]"
    if isinstance(value, dict):
        pairs = (f"{_key(key, quote)} = {_value(item, quote)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)  # numbers and dates


def _string(text: str, quote: str) -> str:
    literal = quote == "'" and "'" not in text and text.isprintable()
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped.
    return (
        f"'{text}'" if literal else json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")
    )
