"""Data as YAML text.

Invariant: every reader of YAML 1.1 or 1.2 gets the same data back, and equal data give equal bytes.
Strings are quoted throughout, because readers disagree about what a bare `1e3` or `y` is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})

# What JSON leaves as it is, and YAML takes for a line break or does not take at all.
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def lines(value: Mapping[str, Any] | list[Any] | tuple[Any, ...]) -> Iterator[str]:
    """YAML lines of a mapping or a sequence that is not empty."""
    if isinstance(value, Mapping):
        items = ((f"{_key(key)}:", item) for key, item in value.items())
    else:
        items = (("-", item) for item in value)
    for head, item in items:
        if not isinstance(item, Mapping | list | tuple) or not item:
            yield f"{head} {_scalar(item)}"
        elif head == "-":
            first, *rest = lines(item)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
        else:
            yield head
            yield from (f"  {line}" for line in lines(item))


def _key(key: str) -> str:
    plain = _PLAIN_KEY.fullmatch(key) and key.lower() not in _WORDS
    return key if plain else _scalar(key)


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        return _number(value)
    return printable(json.dumps(value, ensure_ascii=False))


def printable(text: str) -> str:
    """JSON as YAML can take it too: no character that it does not, and none above 0xffff in the two
    halves that JSON has for it."""
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _number(value: float) -> str:
    """YAML 1.1 wants a point in a number with an exponent, and has words of its own."""
    text = repr(value)
    if text.lstrip("-") in ("inf", "nan"):
        return text.replace("inf", ".inf").replace("nan", ".nan")
    mantissa, e, exponent = text.partition("e")
    return text if not e or "." in mantissa else f"{mantissa}.0e{exponent}"
