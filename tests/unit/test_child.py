"""One convergence of `run`: what it hands back to who waits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.daemon import child
from agent.daemon.child import Inherited
from agent.errors import Refused
from tests.unit.made_node import Node


def fails(*_: object) -> None:
    raise Refused("cannot use it: it is broken")


def crashes(*_: object) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("converge", [fails, crashes])
def test_failure_tells_what_to_watch_too(
    converge: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next try would come with the time only, which is soon for the first failures and
    late for the others."""
    node = Node(tmp_path, monkeypatch)
    monkeypatch.setattr(child, "converge", converge)
    monkeypatch.setattr(child, "watched", lambda *_: ("/a", "/b"))
    said: list[str] = []
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    lock = os.open(os.devnull, os.O_RDONLY)
    inherited = Inherited(lock, writer, 0.0, 0, afresh=False)
    try:
        if converge is crashes:
            with pytest.raises(ZeroDivisionError):
                child.work(node.context(), inherited, said.append)
        else:
            assert child.work(node.context(), inherited, said.append) == 3
            assert said == ["cannot use it: it is broken"]
        assert os.read(reader, 100) == b"/a\0/b"
    finally:
        os.close(lock)
        os.close(reader)
