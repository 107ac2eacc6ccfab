"""The terminal that this process prints to.

Invariant: the only module that asks for the size and the kind of a terminal and for NO_COLOR.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from agent.cli.render.base import Screen


def screen(color: str) -> Screen:
    """The screen of standard output; `color` is a choice of --color. Where it is no terminal, a
    line has 80 columns, or those that the variable COLUMNS names."""
    from agent.cli.render.base import Screen

    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    colored = color == "always" or (color == "auto" and sys.stdout.isatty() and not plain)
    return Screen(shutil.get_terminal_size((80, 24)).columns, colored)


def columns(stream: TextIO) -> int:
    """The width of the terminal behind a stream, whatever COLUMNS says."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
