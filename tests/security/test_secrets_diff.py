"""A password in any place of a configuration file, in the diff that `plan` prints.

The attack needs no attacker: `plan` is run by whoever debugs a node, and its output is pasted into
issues. What must hold: whatever a value or a comment is, and whatever its key is called, no piece
of it is in the diff; and the lines that differ are in it.
"""

from __future__ import annotations

import contextlib
import random
import tomllib
from collections.abc import Callable

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from agent.cli.render.diffs import diff
from agent.errors import Refused
from agent.host.files import Change, FileState
from agent.host.paths import HostPath
from agent.toml import document
from agent.toml.document import Set, Unset
from tests.security.planted import SEPARATORS, leaked, piece

PATH = HostPath("/host/etc/containerd/config.toml", "/etc/containerd/config.toml")
_CRI = "io.containerd.grpc.v1.cri"
_HEAD = f'plugins."{_CRI}"'
_KEYS = (
    "password", "key", "private_key", "pwd", "x", '"a:b"', '"a/b"', '"https://r.example:5000"',
    '"pass\\u0077ord"', "headers.Authorization", "env", "BinaryName", "root", "version", "imports",
)  # fmt: skip
_TABLES = (
    "[x]", f"[{_HEAD}.registry.configs.{{}}.auth]", f"[{_HEAD}.registry.headers]", "[[proxy]]",
    '[proxy_plugins."a b"]', f"[{_HEAD}.registry.mirrors.\"r.example\"]",
    "[crio.runtime.workloads.a]", "[stream_processors.\"io.containerd.x\"]",
)  # fmt: skip
_EDITS: tuple[document.Op, ...] = (
    Set(("plugins", _CRI, "enable_cdi"), True),
    Set(("plugins", _CRI, "containerd", "default_runtime_name"), "nvidia"),
    Set(("plugins", _CRI, "containerd", "runtimes", "nvidia"), {"runtime_type": "x"}),
    Set(("imports",), ["/etc/containerd/conf.d/99-nvidia*.toml"]),
    Unset(("x",)),
)


def value(chance: random.Random, pieces: list[str]) -> str:
    """A value of some spelling, with a secret in it."""
    one, two = piece(chance), piece(chance)
    pieces += [one, two]
    text = f"{one}{chance.choice(SEPARATORS)}{two}"
    basic = text.replace("\\", "\\\\").replace('"', '\\"')
    literal = text.replace("'", "")
    spellings: list[Callable[[], str]] = [
        lambda: f'"{basic}"',
        lambda: f"'{literal}'",
        lambda: f'"""\n{basic}\n  k = "{one}" # {two}\n[{one}]\n"""',
        lambda: f"'''\n{literal}\n{two} = 1'''",
        lambda: f'["{basic}", ["{one}"]]',
        lambda: f'[\n  # {two}\n  "{basic}", # "{one}\n  \'{literal}\',\n]',
        lambda: f'{{ a = "{basic}", "b:c" = ["{one}"], d.e = \'{literal}\' }}',
    ]
    return chance.choice(spellings)()


def made_document(chance: random.Random, pieces: list[str]) -> str:
    """A file with secrets as values, in comments, and as users in the names of hosts."""
    lines = []
    for table in ("", *chance.sample(_TABLES, 3)):
        user, secret = piece(chance), piece(chance)
        pieces += [user, secret]
        host = chance.choice(
            [f'"https://{user}:{secret}@r.example"', f'"{user}:{secret}@r.example"']
        )
        lines.append(table.format(host))
        for key in chance.sample(_KEYS, 4):
            if not table and key in ("version", "imports", "x"):
                continue
            comment = piece(chance)
            pieces.append(comment)
            indent = " " * chance.randrange(3)
            if chance.random() < 0.3:
                lines.append(f'{indent}#{comment} = "{comment}"')
            if chance.random() < 0.1:
                lines.append(f"{indent}#{indent}{comment}")
            behind = f" # {comment}" if chance.random() < 0.3 else ""
            lines.append(f"{indent}{key} = {value(chance, pieces)}{behind}")
    return "\n".join(lines) + "\n"


@given(st.integers(min_value=0, max_value=1 << 32))
@settings(max_examples=300, deadline=None)
def test_no_piece_is_shown(seed: int) -> None:
    """The file goes, comes, is edited by us, and is garbled."""
    chance = random.Random(seed)  # noqa: S311
    pieces: list[str] = []
    text = made_document(chance, pieces)
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        reject()
    states = [None, text, made_document(chance, pieces), f"{text}\nx = {piece(chance)}", text[:-20]]
    with contextlib.suppress(Refused):
        states.append(document.edit(text, [chance.choice(_EDITS)], "x"))
    for before, after in ((chance.choice(states), chance.choice(states)) for _ in range(6)):
        old, new = (None if one is None else FileState(one.encode()) for one in (before, after))
        found = diff(Change(PATH, old, new))
        assert leaked(pieces, found) == []
        assert bool(found) == (before != after)


def test_our_edit_is_readable() -> None:
    """What is ours is shown, old and new, with the table that it stands in."""
    text = f'[{_HEAD}]\n  enable_cdi = false # off\n  sandbox_image = "a"\n'
    new = document.edit(text, [_EDITS[0]], "x")
    found = diff(Change(PATH, FileState(text.encode()), FileState(new.encode())))
    assert found.splitlines()[3:] == [
        f" [{_HEAD}]", "-  enable_cdi = false  # …", "+  enable_cdi = true  # …",
        "   sandbox_image = …",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "key", ["BinaryName", "runtime_path", "default_runtime_name", "enable_cdi"]
)
def test_name_of_ours_elsewhere_is_not_ours(key: str) -> None:
    """Only at its place: a table of somebody's plugin can have the same key."""
    text = f'[plugins.mine.containerd.runtimes.x]\n{key} = "zqhunter2"\n'
    assert "zqhunter2" not in diff(Change(PATH, None, FileState(text.encode())))
