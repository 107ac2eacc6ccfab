"""Only what is root's alone is believed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from agent.errors import Refused
from agent.host import trust
from agent.host.files import FileState

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: run tests/run as root")


@pytest.mark.parametrize(
    ("uid", "mode", "why"),
    [
        (None, 0o600, None),
        (None, 0o755, None),
        (0, 0o644, None),
        (None, 0o664, "written by others .mode 0664.*chmod go-w"),
        (None, 0o646, "written by others .mode 0646.*chmod go-w"),
        (0, 0o1777, "written by others .mode 1777.*chmod go-w"),
        (12345, 0o600, "belongs to user 12345.*chown"),
    ],
)
def test_distrust(uid: int | None, mode: int, why: str | None) -> None:
    """Root's, or of whoever runs this, and nobody else's to write."""
    owner = os.geteuid() if uid is None else uid
    found = trust.distrust(FileState(b"", mode, owner))
    assert (found is None) == (why is None)
    assert why is None or re.search(why, found or "")


def test_directory_of_nobody_else(tmp_path: Path) -> None:
    """It may also be missing: then it is whoever makes it who answers for it."""
    trust.require(str(tmp_path), "use it")
    trust.require(str(tmp_path / "none"), "use it")


def test_sticky_directory(tmp_path: Path) -> None:
    """Others can make files there, which are theirs, and leave ours alone; where that is not
    enough it is like any other that they can write."""
    tmp_path.chmod(0o1777)
    trust.require(str(tmp_path), "use it", sticky_is_fine=True)
    with pytest.raises(Refused, match=r"^cannot use it: it can be written by others .mode 1777"):
        trust.require(str(tmp_path), "use it")
    tmp_path.chmod(0o777)
    with pytest.raises(Refused, match=r"^cannot use it: its place can be written by others"):
        trust.require(str(tmp_path), "use it", "its place", sticky_is_fine=True)


@root_only
def test_sticky_directory_of_somebody_else(tmp_path: Path) -> None:
    """Its owner can remove any file in it."""
    os.chown(tmp_path, 12345, 0)
    tmp_path.chmod(0o1755)
    with pytest.raises(Refused, match=r"^cannot use it: it belongs to user 12345"):
        trust.require(str(tmp_path), "use it", sticky_is_fine=True)


def test_directory_that_cannot_be_opened(tmp_path: Path) -> None:
    """Nobody knows whose it is."""
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match=r"^cannot use it: .*[Nn]ot a directory"):
        trust.require(str(tmp_path / "file/below"), "use it")
