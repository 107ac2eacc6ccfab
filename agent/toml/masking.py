"""Masks configuration values in the messages of other programs.

A runtime that rejects a value repeats it ("Can't convert hunter2(string) to int"), and the value
can be a password. No list of secrets is ever complete. So this module has a list of harmless words:
those of the runtimes' messages (known_words.txt), those of the keys in the files, and names of
ours. Every other word is shown as `…`.

Invariant: each word that `masked` returns is known before the text is read, except for small
numbers of lines and columns. The keys of masked values are named instead.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from agent.redaction import HIDDEN, redact_text
from agent.toml import scan
from agent.toml.dialect import Data
from agent.toml.ops import get
from agent.toml.scan import Statement
from agent.toml.write import Path, dotted

_MOST = 300  # characters of the result
_MOST_READ = 10_000  # characters of the message
_MOST_KEYS = 2
_SHORTEST = 2  # characters; shorter values are not searched in the message

# Harmless numbers: positions, descriptors in /proc, exit codes.
_PLACE = re.compile(
    r"""\(\d{1,5},[ ]\d{1,4}\) | \b(?:line|row|column)(?:[ ]|=)\d{1,5}\b
        | /proc/self/fd/\d{1,4}\b | \bexit[ ](?:status|code)[ ]\d{1,3}\b""",
    re.VERBOSE,
)
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"?|`[^`]*`?|(?<!\w)\'[^\']*\'?')
_TOKEN = re.compile(r"[^\s\"`'()\[\]{},;]+")
_WORDS = re.compile(r"[A-Za-z]+\d*|[^A-Za-z]")
_HUMPS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_PUNCTUATION = frozenset(".-_/:$=*!?<>|&\\%+")
_AGAIN = re.compile(rf"{HIDDEN}(?:\s*{HIDDEN})+")
_NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True)
class Source:
    """A configuration file that a program reads: its host path, decoded text, and data."""

    name: str
    text: str
    data: Data


@lru_cache(maxsize=1)
def _known() -> frozenset[str]:
    """Known words in lower case: the words of the messages of containerd 1.6 to 2.4, CRI-O, Go's
    libraries, gRPC, systemd and tomllib; names of runtimes, plugins and usual directories; types of
    Go; words of usual keys; and the words of the kernel's errors."""
    with open(os.path.join(os.path.dirname(__file__), "known_words.txt"), encoding="ascii") as file:
        listed = file.read()
    kernel = " ".join(os.strerror(number) for number in errno.errorcode)
    return frozenset(re.findall(r"[a-z]+\d*", f"{listed} {kernel}".lower()))


def masked(text: str, names: Collection[str] = (), words: Collection[str] = ()) -> str:
    """The text with `…` in place of each unknown word.

    `names` are texts of ours that stay unchanged, such as the path of an executable. `words` are
    additional known words, in lower case.
    """
    known = _known() | {*words}
    own = _NOTHING
    if longest_first := sorted(filter(None, names), key=len, reverse=True):
        either = "|".join(map(re.escape, longest_first))
        own = re.compile(rf"(?<![^\s\"'`(\[=])(?:{either})(?![^\s\"'`)\],:;.])")
    result = _AGAIN.sub(HIDDEN, "".join(_parts(text[:_MOST_READ], known, own)))
    return result if len(result) <= _MOST else f"{result[:_MOST]}{HIDDEN}"


def _parts(text: str, known: Collection[str], own: re.Pattern[str]) -> Iterator[str]:
    at = 0
    while at < len(text):
        if found := own.match(text, at) or _PLACE.match(text, at):
            yield found[0]
        elif found := _QUOTED.match(text, at):
            inside = found[0].strip("\"'`")
            is_harmless = own.fullmatch(inside) or _is_known(inside, known)
            yield found[0] if is_harmless else f'"{HIDDEN}"'
        elif found := _TOKEN.match(text, at):
            plain = found[0].rstrip(".:!?")
            yield plain if _is_known(plain, known) else HIDDEN
            yield found[0][len(plain) :]
        else:
            yield text[at] if text[at].isprintable() else " "
        at = found.end() if found else at + 1


def _is_known(token: str, known: Collection[str]) -> bool:
    """Does a token consist only of known words and punctuation?"""
    return all(
        part in _PUNCTUATION
        or part.lower() in known
        or (part.isalpha() and all(hump.lower() in known for hump in _HUMPS.findall(part)))
        for part in _WORDS.findall(token)
    )


def masked_with_keys(text: str, sources: Iterable[Source], names: Collection[str] = ()) -> str:
    """As `masked`, with the words of the keys in `sources` as known words. The keys whose values
    the text repeats are named after it, with file and line."""
    files = tuple(sources)
    pairs = [(file, item) for file in files for item in _statements(file)]
    words = {word for _, item in pairs for part in item.raw for word in _key_words(part)}
    result = masked(text, (*names, *(file.name for file in files)), words)
    if HIDDEN not in result:
        return result
    read = _PLACE.sub("", text[:_MOST_READ])
    keys = dict.fromkeys(key for file, item in pairs for key in _repeated(read, file, item))
    if not keys or len(keys) > _MOST_KEYS:
        return result
    return f"{result} ({HIDDEN} is the value of {' or of '.join(keys)})"


def _statements(file: Source) -> tuple[Statement, ...]:
    try:
        return scan.statements(file.text)
    except (ValueError, RecursionError):
        return ()


def _key_words(part: str) -> list[str]:
    """The words of a part of a key. A quoted part has none, because it can be a name of a host or a
    user."""
    return [] if part[0] in "\"'" else re.findall(r"[a-z]+\d*", part.lower())


def _repeated(text: str, file: Source, statement: Statement) -> Iterator[str]:
    """The keys of a statement whose values the text repeats, each with its line and file."""
    if statement.kind != "key":
        return
    for path, value in _values(get(file.data, statement.path), statement.path):
        word = str(value)
        if len(word) < _SHORTEST or word not in text or _is_known(word, _known()):
            continue
        if re.search(rf"(?<![\w.@/-]){re.escape(word)}(?![\w@/-])", text):
            line = file.text.count("\n", 0, statement.code) + 1
            yield f"{safe_path(path)}, line {line} of {file.name}"


def _values(data: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """(path, value) of the strings, numbers and dates in a value."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _values(value, (*path, key))
    elif isinstance(data, list):
        for item in data:
            yield from _values(item, path)
    elif not isinstance(data, bool | None):
        yield path, data


def safe_path(path: Path) -> str:
    """A path of keys for messages, without users and passwords in URLs."""
    return dotted(tuple(safe_key(part) for part in path))


def safe_key(key: str) -> str:
    """A key for messages. If it is a URL, with or without `://`, its user and password are
    hidden."""
    text = redact_text(key)
    if text != key or "@" not in text or not re.search(r"[:/].*@", text):
        return text
    return HIDDEN + text[text.rindex("@") :]
