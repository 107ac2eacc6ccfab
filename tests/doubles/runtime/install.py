"""Write an executable `containerd`, or another runtime, that is the scripted one.

Such a program asks the tests' fork server to do its work, where it was given the address of one: a
test starts dozens of programs, and most of a start is imports. The work then runs in a process of
the server, with another pid, so a daemon is started by `start_program`.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.doubles.runtime.script import VARIABLE
from tests.doubles.runtime.supervisor import Child, execute
from tests.tools import forked

_ROOT = Path(__file__).resolve().parents[3]

# Both a shell script and a Python program: a path with spaces does not fit behind `#!`. The process
# is then Python with this file as its first argument, and the server sets its name itself. Without
# site packages Python starts in half the time; they are looked for where they are needed.
_PROGRAM = """\
#!/bin/sh
'''exec' "{python}" -ISB "$0" "$@"
' '''
import os
import sys

{marker}{code!r}
sys.path.insert(0, {root!r})
from tests.tools.fork_client import become

become({server!r}, CODE)
import site

site.main()
exec(CODE)
"""
_MARKER = "CODE = "
_CODE = """\
import os
import sys

os.environ.setdefault({variable!r}, {script!r})
{call}
"""

_CONTAINERD = """\
from tests.doubles.containerd.command import containerd

sys.exit(containerd({version!r}, {node!r}, sys.argv[1:]))"""


def make_fake_containerd(
    directory: Path | str,
    version: str,
    python: Path | str,
    *,
    node: Path | str = "",
    server: str = "",
) -> Path:
    """Write `directory`/containerd of that version and give its path.

    `python` has to have the program's dependencies. Its faults are in `directory`/double.json
    unless the environment names another file, so they reach `config dump` whatever environment
    that runs in. For `node` see `server.py`, for `server` see `make_program`.
    """
    call = _CONTAINERD.format(version=version, node=os.fspath(node))
    return make_program(Path(directory) / "containerd", python, call, server=server)


def make_program(program: Path, python: Path | str, call: str, *, server: str = "") -> Path:
    """Write an executable that imports from this tree and does `call`; gives its absolute path.

    server: the address of a fork server that does it instead, with the same mounts.
    """
    program = program.absolute()
    program.parent.mkdir(parents=True, exist_ok=True)
    script = str(program.with_name("double.json"))
    text = _PROGRAM.format(
        python=os.fspath(python),
        root=str(_ROOT),
        server=server,
        marker=_MARKER,
        code=_CODE.format(variable=VARIABLE, script=script, call=call),
    )
    program.write_text(text, encoding="utf-8")
    program.chmod(0o755)
    return program


def start_program(
    argv: Sequence[str], env: Mapping[str, str] | None, directory: Path, log: int
) -> Child:
    """Start a program that `make_program` wrote as a process of the fork server's; another one is
    executed. For a Supervisor."""
    code = _code_of(Path(argv[0]))
    if not code or env is None:
        return execute(argv, env, directory, log)
    program = forked.Program((sys.executable, argv[0]), code)
    with open(os.devnull, "rb") as nothing:
        streams = nothing.fileno(), log, log
        return forked.start(program, argv[1:], env, directory, streams, session=True)


def _code_of(program: Path) -> str:
    """What such a program does; empty where it is none."""
    if not program.is_absolute():
        return ""
    lines = program.read_text("utf-8", "replace").splitlines()
    found = next((line for line in lines if line.startswith(_MARKER)), "")
    return str(ast.literal_eval(found.removeprefix(_MARKER))) if found else ""
