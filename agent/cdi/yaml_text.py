"""Writes data as YAML.

Invariant: every parser of YAML 1.1 or 1.2 gets the same data back, and equal data give equal bytes.
All strings are quoted, because parsers disagree about the type of a bare `1e3` or `y`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})

# Characters that are allowed in JSON, and that YAML takes for line breaks or refuses.
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def lines(value: Mapping[str, Any] | list[Any] | tuple[Any, ...]) -> Iterator[str]:
    """The YAML lines of a mapping or a sequence, which must not be empty."""
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
    """JSON text as YAML: characters that YAML refuses are escaped."""
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _number(value: float) -> str:
    """The YAML of a float. YAML 1.1 requires a point in a number with an exponent, and has its own
    words for infinity and NaN."""
    text = repr(value)
    if text.lstrip("-") in ("inf", "nan"):
        return text.replace("inf", ".inf").replace("nan", ".nan")
    mantissa, e, exponent = text.partition("e")
    return text if not e or "." in mantissa else f"{mantissa}.0e{exponent}"
