"""The pid file belongs to one living process."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.daemon import pid_file, supervisor
from agent.errors import Locked, Refused

HOLDER = """
import os, sys
from agent.daemon import pid_file
fd = pid_file.take(sys.argv[1])
os.set_inheritable(fd, True)
code = "print('held', flush=True); import sys; sys.stdin.read()"
os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", code])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run/toolkit.pid"


def test_pid_file_has_our_pid_and_a_newline(path: Path) -> None:
    """The number and a line end, as upstream's installer writes it."""
    fd = pid_file.take(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    supervisor.remove_pid_file(fd, str(path))
    os.close(fd)
    assert not path.exists()


def test_second_one_is_turned_away_until_the_first_dies(path: Path) -> None:
    """The lock outlives exec, and the winner's file is as it was; a dead one's is taken over."""
    argv = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        before = path.stat()
        with pytest.raises(Locked, match=r"^cannot start: another toolkit holds") as told:
            pid_file.take(str(path))
        assert (told.value.exit_code, str(path) in told.value.message) == (7, True)
        assert path.stat() == before  # first: reading the file changes its atime
        assert path.read_text() == f"{other.pid}\n"
        other.kill()
        other.wait()
    assert path.read_text() == f"{other.pid}\n"
    os.close(pid_file.take(str(path)))
    assert path.read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("content", ["", "7", "7\n", "4194304\n"])
def test_what_a_dead_process_left_is_taken_over(path: Path, content: str) -> None:
    """Also where it was interrupted, and whatever mode it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o644)
    os.close(pid_file.take(str(path)))
    assert (path.read_text(), path.stat().st_mode & 0o777) == (f"{os.getpid()}\n", 0o600)


def _link(path: Path) -> None:
    path.with_name("other").write_text("precious\n")
    path.symlink_to("other")


def _hard_link(path: Path) -> None:
    path.with_name("other").write_text("1\n")
    path.hardlink_to(path.with_name("other"))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


FOREIGN: dict[str, Callable[[Path], object]] = {
    "link": _link,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "hard link": _hard_link,
    "directory": Path.mkdir,
    "pipe": os.mkfifo,
    "socket": _socket,
    "text": lambda path: path.write_text("[settings]\n"),
    "long number": lambda path: path.write_text("1" * 99),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_thing_is_refused_and_stays(kind: str, path: Path) -> None:
    """It is named, with what to do, and neither followed nor emptied."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FOREIGN[kind](path)
    before = {p.name: (p.lstat(), p.is_file() and p.read_bytes()) for p in path.parent.iterdir()}
    with pytest.raises(Refused, match=f"^cannot use the pid file {path}: .*; remove it, or give"):
        pid_file.take(str(path))
    now = {p.name: (p.lstat(), p.is_file() and p.read_bytes()) for p in path.parent.iterdir()}
    assert {k: (v[0].st_ino, v[1]) for k, v in now.items()} == {
        k: (v[0].st_ino, v[1]) for k, v in before.items()
    }


def test_directory_that_is_none_is_named(path: Path) -> None:
    """With the cause."""
    path.parent.rmdir()
    path.parent.write_text("")
    with pytest.raises(Refused, match=f"^cannot use the pid file {path}: not a directory"):
        pid_file.take(str(path))


def test_removed_pid_file_is_made_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner ended then: its file is nobody's any more, and we make our own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("1\n")
    flock = fcntl.flock

    def late(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    fd = pid_file.take(str(path))
    assert os.path.samestat(os.fstat(fd), path.stat())
    os.close(fd)


def test_file_of_somebody_else_is_not_dropped(path: Path) -> None:
    """Ours was removed and another one made: that one stays."""
    fd = pid_file.take(str(path))
    path.unlink()
    path.write_text("1\n")
    supervisor.remove_pid_file(fd, str(path))
    assert path.read_text() == "1\n"
    path.unlink()
    supervisor.remove_pid_file(fd, str(path))
    os.close(fd)
