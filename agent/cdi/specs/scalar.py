"""Single values of a spec, as Go reads and writes them.

Invariant: the type of a word without quotes, and the text of a number, are those of Go's yaml.v2
and strconv. PyYAML and Python differ (`1:0`, `y`, `08`, `1e+06`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_WORDS: dict[str, bool | float | None] = {
    **dict.fromkeys("y Y yes Yes YES true True TRUE on On ON".split(), True),
    **dict.fromkeys("n N no No NO false False FALSE off Off OFF".split(), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
}
_INTEGER = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?")


@dataclass(frozen=True)
class Plain:
    """A boolean, a number or null; `text` is its spelling in the file."""

    value: bool | int | float | None
    text: str


def plain_value(text: str) -> str | Plain:
    """The value of a word without quotes: a string, or a Plain."""
    if text in _WORDS:
        return Plain(_WORDS[text], text)
    if text[0] not in "+-.0123456789" or _DATE.fullmatch(text):
        return text
    digits = text.replace("_", "") if text[0] != "." else text
    if _INTEGER.fullmatch(digits):
        number = _number(digits)
        if -(1 << 63) <= number < 1 << 64:
            return Plain(number, text)
    # Go reads a number that is too large as a string.
    if _FLOAT.fullmatch(digits) and math.isfinite(float(digits)):
        return Plain(float(digits), text)
    return text


def _number(digits: str) -> int:
    """An integer as Go reads it with base 0: a leading zero means octal."""
    old_octal = re.fullmatch(r"([-+]?)0([0-7]+)", digits)
    if old_octal:
        return int(old_octal[1] + old_octal[2], 8)
    return int(digits, 0) if len(digits) < 100 else 1 << 64


def go_text(value: bool | int | float) -> str:
    """The text that Go writes for a boolean or a number."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return {"inf": "+Inf", "-inf": "-Inf"}.get(repr(value), "NaN")
    # The fewest digits that give this number again; 17 are always enough.
    places = next(places for places in range(17) if float(f"{value:.{places}e}") == value)
    text = f"{value:.{places}e}"
    exponent = int(text.partition("e")[2])
    return f"{value:.{max(places - exponent, 0)}f}" if -4 <= exponent < 6 else text


def quoted(text: str) -> str:
    """A part of a file for a message: in quotes, in one line, and shortened to 60 characters."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
