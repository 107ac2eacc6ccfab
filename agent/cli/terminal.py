"""The terminal that this process prints to.

Invariant: the only module that asks for the size of a terminal, for its kind and for NO_COLOR.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.cli.render.base import Screen


def screen(color: str) -> Screen:
    """The screen of standard output; `color` is a choice of --color. Where it is no terminal, a
    line has 80 columns, or those that the variable COLUMNS names."""
    from agent.cli.render.base import Screen

    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    colored = color == "always" or (color == "auto" and sys.stdout.isatty() and not plain)
    return Screen(shutil.get_terminal_size((80, 24)).columns, colored)
