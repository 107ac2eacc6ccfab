"""The toolkit's directory is whole at any moment, whatever fails or is killed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest

from agent.errors import Refused
from agent.host import trees
from agent.toolkit import place, tree
from agent.toolkit.tree import Copy, Entry, Link, Text
from tests.sampling import by_run, sample
from tests.unit.support.faults import CODES, Faults, Killed, count

CONFIG = ".config/nvidia-container-runtime/config.toml"
FOREIGN = {"nvidia-ctk": "theirs", "nvidia-ctk.real": "their program", "notes/a.txt": "a note"}


class Place:
    """A directory `live` to be, two releases to put there, and how it looks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.live = directory / "nvidia/toolkit"
        self.releases = {name: self._release(name) for name in ("one", "two")}

    def _release(self, name: str) -> dict[str, Entry]:
        source = self.directory / "source" / name
        source.mkdir(parents=True)
        (source / "program").write_text(f"program of {name}")
        (source / "same").write_text("the same in both")
        (source / "library").write_text(f"library of {name}")
        return {
            "program.real": Copy(str(source / "program")),
            "program": Text(f"wrapper of {name}".encode(), 0o755),
            "same.real": Copy(str(source / "same")),
            "same": Text(b"wrapper", 0o755),
            f"library.so.{name}": Copy(str(source / "library"), 0o644),
            "library.so": Link(f"library.so.{name}"),
            CONFIG: Text(b"mode"),
        }

    def put(self, name: str) -> None:
        place.tidy(str(self.live))
        if tree.difference(str(self.live), self.releases[name]):
            place.put(str(self.live), self.releases[name])

    def wanted(self, name: str) -> dict[str, str]:
        """What the directory has then, but for our list."""
        entries = self.releases[name].items()
        return {path: _content(entry) for path, entry in entries}

    def found(self) -> dict[str, str]:
        return contents(self.live)

    def strays(self) -> list[str]:
        """What lies beside the directory."""
        beside = self.live.parent
        return sorted(p.name for p in beside.iterdir() if p != self.live) if beside.exists() else []

    def foreign(self) -> None:
        """A directory that somebody else made."""
        for name, text in FOREIGN.items():
            path = self.live / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def _content(entry: Entry) -> str:
    match entry:
        case Copy(source, mode):
            return f"{mode:o} {Path(source).read_text()}"
        case Text(data, mode):
            return f"{mode:o} {data.decode()}"
        case Link(target):
            return f"-> {target}"


def contents(directory: Path) -> dict[str, str]:
    """Every file and link below a directory, with its mode; our list aside."""

    def look(path: Path) -> str:
        if path.is_symlink():
            return f"-> {os.readlink(path)}"
        return f"{path.stat().st_mode & 0o777:o} {path.read_text()}"

    return {
        str(path.relative_to(directory)): look(path)
        for path in directory.rglob("*")
        if (path.is_symlink() or path.is_file()) and path.name != tree.LIST
    }


def some(number: int, every: int, name: str) -> list[int]:
    """Of so many calls one in `every`, others for each commit."""
    return sample(range(1, number + 1), number // every, f"place {name}")


@pytest.fixture
def spot(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(params=[None, errno.EINVAL, errno.EXDEV], ids=["exchange", "one-by-one", "overlay"])
def exchange(request: pytest.FixtureRequest) -> Iterator[bool]:
    """With and without a file system on which two directories can change places."""
    error = OSError(request.param, "no")
    real = trees.exchange
    with mock.patch.object(trees, "exchange", side_effect=error if request.param else real):
        yield request.param is None


def test_what_did_not_change_is_not_written_again(spot: Place) -> None:
    spot.put("one")
    assert spot.found() == spot.wanted("one")
    before = {path: (spot.live / path).stat() for path in ("same.real", "same", CONFIG)}
    spot.put("two")
    assert spot.found() == spot.wanted("two")
    for path, old in before.items():
        new = (spot.live / path).stat()
        assert (new.st_ino, new.st_mtime_ns, new.st_nlink) == (old.st_ino, old.st_mtime_ns, 1)
    assert spot.strays() == []


def test_right_directory_is_not_touched(spot: Place) -> None:
    spot.put("one")
    before = {path: path.stat().st_ctime_ns for path in [spot.live, *spot.live.rglob("*")]}
    spot.put("one")
    assert {path: path.stat().st_ctime_ns for path in [spot.live, *spot.live.rglob("*")]} == before


@pytest.mark.parametrize("damage", ["unlink", "write", "chmod", "link", "list"])
def test_damage_is_mended(damage: str, spot: Place) -> None:
    spot.put("one")
    victim = spot.live / "program.real"
    match damage:
        case "unlink":
            victim.unlink()
        case "write":
            victim.write_text("program of ONE")
        case "chmod":
            victim.chmod(0o600)
        case "link":
            victim.unlink()
            victim.symlink_to("/bin/true")
        case "list":
            (spot.live / tree.LIST).write_text("{")
    spot.put("one")
    assert spot.found() == spot.wanted("one")


def test_source_of_equal_size_and_time_is_told_apart(spot: Place) -> None:
    """Images are built with fixed times."""
    spot.put("one")
    source = spot.directory / "source/one/program"
    seen = source.stat()
    source.write_text("program of ONE")
    os.utime(source, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    spot.put("one")
    assert (spot.live / "program.real").read_text() == "program of ONE"


def test_directory_of_somebody_else_s_comes_back(spot: Place) -> None:
    """What NVIDIA's installer has put there makes room; other things stay where they are."""
    spot.foreign()
    theirs = spot.found()
    spot.put("one")
    assert spot.found() == {**spot.wanted("one"), "notes/a.txt": theirs["notes/a.txt"]}
    assert spot.strays() == [place.BEFORE]
    spot.put("two")
    assert contents(spot.live.parent / place.BEFORE) == theirs
    assert place.remove(str(spot.live))
    assert spot.found() == theirs
    assert spot.strays() == []
    assert not place.remove(str(spot.live))


def test_what_is_removed_leaves_nothing(spot: Place) -> None:
    """Directories that were made for it go too, and what others put there since stays."""
    spot.put("one")
    assert place.remove(str(spot.live))
    assert not spot.live.parent.exists()
    spot.put("one")
    (spot.live / "mine").write_text("mine")
    assert place.remove(str(spot.live))
    assert spot.found() == {"mine": "644 mine"}


def watched(spot: Place, action: Callable[[], object]) -> list[dict[str, str]]:
    """How the directory looks before each call of an action, and afterwards."""
    looks: list[dict[str, str]] = []

    def decide(_number: int, _name: str, _args: tuple[object, ...]) -> None:
        looks.append(spot.found())

    with Faults(decide).installed():
        action()
    return [*looks, spot.found()]


@pytest.mark.parametrize("before", ["nothing", "release", "foreign"])
def test_killed_anywhere_it_is_old_or_new(
    before: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Looked at before every call, and whole after the next run, with nothing left over."""

    def fresh() -> Place:
        made = Place(tmp_path_factory.mktemp("place"))
        if before == "release":
            made.put("one")
        elif before == "foreign":
            made.foreign()
        return made

    first = fresh()
    old = first.found()
    looks = watched(first, lambda: first.put("two"))
    goal, left = first.found(), first.strays()
    assert all(look in (old, goal) for look in looks)
    assert len(looks) > 30
    for at in some(len(looks) - 1, by_run(7, 1), before):
        made = fresh()
        with Faults.killed(at).installed(), pytest.raises(Killed):
            made.put("two")
        assert made.found() == looks[at - 1], at
        made.put("two")
        assert made.found() == goal, at
        assert made.strays() == left, at
        if before == "foreign":
            assert place.remove(str(made.live))
            assert made.found() == old


@pytest.mark.parametrize("code", CODES)
def test_failing_anywhere_it_is_old_or_new(
    code: int,
    exchange: bool,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    first = Place(tmp_path_factory.mktemp("place"))
    first.put("one")
    number = count(lambda: first.put("two"))
    for at in some(number, by_run(17, 3), request.node.name):
        made = Place(tmp_path_factory.mktemp("place"))
        made.put("one")
        with Faults.failing(at, code).installed(), suppress(OSError, Refused):
            made.put("two")
        if exchange:
            assert made.found() in (made.wanted("one"), made.wanted("two")), at
        made.put("two")
        assert made.found() == made.wanted("two"), at
        assert made.strays() == [], at


def test_next_removal_finishes_a_killed_one(
    exchange: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The next one goes on."""
    first = Place(tmp_path_factory.mktemp("place"))
    first.foreign()
    theirs = first.found()
    first.put("one")
    number = count(lambda: place.remove(str(first.live)))
    for at in some(number, 1 if exchange else by_run(3, 1), "removal"):
        made = Place(tmp_path_factory.mktemp("place"))
        made.foreign()
        made.put("one")
        with Faults.killed(at).installed(), pytest.raises(Killed):
            place.remove(str(made.live))
        place.remove(str(made.live))
        assert made.found() == theirs, at
        assert made.strays() == [], at
