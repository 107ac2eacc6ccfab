"""Start a program, unless the files that it would read match a pattern: then die at once.

    python brittle.py PATTERN DIRECTORY PROGRAM [ARGUMENT...]

Put before a runtime it makes one that cannot live with a configuration, whatever a check of that
configuration said before.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path


def main() -> None:
    """Die or become the program."""
    pattern, directory, *program = sys.argv[1:]
    for path in Path(directory).rglob("*.toml"):
        if re.search(pattern, path.read_text(encoding="utf-8")):
            sys.exit(f"{path} contains {pattern}")
    os.execv(program[0], program)  # noqa: S606 - becoming it is the point


if __name__ == "__main__":
    main()
