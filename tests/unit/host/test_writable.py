"""An obstacle to a write is known before the write."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from agent.host import files, writable
from agent.host.writable import Need


def code(need: Need, points: tuple[str, ...] = ()) -> int | None:
    """The number of the error; None where there is none."""
    try:
        writable.require(need, points)
    except OSError as error:
        return error.errno
    return None


def test_writable_files_have_no_obstacle(tmp_path: Path) -> None:
    """A new file, one that is there, one whose directories are missing; and nothing changes."""
    (tmp_path / "there").write_text("x")
    before = [
        (p, p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in (tmp_path, *tmp_path.iterdir())
    ]
    for name in ("there", "new", "a/b/c/new"):
        need = Need(str(tmp_path / name), (10,))
        assert code(need) is None
        assert writable.first_without_space([need]) is None
    assert files.has_nameless_files(str(tmp_path))
    after = [
        (p, p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in (tmp_path, *tmp_path.iterdir())
    ]
    assert after == before


def test_obstacle_has_the_error_of_a_write(tmp_path: Path) -> None:
    """Each with the number that a write would end with."""
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    one = str(tmp_path / "file")
    assert code(Need(f"{one}/below", (1,))) == errno.ENOTDIR
    assert code(Need(f"{one}/below/it", (1,))) == errno.ENOTDIR
    assert code(Need(str(tmp_path / "directory"), (1,))) == errno.EISDIR
    assert code(Need(one, (1,)), (one,)) == errno.EBUSY
    assert code(Need(str(tmp_path / ("n" * 250)), (1,))) == errno.ENAMETOOLONG


@pytest.mark.parametrize("flag", [0x10, 0x20], ids=["immutable", "append-only"])
@pytest.mark.parametrize("name", ["file", "."])
def test_immutable_attributes_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, flag: int
) -> None:
    """Of the file, and of its directory: nothing can be renamed over the one or in the other."""
    path = tmp_path / "file"
    path.touch()
    marked = os.stat(tmp_path / name)

    def ioctl(fd: int, number: int, _: Any) -> bytes:
        assert number == 0x80086601
        return struct.pack("ii", flag if os.path.samestat(os.fstat(fd), marked) else 0, 0)[:4]

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert code(Need(str(path), (1,))) == errno.EPERM


@pytest.mark.parametrize(
    ("numbers", "enough"),
    [
        ({"f_bfree": 2, "f_bavail": 2}, True),
        ({"f_bfree": 1, "f_bavail": 1}, False),
        ({"f_ffree": 1}, False),
        ({"f_files": 0, "f_ffree": 0}, True),
        ({"f_blocks": 0, "f_bfree": 0, "f_bavail": 0}, True),
    ],
)
def test_missing_space_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: dict[str, int], enough: bool
) -> None:
    """Two files of a block each; a file system without numbers says nothing."""

    class Found:
        f_frsize = f_bsize = 4096
        f_blocks = f_bfree = f_bavail = f_files = f_ffree = 100

    for key, value in numbers.items():
        setattr(Found, key, value)
    monkeypatch.setattr(os, "statvfs", lambda _: Found())
    first, second = (Need(str(tmp_path / name), (4096,)) for name in "ab")
    assert writable.first_without_space([first, second]) is (None if enough else second)
