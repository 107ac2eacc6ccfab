"""Another runtime than the one asked for is named."""

from __future__ import annotations

import os
import socket as sockets
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cri.client import Answer
from agent.errors import Unreachable
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings, resolve
from agent.runtimes import find, registry
from agent.runtimes.base import Endpoint, Runtime


@pytest.fixture
def crio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The socket of a CRI-O that answers, where there is no containerd."""
    path = tmp_path / "crio.sock"
    path.touch()
    places = {"containerd": (str(tmp_path / "containerd.sock"),), "crio": (str(path),)}
    moved = [replace(item, sockets=places[item.kind]) for item in registry.REGISTERED]
    monkeypatch.setattr(registry, "REGISTERED", moved)

    def runtime(settings: Settings, _: HostRoot, given: str) -> Runtime:
        if given != str(path):
            raise Unreachable(f"cannot reach {given}: connection refused", code="X")
        assert settings.runtime == "crio"
        answer = Answer("cri-o", "1.37.0", True, None, ())
        return Runtime(Endpoint("crio", HostPath(given, given)), None, answer)

    monkeypatch.setattr(find, "_runtime", runtime)
    return path


@pytest.mark.parametrize("listens", [False, True])
def test_other_runtime_is_named(listens: bool, crio: Path) -> None:
    """Also where the wanted one left a socket behind, and where its socket was given."""
    wanted = crio.with_name("containerd.sock")
    if listens:
        with sockets.socket(sockets.AF_UNIX) as made:
            made.bind(os.fspath(wanted))
    for options in ({}, {"socket": str(wanted)}):
        settings = resolve({"runtime": "containerd", **options}, {}, "toolkit-agent")
        with pytest.raises(Unreachable, match=rf"cri-o 1\.37\.0 at {crio}; give --runtime=auto"):
            find.find_runtime(settings, HostRoot("/"))


def test_none_is_named_where_there_is_none(crio: Path) -> None:
    """What was said before is said."""
    settings = resolve({"runtime": "crio", "socket": "/none"}, {}, "toolkit-agent")
    with pytest.raises(Unreachable, match=r"^cannot reach /none: connection refused$"):
        find.find_runtime(settings, HostRoot("/"))
