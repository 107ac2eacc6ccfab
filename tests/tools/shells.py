"""The shells that a POSIX script is tried in, and what is wrong with a script by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.host_tools import reason, tool

SHELLS = (("dash",), ("bash", "--posix"), ("busybox", "sh"))


def start(shell: tuple[str, ...]) -> list[str]:
    """The command of one of them; skips the test where it is not there."""
    path = tool(shell[0])
    if path is None:
        pytest.skip(reason(shell[0]))
    return [str(path), *shell[1:]]


def shellcheck(*paths: Path) -> str:
    """What shellcheck finds, empty for nothing."""
    words = [str(Path(sys.executable).with_name("shellcheck")), "-x", *map(str, paths)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode == 0) == (done.stdout == ""), done.stderr
    return done.stdout
