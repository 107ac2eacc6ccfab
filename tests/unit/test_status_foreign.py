"""Beside gpu-operator's validator, `toolkit-ready` is filled where it is and never made."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.status import READY, TWIN, Publisher
from tests.unit.support.published import content, lines


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "nvidia/validations"


@pytest.fixture
def foreign(directory: Path) -> Publisher:
    """A publisher beside gpu-operator's validator, which owns `toolkit-ready`."""
    directory.mkdir(parents=True)
    return Publisher(str(directory), foreign_barrier=True)


def test_foreign_barrier_is_never_created(foreign: Publisher, directory: Path) -> None:
    """The validator decides when its init containers may go on; the twin is always ours."""
    foreign.publish(lines())
    assert set(content(directory)) == {TWIN}


@pytest.mark.parametrize("before", [b"", b"IS_HOST_DRIVER=true\n"])
def test_foreign_barrier_is_filled_where_it_is(
    before: bytes, foreign: Publisher, directory: Path
) -> None:
    """The validator touches it empty; our lines go into it, once."""
    (directory / READY).write_bytes(before)
    foreign.publish(lines())
    assert content(directory)[READY] == content(directory)[TWIN]
    assert not foreign.publish(lines())


def test_foreign_barrier_emptied_again_is_refilled(foreign: Publisher, directory: Path) -> None:
    """The validator runs again at each start of its pod."""
    (directory / READY).touch()
    foreign.publish(lines())
    (directory / READY).write_bytes(b"")
    assert foreign.publish(lines())
    assert content(directory)[READY] == content(directory)[TWIN]


def test_foreign_barrier_comes_back_after_a_proof(foreign: Publisher, directory: Path) -> None:
    """Withdrawn for a change, it is put back if it was there."""
    (directory / READY).touch()
    there = READY in foreign.save()
    foreign.withdraw()
    assert content(directory) == {}
    foreign.publish(lines(), barrier_was_there=there)
    assert content(directory)[READY] == content(directory)[TWIN]


def test_foreign_empty_barrier_comes_back_empty_after_a_rollback(
    foreign: Publisher, directory: Path
) -> None:
    """The old content is brought back, whatever it was."""
    (directory / READY).touch()
    saved = foreign.save()
    foreign.withdraw()
    foreign.restore(saved)
    assert content(directory) == {READY: b""}
