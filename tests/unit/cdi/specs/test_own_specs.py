"""Our specs are found by name and mark."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cdi.specs import own_specs
from agent.host.paths import HostRoot
from agent.options.settings import resolve

KIND = "management.nvidia.com/gpu"
OURS = f"{own_specs.MARK}\nkind: {KIND}\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "etc/cdi"
    made.mkdir(parents=True)
    return made


def has_needed(root: Path) -> bool:
    settings = resolve({}, {}, "toolkit-agent")
    return own_specs.has_needed(settings, HostRoot(str(root)), ("/etc/cdi",), KIND)


def test_needed_spec_is_found_in_a_crowd(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node with DRA has a spec for each claim, and their names come first."""
    monkeypatch.setattr("agent.host.budget.SPEC_FILES", 3)
    for number in range(4):
        (directory / f"k8s.gpu.nvidia.com-claim_{number}.json").write_text("{}")
    assert not has_needed(tmp_path)
    (directory / own_specs.file_name(KIND)).write_text(OURS)
    assert has_needed(tmp_path)


def test_link_is_not_our_spec(tmp_path: Path, directory: Path) -> None:
    (tmp_path / "elsewhere").write_text(OURS)
    (directory / own_specs.file_name(KIND)).symlink_to(tmp_path / "elsewhere")
    assert not has_needed(tmp_path)


def test_spec_of_another_writer_is_not_ours(tmp_path: Path, directory: Path) -> None:
    (directory / own_specs.file_name(KIND)).write_text(f"kind: {KIND}\n")
    assert not has_needed(tmp_path)
