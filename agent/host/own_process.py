"""The command line of a child process that runs a module of ours.

Invariant: modules are imported from the directory of this package, installed or not, and never from
the working directory. `-m agent` would put that first on the path.
"""

from __future__ import annotations

import os
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def command(module: str, *flags: str) -> list[str]:
    """The first words of a command line that calls `main` of a module. More `flags` are those of
    the interpreter."""
    code = f"import sys; sys.path.append(sys.argv.pop(1)); from {module} import main; main()"
    return [sys.executable, "-P", *flags, "-c", code, _ROOT]
