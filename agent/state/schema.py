"""The conversion of plain data in the state directory to dataclasses.

Invariant: a field has the type in its annotation, and its value can be given to the kernel and to
base64 without an exception. So a damaged file causes one error, which names the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeAlias, TypeVar

from agent.host import budget

_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_CONTROL = re.compile("[\x00-\x1f\x7f]")

AbsolutePath: TypeAlias = str  # a path that the kernel accepts
Base64: TypeAlias = str
Keys: TypeAlias = str  # the path of a key in a TOML file, as a list of names in JSON
Seconds: TypeAlias = float
Count: TypeAlias = int
Mode: TypeAlias = int
UserId: TypeAlias = int
ProcessId: TypeAlias = int  # a pid, or the start time of a process
Table: TypeAlias = Mapping[str, Any]

_Made = TypeVar("_Made")


def _number(high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 0 <= value <= high


def _is_path(value: Any) -> bool:
    return (
        isinstance(value, str)
        and value.startswith("/")
        and len(value) <= 4000
        and not _CONTROL.search(value)
    )


def _is_keys(value: Any) -> bool:
    try:
        names = budget.json_value(value, budget.STATE)
    except ValueError:
        return False
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


# The check of a value, by the name of its type.
_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "Any": lambda _: True,
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "Table": lambda value: isinstance(value, dict),
    "Data": lambda value: isinstance(value, dict),  # of TOML
    "AbsolutePath": _is_path,
    "Base64": lambda value: isinstance(value, str) and bool(_BASE64.fullmatch(value)),
    "Keys": _is_keys,
    "Seconds": lambda value: type(value) in (int, float) and 0 <= value < 1e12,
    "Count": _number(100),
    "Mode": _number(0o7777),
    "UserId": _number((1 << 32) - 2),
    "ProcessId": _number((1 << 63) - 1),
}
_STORED: dict[str, type[Any]] = {}


def stored(cls: type[_Made]) -> type[_Made]:
    """Register a dataclass, so that fields of other dataclasses can have its type."""
    _STORED[cls.__name__] = cls
    return cls


def make(cls: type[_Made], data: Any) -> _Made:
    """An instance of `cls` from plain data. Raises ValueError for the first value that does not
    have the type of its field."""
    if not isinstance(data, dict):
        raise ValueError("it is no mapping")
    kinds = {field.name: str(field.type) for field in fields(cls)}  # type: ignore[arg-type]
    try:
        return cls(**{name: fitting(kinds[name], value) for name, value in data.items()})
    except (KeyError, TypeError) as error:
        raise ValueError(str(error)) from error


def fitting(kind: str, value: Any) -> Any:
    """The value, checked for the type with the name `kind`; lists become tuples, and mappings
    registered dataclasses. Raises ValueError."""
    if kind.endswith(" | None"):
        return None if value is None else fitting(kind.removesuffix(" | None"), value)
    name, _, inner = kind.removesuffix("]").partition("[")
    kinds = inner.split(", ")
    if name == "tuple" and isinstance(value, list | tuple):
        kinds = kinds[:1] * len(value) if kinds[-1] == "..." else kinds
        return tuple(fitting(*pair) for pair in zip(kinds, value, strict=True))
    if name == "Mapping" and isinstance(value, dict):
        return {fitting(kinds[0], key): fitting(kinds[1], item) for key, item in value.items()}
    if name in _STORED:
        return make(_STORED[name], value)
    if name not in _CHECKS or not _CHECKS[name](value):
        raise ValueError(f"it is no {kind}")
    return value
