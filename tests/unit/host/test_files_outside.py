"""In a directory whose reader takes every name (CRI-O's), files are whole at every moment."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from agent.errors import Refused
from agent.host import files
from agent.host.files import Change, FileState
from agent.host.paths import HostPath
from tests.sampling import by_run, sample
from tests.unit.support.faults import Faults
from tests.unit.support.made_node import NEW, OLD, Node

WHOLE = {*OLD.values(), *NEW.values()}


def look(directory: Path) -> None:
    """Fail where a reader would find anything that is not a whole file."""
    for path in directory.rglob("*"):
        if path.is_file():
            assert path.read_text() in WHOLE, path


class Outside(Node):
    """The made-up node, with nothing but whole files in its directory."""

    def changes(self) -> tuple[Change, ...]:
        above = str(self.etc.parent)
        return tuple(replace(c, outside=HostPath(above, above)) for c in super().changes())

    def watched(self, decide: Callable[..., BaseException | None]) -> Faults:
        """Faults, and a look at the directory before each call."""

        def both(number: int, name: str, args: tuple[Any, ...]) -> BaseException | None:
            look(self.etc)
            return decide(number, name, args)

        return Faults(both)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outside:
    return Outside(tmp_path, monkeypatch)


def some_calls(node: Outside, name: str) -> list[int]:
    """The numbers of some calls, others for each commit; of half of them in a long run."""
    count = node.calls()
    return sample(range(1, count + 1), count // by_run(6, 2), name)


@pytest.mark.parametrize("verdict", ["good", "bad", "dead"])
def test_files_are_whole_at_every_moment(verdict: str, node: Outside) -> None:
    """While it is written, and while it is undone; nothing is left outside."""
    node.verdict = verdict
    outcome = node.outcome(node.watched(lambda *_: None))
    assert outcome == ("Done" if verdict == "good" else "NotAccepted")
    assert node.tree() == node.loaded == (NEW if verdict == "good" else OLD)
    assert node.modes() == {0o640}
    assert node.strays() == []


@pytest.mark.parametrize("verdict", ["good", "dead"])
def test_change_killed_before_any_call_leaves_whole_files(verdict: str, node: Outside) -> None:
    """A runtime that is started then finds whole files, and the next start finishes or undoes."""
    node.verdict = verdict
    for k in some_calls(node, verdict):
        node.reset()
        faults = node.watched(Faults.killed(k).decide)
        assert node.outcome(faults) == "Killed"
        look(node.etc)
        node.check_recovery()
        look(node.etc)
        assert list(node.etc.parent.rglob("*~")) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_any_failing_call_is_done_refused_or_undone(code: int, node: Outside) -> None:
    """Whichever it is: done, refused, or undone."""
    node.verdict = "good"
    for k in some_calls(node, str(code)):
        node.reset()
        outcome = node.outcome(node.watched(Faults.failing(k, code).decide))
        assert node.tree() in (OLD, NEW)
        assert node.tree() == (NEW if outcome == "Done" else OLD) or outcome == "RollbackFailed"
        node.check_recovery()


def test_original_that_cannot_wait_outside_comes_from_the_store(node: Outside) -> None:
    """A directory that only its own mount lets us write: the store has the original."""
    real = files.stage

    def stage(path: str, state: FileState, name: str | None = None) -> str:
        if os.path.dirname(path) == str(node.etc.parent):
            raise OSError(errno.EROFS, "read-only")
        return real(path, state, name)

    node.verdict = "bad"
    with mock.patch.object(files, "stage", stage):
        assert node.outcome(node.watched(lambda *_: None)) == "NotAccepted"
    assert node.tree() == node.loaded == OLD
    assert node.modes() == {0o640}


def test_original_on_another_mount_comes_from_the_store(node: Outside) -> None:
    """It cannot be renamed from there; the bytes come from the store."""
    real = files.move

    def move(old: str, new: str) -> None:
        if os.path.dirname(old) != os.path.dirname(new):
            raise OSError(errno.EXDEV, "another mount")
        real(old, new)

    node.verdict = "bad"
    with mock.patch.object(files, "move", move):
        assert node.outcome(node.watched(lambda *_: None)) == "NotAccepted"
    assert node.tree() == node.loaded == OLD
    assert node.strays() == []


def place(path: Path, data: bytes, *, fresh: bool) -> None:
    """Put these bytes there."""
    outside = str(path.parent.parent / ".outside~")
    transient = f".{path.name}.new~"
    files.place(
        str(path), files.new_state(data, 0o600), fresh=fresh, transient=transient, outside=outside
    )


@pytest.fixture(params=["nameless", "named"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A directory, on a file system that knows files without a name and on one that does not."""
    path = tmp_path / "d"
    path.mkdir()
    if request.param == "nameless":
        yield path
        return
    with mock.patch.object(files, "_open_nameless", return_value=None):
        yield path


def test_placed_file_has_bytes_mode_and_no_other_name(directory: Path) -> None:
    """New, then replaced: mode and bytes, and no other name."""
    path = directory / "99.conf"
    place(path, b"one", fresh=True)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"one", 0o600)
    place(path, b"two", fresh=False)
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.parent.rglob("*") if p.is_file()] == ["99.conf"]


def test_place_takes_nobodys_place(directory: Path) -> None:
    """A file that came since is not ours to replace."""
    path = directory / "99.conf"
    path.write_text("theirs")
    with pytest.raises(FileExistsError):
        place(path, b"one", fresh=True)
    assert path.read_text() == "theirs"
    assert [p.name for p in path.parent.parent.rglob("*") if p.is_file()] == ["99.conf"]


def test_place_without_a_way_is_refused(tmp_path: Path) -> None:
    """No files without a name, and nowhere to bring one in from: refused, with what to do."""
    path = tmp_path / "d" / "99.conf"
    path.parent.mkdir()

    def rename(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "another mount")

    with (
        mock.patch.object(files, "_open_nameless", return_value=None),
        mock.patch.object(os, "link", rename),
        pytest.raises(Refused, match=r"^cannot write 99\.conf in one step.*mount .* as a whole"),
    ):
        place(path, b"one", fresh=True)
    assert list(path.parent.iterdir()) == []
