"""Types and ranges of the values in the state directory, by field name.

Invariant: a value that passes can be given to the kernel and to base64 without an exception. A
damaged file therefore ends in one error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from agent.host import budget

Check: TypeAlias = Callable[[Any], bool]

_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_CONTROL = re.compile("[\x00-\x1f\x7f]")


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _number(high: int) -> Check:
    return lambda value: type(value) is int and 0 <= value <= high


def _each(*checks: Check) -> Check:
    """A list with one item for each check; or a tuple, before it was written to a file."""
    return lambda value: (
        isinstance(value, list | tuple)
        and len(value) == len(checks)
        and all(check(item) for check, item in zip(checks, value, strict=True))
    )


def _all(check: Check) -> Check:
    return lambda value: isinstance(value, list | tuple) and all(map(check, value))


def text(value: Any) -> bool:
    """A string."""
    return isinstance(value, str)


def flag(value: Any) -> bool:
    """True or false."""
    return isinstance(value, bool)


def mapping(value: Any) -> bool:
    """A mapping."""
    return isinstance(value, dict)


def path(value: Any) -> bool:
    """An absolute path that the kernel accepts."""
    if not isinstance(value, str) or not value.startswith("/") or len(value) > 4000:
        return False
    return not _CONTROL.search(value)


def _keys(value: Any) -> bool:
    """Values by path in a TOML file, each path a list of names in JSON."""
    return isinstance(value, dict) and all(map(_is_path, value))


def _is_path(key: str) -> bool:
    try:
        return _all(text)(budget.json_value(key, budget.STATE))
    except ValueError:
        return False


def _tables(value: Any) -> bool:
    return isinstance(value, dict) and all(map(mapping, value.values()))


def _base64(value: Any) -> bool:
    return isinstance(value, str) and _BASE64.fullmatch(value) is not None


def _seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e12


_ID = _number((1 << 63) - 1)  # of a process, or when it started

# A missing field has a default, or is an error where the value is needed.
FILE: Mapping[str, Check] = {
    "host": path, "before": _or_none(text), "after": _or_none(text), "digest": _or_none(text),
    "written": _or_none(text), "mode": _number(0o7777), "uid": _number((1 << 32) - 2),
    "gid": _number((1 << 32) - 2), "made": _number(100), "edited": flag, "outside": _or_none(path),
    "keys": _keys, "text": _or_none(text),
}  # fmt: skip
MEMORY: Mapping[str, Check] = {
    "files": lambda value: _tables(value) and all(map(path, value)), "default": _or_none(text),
    "enabled_cdi": flag, "cdi_refused": _or_none(text), "moved": _all(path),
    "proven": _or_none(_each(text, _ID, _ID)),
}  # fmt: skip
JOURNAL: Mapping[str, Check] = {
    "purpose": text, "boot_id": text, "stage": text, "entries": _all(mapping), "wanted": mapping,
    "before": lambda value: mapping(value) or _all(mapping)(value),
    "process": _or_none(_each(_ID, _ID)), "kind": text, "socket": path,
    "restart": _or_none(_each(text, text)), "memory": mapping, "old_memory": mapping,
    "fingerprint": text, "twin": _or_none(_base64), "barrier": _or_none(_base64),
    "switch": _or_none(text), "executable": _or_none(path), "stuck": _or_none(_each(text, text)),
    "transaction": _or_none(text),
}  # fmt: skip
RESTARTS: Mapping[str, Check] = {"boot_id": text, "times": _all(_seconds)}
WANTED: Mapping[str, Check] = {
    "handlers": _tables, "default": _or_none(text), "enable_cdi": flag, "absent": _all(text),
}  # fmt: skip


def require(data: Any, table: Mapping[str, Check]) -> None:
    """Raise ValueError for the first value that does not fit its field."""
    if not isinstance(data, dict):
        raise ValueError("it is no mapping")
    for name, check in table.items():
        if name in data and not check(data[name]):
            raise ValueError(name)
