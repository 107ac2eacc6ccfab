"""Write an executable `containerd`, or another runtime, that is the scripted one."""

from __future__ import annotations

import os
from pathlib import Path

from tests.double.script import VARIABLE

_ROOT = Path(__file__).resolve().parents[2]

# Both a shell script and a Python program: a path with spaces does not fit behind `#!`. The process
# is then Python with this file as its first argument, and the server sets its name itself.
_PROGRAM = """\
#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
import os
import sys

sys.path[0] = {root!r}
os.environ.setdefault({variable!r}, {script!r})

{call}
"""

_CONTAINERD = """\
from tests.double.command import containerd

sys.exit(containerd({version!r}, {node!r}, sys.argv[1:]))"""


def make_fake_containerd(
    directory: Path | str,
    version: str,
    python: Path | str,
    *,
    node: Path | str = "",
) -> Path:
    """Write `directory`/containerd of that version and give its path.

    `python` has to have the program's dependencies. Its faults are in `directory`/double.json
    unless the environment names another file, so they reach `config dump` whatever environment
    that runs in. For `node` see `server.py`.
    """
    call = _CONTAINERD.format(version=version, node=os.fspath(node))
    return make_program(Path(directory) / "containerd", python, call)


def make_program(program: Path, python: Path | str, call: str) -> Path:
    """Write an executable that imports from this tree and does `call`; gives its absolute path."""
    program = program.absolute()
    program.parent.mkdir(parents=True, exist_ok=True)
    text = _PROGRAM.format(
        python=os.fspath(python),
        root=str(_ROOT),
        variable=VARIABLE,
        script=str(program.with_name("double.json")),
        call=call,
    )
    program.write_text(text, encoding="utf-8")
    program.chmod(0o755)
    return program
