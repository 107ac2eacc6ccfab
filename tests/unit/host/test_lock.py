"""One agent at a time holds the lock, and no removed file breaks it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import Locked, Refused
from agent.host import lock

HOLDER = """
import sys
from agent.host import lock
with lock.held(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_second_process_is_turned_away_until_the_first_dies(path: Path) -> None:
    """Also SIGKILL releases it: the lock is the open file, not a pid in it."""
    argv = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Locked, match=r"^cannot start: another") as told, lock.held(str(path)):
            pass
        assert told.value.exit_code == 7
        assert str(path) in told.value.message
        other.kill()
        other.wait()
    with lock.held(str(path)):
        pass


def test_second_holder_in_the_same_process_is_turned_away(path: Path) -> None:
    """It belongs to the open file, so that threads exclude one another too."""
    with lock.held(str(path)):
        with pytest.raises(Locked, match="another toolkit-agent"), lock.held(str(path)):
            pass
        with pytest.raises(Locked, match="another toolkit-agent"), lock.held(str(path)):
            pass


def test_file_is_never_truncated_and_never_removed(path: Path) -> None:
    """Who locked another file of the same name would not see the first one."""
    path.write_text("somebody's note")
    before = path.stat().st_ino
    with lock.held(str(path)):
        pass
    assert path.read_text() == "somebody's note"
    assert path.stat().st_ino == before


def test_lock_is_released_by_an_error(path: Path) -> None:
    """Whatever ends the work ends the lock."""
    with pytest.raises(ZeroDivisionError), lock.held(str(path)):
        _ = 1 // 0
    with lock.held(str(path)):
        pass


def test_new_file_is_for_its_owner_only(path: Path) -> None:
    """Others could hold it for ever."""
    with lock.held(str(path)):
        assert path.stat().st_mode & 0o777 == 0o600


def test_child_does_not_inherit_the_lock(path: Path) -> None:
    """A command that outlives us must not keep the lock."""
    with lock.held(str(path)):
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        with lock.held(str(path)):
            pass
    finally:
        child.kill()
        child.wait()


def test_lock_of_a_parent_is_held_already(path: Path) -> None:
    """And stays when the child's work is done."""
    fd = lock.take(str(path))
    try:
        with lock.held(str(path), fd):
            pass
        with pytest.raises(Locked, match=r"^cannot start"), lock.held(str(path)):
            pass
    finally:
        os.close(fd)


def test_lock_of_a_file_that_is_gone_is_none(path: Path) -> None:
    """Somebody removed it: whoever comes next locks another file, and so do we."""
    fd = lock.take(str(path))
    try:
        path.unlink()
        with lock.held(str(path), fd), pytest.raises(Locked, match=r"^cannot start"):
            lock.take(str(path))
    finally:
        os.close(fd)


@pytest.mark.parametrize("make", [Path.mkdir, lambda p: p.symlink_to("/dev/null")])
def test_what_is_no_file_is_refused(make: object, path: Path) -> None:
    """A directory or a link of that name is named, not used."""
    assert callable(make)
    make(path)
    with pytest.raises(Refused, match=f"^cannot open the lock {path}"), lock.held(str(path)):
        pass
    assert os.path.lexists(path)
