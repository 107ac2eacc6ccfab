"""Secrets that are planted in a configuration, and where they came out.

A secret is made of pieces with separators between them. No piece is a word of anything else, so
that a single one in an output is a leak.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

_LETTERS = "bcdfghjkmnpqrstvwxz"
SEPARATORS = (
    "",
    " ",
    "@",
    ":",
    "/",
    '"',
    "'",
    "`",
    "\\",
    "=",
    "#",
    ", ",
    "(3, 1): ",
    "\u00fc",
    "-",
)


def piece(chance: random.Random) -> str:
    """A word that is in no list."""
    return "zq" + "".join(chance.choice(_LETTERS) for _ in range(8)) + str(chance.randrange(10, 99))


def leaked(secrets: list[str], *texts: str) -> list[str]:
    """The pieces that stand in one of the texts."""
    return [one for one in secrets if any(one in text for text in texts)]


def holders(directory: Path, secret: bytes) -> Iterator[tuple[str, int]]:
    """Every regular file below a directory that has the secret, by its path and mode."""
    for above, _, names in os.walk(directory):
        for name in names:
            path = Path(above, name)
            if path.is_symlink() or not path.is_file():
                continue
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            if secret in data:
                yield str(path.relative_to(directory)), path.stat().st_mode & 0o777


def output(result: subprocess.CompletedProcess[str]) -> str:
    """All that a command said."""
    return result.stdout + result.stderr
