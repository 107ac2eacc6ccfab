"""The watch on a directory sees whatever was there, however shortly."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools.watch import DirectoryWatch

DATA = b"[crio.runtime]\n" * 1000


def link(folder: Path) -> None:
    """Whole before it has a name."""
    fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY)
    os.write(fd, DATA)
    os.link(f"/proc/self/fd/{fd}", folder / "a", src_dir_fd=0, follow_symlinks=True)
    os.close(fd)


def link_too_early(folder: Path) -> None:
    fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY)
    os.write(fd, DATA[:100])
    os.link(f"/proc/self/fd/{fd}", folder / "a", src_dir_fd=0, follow_symlinks=True)
    os.write(fd, DATA[100:])
    os.close(fd)


def rename(folder: Path) -> None:
    link(folder)
    (folder / "a").rename(folder / "b")
    (folder.parent / "c").write_bytes(DATA)
    (folder.parent / "c").rename(folder / "b")


def in_place(folder: Path) -> None:
    (folder / "a").write_bytes(DATA)


def empty(folder: Path) -> None:
    (folder / "a").touch()
    (folder / "a").unlink()


def backup(folder: Path) -> None:
    link(folder)
    (folder.parent / "old").write_bytes(b"old")
    (folder.parent / "old").rename(folder / "a.bak")


def directory(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub").rmdir()


CASES: list[tuple[Callable[[Path], None], list[str]]] = [
    (link, []),
    (rename, []),
    (link_too_early, ["a: written under its name"]),
    (in_place, ["a: written under its name"]),
    (backup, ["a.bak: b'old'"]),
    (directory, ["sub: a directory"]),
]


@pytest.mark.parametrize(("act", "expected"), CASES)
def test_watch_reports_what_is_strange(
    act: Callable[[Path], None], expected: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "conf.d"
    folder.mkdir()
    with DirectoryWatch(folder) as watch:
        act(folder)

    assert set(expected) <= set(watch.strange([DATA]))
    assert bool(watch.strange([DATA])) is bool(expected)


def test_a_name_that_was_there_for_a_moment_is_known(tmp_path: Path) -> None:
    folder = tmp_path / "conf.d"
    folder.mkdir()
    (folder / "other").write_bytes(b"x")
    with DirectoryWatch(folder) as watch:
        for _ in range(100):
            empty(folder)

    assert watch.names == {"a", "other"}
    assert watch.contents["other"] == {b"x"}
