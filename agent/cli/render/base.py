"""The common parts of the output of all commands: documents, texts and tables.

Invariant: pure; the width of the screen and colours are parameters. Each command prints one stable
document (`apiVersion`, `kind`), with the same data in JSON and in YAML. A document has no secret:
`diffs` hides values of files, and URLs have no users and passwords.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agent.cdi import yaml_text
from agent.redaction import redact

API = "toolkit-agent/v1"
LABEL = 11  # columns of the labels before a paragraph
_NARROW = 12  # columns; a column of a table is not made narrower

Tone = Literal["good", "bad", "warn", "bold"]
_TONES: Mapping[Tone, str] = {"good": "32", "bad": "1;31", "warn": "33", "bold": "1"}


def document(kind: str, body: Mapping[str, Any], form: str = "json") -> str:
    """The text of a redacted document with this `kind` and content. `form` is "json" or "yaml"."""
    data = {"apiVersion": API, "kind": kind, **redact(body)}
    if form == "yaml":
        return "\n".join(yaml_text.lines(data))
    import json

    return json.dumps(data, indent=2, ensure_ascii=False)


@dataclass(frozen=True)
class Screen:
    """The place where a text is shown: the columns of a line (`width`), and whether there are
    colours."""

    width: int = 80
    color: bool = False

    def paint(self, text: str, tone: Tone) -> str:
        """The text in the colour of a tone; the text itself if there are no colours."""
        return f"\x1b[{_TONES[tone]}m{text}\x1b[0m" if self.color else text

    def entry(self, label: str, words: str, tone: Tone | None = None) -> list[str]:
        """The lines of a paragraph after a label. All lines begin in the same column and fit the
        screen, but a longer word is not broken. Control characters are shown as escapes."""
        indent = " " * max(LABEL, len(label) + 1)
        first, *more = textwrap.wrap(
            printable(words), max(self.width, 40), initial_indent=indent,
            subsequent_indent=indent, break_long_words=False, break_on_hyphens=False,
        ) or [indent]  # fmt: skip
        name = self.paint(label, tone) if tone else label
        return [f"{name}{first[len(label) :]}".rstrip(), *more]

    def table(self, rows: Sequence[tuple[str, ...]]) -> list[str]:
        """The lines of a table with aligned columns; the first row is the heading. If the table is
        wider than the screen, a long cell is broken after a space or a comma and continues in the
        next line."""
        widths = self._widths([max(map(len, column)) for column in zip(*rows, strict=True)])
        return [line for row in rows for line in _row(row, widths, self.width)]

    def _widths(self, natural: list[int]) -> list[int]:
        """The widths of the columns. If they do not fit the screen, the widest become narrower."""
        widths, room = list(natural), self.width - 2 * (len(natural) - 1)
        while sum(widths) > room and max(widths) > _NARROW:
            widths[widths.index(max(widths))] -= 1
        return widths


def _row(row: tuple[str, ...], widths: list[int], width: int) -> Iterator[str]:
    """The lines of a row. A part of a cell that does not fit beside the others gets its own line.
    It begins further left if that line would be wider than the screen."""
    cells = [_broken(cell, column) for cell, column in zip(row, widths, strict=True)]
    while any(cells):
        line, start = "", 0
        for cell, column in zip(cells, widths, strict=True):
            if cell:
                size = len(cell[0])
                begin = start if start + size <= width else max(0, width - size)
                if len(line) > max(0, begin - 2):
                    break
                line = f"{line:<{begin}}{cell.pop(0)}"
            start += column + 2
        yield line.rstrip()


def _broken(cell: str, width: int) -> list[str]:
    """The lines of a cell, of at most `width` columns if its words allow that."""
    lines = [""]
    for word in re.findall(r"[^ ,]*[ ,]?", cell):
        if lines[-1] and len(lines[-1] + word.rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return [line.rstrip() for line in lines]


def printable(text: str) -> str:
    """The text with escapes for its control characters, so that no name can control a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode()
                   for char in text)  # fmt: skip


def counted(number: int, what: str) -> str:
    """A number of things, such as `1 file` or `2 files`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
