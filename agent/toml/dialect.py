"""TOML in files of the host, including the deviations from TOML 1.0 that runtimes accept.

Invariant: `encoded(decoded(data)) == data` for all bytes, so that an edit preserves every byte
outside the edited place. Values are those that the runtime reads. Every deviation is an `Oddity`.
`first_rejected` finds one that a runtime's reader does not accept.

Observed with `config dump` of containerd 1.6.20, 1.7.24 and 2.1.9 and with `crio config` of 1.37;
the reader of CRI-O 1.30 (BurntSushi/toml 1.3.2) by its source.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from agent.host import budget
from agent.host.budget import OverBudget

Data: TypeAlias = dict[str, Any]
Kind: TypeAlias = str

_INLINE = "it uses TOML 1.1 ({} in an inline table, line {{line}})"
_NOT_UTF8 = "line {line} is not UTF-8"
_SAVE = "save it as UTF-8 with LF as line ends"
_JOIN = "write the table on one line"

# Deviations from TOML 1.0: (description, remedy).
_ODDITIES: dict[Kind, tuple[str, str]] = {
    "byte order mark": ("it begins with a byte order mark", "save it as UTF-8 without one"),
    "carriage return": ("line {line} ends with a carriage return alone", _SAVE),
    "encoding": (_NOT_UTF8, _SAVE),
    "encoding of a comment": (_NOT_UTF8, _SAVE),
    "control character": ("line {line} has a control character in a comment", "remove it"),
    "line break": (_INLINE.format("line break"), _JOIN),
    "line break before a comma": (_INLINE.format("line break"), _JOIN),
    "trailing comma": (_INLINE.format("trailing comma"), "remove the comma"),
    "escape": ("it uses TOML 1.1 (escape \\x or \\e, line {line})", "write \\u and four digits"),
    "escaped slash": ("line {line} has an escaped slash", "write the slash alone"),
}

# Deviations that readers accept: go-toml v1 (containerd 1.x), go-toml v2 (2.x), and BurntSushi/toml
# (CRI-O; TOML 1.1 since its version 1.6). Builds of 2.x and CRI-O have different versions of their
# reader, so there the runtime's own executable decides (`runtimes/preflight.py`).
GO_TOML_1: frozenset[Kind] = frozenset({
    "byte order mark", "carriage return", "encoding", "encoding of a comment", "control character",
    "line break", "escaped slash",
})  # fmt: skip
GO_TOML_2: frozenset[Kind] = frozenset({
    "line break", "line break before a comma", "trailing comma", "escape",
})  # fmt: skip
BURNT_SUSHI: frozenset[Kind] = GO_TOML_2 | {"byte order mark"}

BOM = "\ufeff"
# An unclosed string matches up to its end. Quantifiers are possessive, which avoids backtracking
# and its memory. A group with "*+" has no look-ahead, because Python before 3.11.5 then finds no
# match (cpython#106052).
STRING = (
    r'"""[^"\\]*+(?:"{0,2}+(?:\\.|[^"\\])[^"\\]*+)*+(?:"""{1,3}|"{0,2}\\?\Z)|'
    r"'''.*?(?:'''{1,3}|\Z)|"
    r'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"?|'
    r"'[^'\n]*+'?"
)
TOKEN = re.compile(rf"(?:{STRING})|#[^\n]*|[][{{}},]|\s+|[^]\s\"'#[{{}},]+", re.DOTALL)

# In decoded text a byte that is not UTF-8 is U+DC80 to U+DCFF, as with "surrogateescape". A control
# character in a comment is U+DC00 to U+DC7F, to which no bytes decode.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")
_KEPT = re.compile("[\udc00-\udc7f]")
_BYTE = re.compile("[\udc80-\udcff]")
PARTS = re.compile(rf"(?:{STRING})|#[^\n]*", re.DOTALL)
_LONE_CR = re.compile(rf"((?:{STRING})|#[^\n]*)|\r(?!\n)", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:(e)|x([0-9a-fA-F]{2})|(/)|.)", re.DOTALL)
_LOOKS_11 = re.compile(r",[ \t]*\}|\\[xe/]")
_SHIFT = 0xDC00

# A key with too many parts, in any place. Each sequence of parts is scanned once.
_LONG_KEY = re.compile(
    r"(?<![A-Za-z0-9_.\-\"'])"
    r"(?:(?:[A-Za-z0-9_-]++|\"[^\"\\\n]*+(?:\\.[^\"\\\n]*+)*+\"|'[^'\n]*+')[ \t]*+\.[ \t]*+)"
    rf"{{{budget.TOML.depth}}}"
)
_WORD = 4_096  # characters of a word without quotes
_LONG_WORD = re.compile(rf"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{{{_WORD}}}")
_LONG_NUMBER = re.compile(r"[0-9A-Fa-f_]{16}")  # more than 64 bits, in base 2 to 16


class NotText(ValueError):
    """No runtime reads these bytes; the message says why."""


@dataclass(frozen=True)
class Oddity:
    """A deviation from TOML 1.0, and the line on which it begins."""

    kind: Kind
    line: int

    @property
    def words(self) -> str:
        """The deviation and its line, as a clause for a message."""
        return _ODDITIES[self.kind][0].format(line=self.line)

    @property
    def readers(self) -> str:
        """A clause for a message: the versions of containerd that read it."""
        if self.kind not in GO_TOML_1:
            return "containerd 1.6 and 1.7 do not start on it"
        also = "" if self.kind in GO_TOML_2 else ", 2.x does not start on it"
        return f"containerd 1.6 and 1.7 read it{also}"

    @property
    def remedy(self) -> str:
        return _ODDITIES[self.kind][1]


def decoded(data: bytes) -> str:
    """The text of a file's bytes, on which tomllib and the scanner work. Raises NotText."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:2]:
        raise NotText("it is UTF-16, which no runtime reads; save it as UTF-8")
    text = data.decode("utf-8", "surrogateescape")
    if not _CONTROL.search(text):
        return text
    return PARTS.sub(lambda part: _kept(part[0]), text)


def _kept(part: str) -> str:
    """A comment with its control characters encoded; other parts unchanged."""
    if part[0] != "#":
        return part
    end = "\r" if part.endswith("\r") else ""  # of a line that ends with CR LF
    return _CONTROL.sub(lambda found: chr(_SHIFT + ord(found[0])), part.removesuffix(end)) + end


def encoded(text: str) -> bytes:
    """The bytes of a text from `decoded`."""
    back = _KEPT.sub(lambda found: chr(ord(found[0]) - _SHIFT), text)
    return back.encode("utf-8", "surrogateescape")


def loads(text: str) -> Data:
    """The data of a text from `decoded`. Raises tomllib.TOMLDecodeError, and OverBudget for a text
    that would take too much memory or time."""
    _refuse_much(text)
    text = _lines_ended(text.removeprefix(BOM))
    try:
        data = _loads(text)
    except tomllib.TOMLDecodeError:
        plain, odd = _plain(text)
        if not odd:
            raise
        data = _loads(plain)
    # Go has U+FFFD for a byte that is not UTF-8 (observed in dumps of 1.6.20 and 1.7.24). An edit
    # keeps such bytes, because it is made in the text.
    return budget.with_strings(data, partial(_BYTE.sub, "\ufffd")) if _BYTE.search(text) else data


def _refuse_much(text: str) -> None:
    """Raise OverBudget for a text with too many or too long tokens, before it is parsed."""
    if len(text) > budget.TOML.values:
        parts = sum(1 for _ in TOKEN.finditer(text)) + text.count(".") + text.count("\\")
        if parts > budget.TOML.values:
            raise OverBudget(budget.too_many(budget.TOML))
    if text.count(".") >= budget.TOML.depth and _LONG_KEY.search(text):
        raise OverBudget(f"a key in it has more than {budget.TOML.depth} parts")
    if _LONG_WORD.search(text) and any(
        len(token[0]) > _WORD and token[0][0] not in "#\"'" and not token[0].isspace()
        for token in TOKEN.finditer(text)
    ):
        raise OverBudget(f"a word in it has more than {_WORD} characters")


def _loads(text: str) -> Data:
    """The data of a TOML 1.0 text. Raises TOMLDecodeError, also for numbers that no runtime
    accepts."""
    try:
        data = tomllib.loads(text)
    except RecursionError as error:
        raise OverBudget("it is nested too deeply") from error
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # an integer with more digits than Python converts
        raise tomllib.TOMLDecodeError("a number in it is too long") from error
    budget.refuse_deep(data, budget.TOML.depth)
    if _LONG_NUMBER.search(text) and not _fits(data):
        raise tomllib.TOMLDecodeError("a number in it is too large for 64 bits")
    return data


def _fits(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_fits, value.values()))
    if isinstance(value, list):
        return all(map(_fits, value))
    return not isinstance(value, int) or -(1 << 63) <= value < 1 << 63


def _lines_ended(text: str) -> str:
    """The text with a line feed in place of each carriage return that ends a line alone."""
    return _LONE_CR.sub(lambda found: found[1] or "\n", text) if "\r" in text else text


def first_rejected(text: str, reader: Collection[Kind]) -> Oddity | None:
    """The first deviation that a reader (a set of kinds) does not accept; None if there is none."""
    return next((oddity for oddity in oddities(text) if oddity.kind not in reader), None)


def oddities(text: str) -> tuple[Oddity, ...]:
    """The deviations from TOML 1.0 in a text from `decoded`, the first of each kind."""
    found: list[tuple[Kind, int]] = [("byte order mark", 0)] if text.startswith(BOM) else []
    text = text.removeprefix(BOM)
    if _BYTE.search(text):
        for part in PARTS.finditer(text):
            if byte := _BYTE.search(part[0]):
                kind = "encoding of a comment" if part[0][0] == "#" else "encoding"
                found.append((kind, part.start() + byte.start()))
    if control := _KEPT.search(text):
        found.append(("control character", control.start()))
    if "\r" in text:
        lone = (match.start() for match in _LONE_CR.finditer(text) if match[1] is None)
        found += [("carriage return", at) for at in lone]
        text = _lines_ended(text)
    if _may_be_11(text):
        found += _plain(text)[1]
    first = dict(reversed(found))
    return tuple(Oddity(kind, text.count("\n", 0, first[kind]) + 1) for kind in dict(found))


def _may_be_11(text: str) -> bool:
    """Can a text contain TOML 1.1? A quick test; only parsing gives a certain answer."""
    lines = text.split("\n") if "{" in text else ()
    return bool(_LOOKS_11.search(text)) or any(x.count("{") != x.count("}") for x in lines)


def _plain(text: str) -> tuple[str, list[tuple[Kind, int]]]:
    """The text with TOML 1.1 rewritten as TOML 1.0, and the kinds and offsets of the replaced
    parts. A text that is neither is returned unchanged, or as one that tomllib refuses."""
    tokens = list(TOKEN.finditer(text)) if "{" in text or "\\" in text else []
    if sum(len(token[0]) for token in tokens) != len(text):
        return text, []
    following, after = [], ""  # for each token the next one that is neither comment nor space
    for token in reversed(tokens):
        following.append(after)
        after = after if token[0][0] == "#" or token[0].isspace() else token[0]
    odd: list[tuple[Kind, int]] = []
    parts, open_, before = [], [""], ""
    for token, after in zip(tokens, reversed(following), strict=True):
        part = word = token[0]
        if word in ("]", "}") and len(open_) > 1:
            open_.pop()
        if word[0] == '"':
            part = _without_escapes(token, odd)
        elif open_[-1] == "{":
            part = _in_braces(token, before, after, odd)
        if word in ("[", "{"):
            open_.append(word)
        parts.append(part)
        before = before if word[0] == "#" or word.isspace() else word
    return "".join(parts), odd


def _without_escapes(token: re.Match[str], odd: list[tuple[Kind, int]]) -> str:
    """A string token with TOML 1.1's escapes and escaped slashes rewritten; they are added to
    `odd`."""

    def plain(found: re.Match[str]) -> str:
        letter, digits, slash = found.groups()
        if not (letter or digits or slash):
            return found[0]
        odd.append(("escaped slash" if slash else "escape", token.start() + found.start()))
        return "/" if slash else f"\\u00{digits or '1b'}"

    return _ESCAPE.sub(plain, token[0])


def _in_braces(token: re.Match[str], before: str, after: str, odd: list[tuple[Kind, int]]) -> str:
    """A token of an inline table rewritten as TOML 1.0; deviations are added to `odd`. `before` and
    `after` are the neighbouring tokens."""
    word = token[0]
    if word == "," and after == "}" and before not in ("{", ","):
        odd.append(("trailing comma", token.start()))
        return ""
    if word[0] == "#":
        return ""
    if "\n" in word and word.isspace() and (before in ("{", ",") or after in (",", "}")):
        kind = "line break before a comma" if after == "," else "line break"
        odd.append((kind, token.start()))
        return " "
    return word
