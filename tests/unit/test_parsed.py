"""Large files are parsed once per change, and never taken for what they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import tomledit
from agent.engine import parsed
from agent.engine.state import Store
from agent.host.files import new_state
from agent.host.paths import HostPath
from agent.runtimes.containerd import ConfigFile

LARGE = b"# " + b"x" * (1 << 15) + b"\na = 1\nb = 1.0\nc = [true, {d = 'e'}]\n"


def file(data: bytes) -> ConfigFile:
    """A file as it is loaded."""
    parsed_data = tomledit.parse(data, "c")
    return ConfigFile("/c", HostPath("/c", "/c"), new_state(data), parsed_data)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(str(tmp_path / "state"))
    found.create()
    return found


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was really parsed."""
    seen: list[str] = []
    real = tomledit.parse

    def parse(data: bytes, name: str) -> tomledit.Data:
        seen.append(name)
        return real(data, name)

    monkeypatch.setattr(tomledit, "parse", parse)
    return seen


def test_large_file_is_known_again(store: Store, parses: list[str]) -> None:
    """The same data, types and order included, and a fresh object each time."""
    loaded = file(LARGE)
    parsed.keep(store, (loaded,))
    parses.clear()
    parse = parsed.parser(store)
    one, other = parse(LARGE, "c"), parse(LARGE, "c")
    assert repr(one) == repr(other) == repr(loaded.data)
    assert one is not other
    assert parses == []
    assert Path(store.path("parsed.json")).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("data", [b"a = 1\n", LARGE + b"d = 2026-01-01\n"])
def test_what_is_small_or_no_json_is_parsed(store: Store, parses: list[str], data: bytes) -> None:
    """There is nothing to gain, or something to lose; and what was kept before goes."""
    parsed.keep(store, (file(LARGE),))
    parsed.keep(store, (file(data),))
    parses.clear()
    parsed.parser(store)(data, "c")
    assert parses == ["c"]
    assert not Path(store.path("parsed.json")).exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"{}", b"\xff", b"[" * 100_000])
def test_damage_costs_time_only(store: Store, parses: list[str], content: bytes) -> None:
    """Whatever lies there."""
    Path(store.path("parsed.json")).write_bytes(content)
    assert parsed.parser(store)(LARGE, "c")["a"] == 1
    assert parses == ["c"]


def test_another_byte_is_another_file(store: Store, parses: list[str]) -> None:
    """By its digest."""
    parsed.keep(store, (file(LARGE),))
    parses.clear()
    assert parsed.parser(store)(LARGE + b"f = 2\n", "c")["f"] == 2
    assert parses == ["c"]
    parsed.forget(store)
    parsed.forget(store)
    assert not Path(store.path("parsed.json")).exists()
