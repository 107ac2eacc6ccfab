"""A drop-in that only CRI-O can parse stops an apply only where it sets keys of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.cli_node import is_refused
from tests.cli.crio import make, restarts
from tests.conformance import checks
from tests.conformance.trees import contents, snapshot
from tests.doubles.crio.crio_node import CrioNode

_KEYS = "[theirs]\n" + "a." * 70 + "a = 1\n"  # more parts than we read


def _drop_in(node: CrioNode, text: str, name: str) -> Path:
    path = node.drop_in.with_name(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + _KEYS)
    return path


@pytest.fixture
def idle(place: Path) -> CrioNode:
    """A node whose CRI-O does not run yet."""
    return make(place)


@pytest.fixture
def running(idle: CrioNode) -> Iterator[CrioNode]:
    with idle as node:
        yield node


@pytest.mark.parametrize("version", ["1.37.0", "1.24.6"])
def test_unread_drop_in_without_our_keys_is_a_warning(place: Path, version: str) -> None:
    """A warning names it; the node is made right, is right, and comes back."""
    idle = make(place, version)
    path = _drop_in(idle, "[crio.runtime]\npids_limit = 77\n", "05-theirs.conf")
    with idle as node:
        before = contents(snapshot(node.etc))
        result = node.agent("apply")
        checks.done(result)
        assert f"{path} cannot be read by this agent" in result.stdout
        assert "Nothing to do" in node.agent("apply").stdout
        status = json.loads(node.agent("status", "-o", "json").stdout)
        assert status["ready"] is True
        assert any(text.startswith(str(path)) for text in status["warnings"])
        checks.done(node.agent("revert"))
        assert contents(snapshot(node.etc)) == before


_CRUN = '[crio.runtime.runtimes.crun]\nruntime_path = "@BIN@/runc"\n'
_PIDS = "[crio.runtime]\npids_limit = 77\n"


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("05-theirs.conf", f'[crio.runtime]\ndefault_runtime = "crun"\n{_CRUN}', "it sets "),
        ("05-theirs.conf", _CRUN, "it sets runtimes.crun"),
        ("zz-theirs.conf", _PIDS, "it is read after "),
        ("05-theirs.conf", "[crio.runtime\n", "does not read it either"),
    ],
)
def test_unread_drop_in_with_our_keys_is_refused(
    running: CrioNode, name: str, text: str, why: str
) -> None:
    """The refusal says why, and nothing is touched."""
    path = _drop_in(running, text.replace("@BIN@", str(running.bin)), name)
    before = contents(snapshot(running.etc))
    for command in ("plan", "apply"):
        words = (f"cannot use {path}: ", "no edit of it is needed, but ", why)
        is_refused(command, running.agent(command), 3, *words)
    assert contents(snapshot(running.etc)) == before
    assert restarts(running) == 0


def test_unread_drop_in_on_a_right_node_changes_nothing(running: CrioNode) -> None:
    """Nothing has to be edited, so that nothing can be lost to it."""
    checks.done(running.agent("apply"))
    _drop_in(running, _PIDS, "zz-theirs.conf")
    assert "Nothing to do" in running.agent("apply").stdout
    checks.done(running.agent("revert"))
