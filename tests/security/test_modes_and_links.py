"""A mode is given to what was made, not to what its name stands for by then.

The attacker can write the directory in which root makes something: the driver's container writes
/dev of its own root. As soon as the new name shows he puts a link, or another file, in its place,
between the making and the change of the mode. A chmod by name then opens a file of root's for all.

What must hold: whatever is put in between, no mode but that of what was made changes; and the
maker says that it failed, or made what it was to make.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agent.host import files
from agent.toolkit import device_nodes
from tests.tools.beside import beside

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="nodes need root: run tests/run as root")

_NULL = (1, 3)
_TRIES = 400

Swap = Callable[[str, int], None]  # a name that was just made, and its directory


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that is root's alone."""
    path = tmp_path / "secret"
    path.write_text("s")
    path.chmod(0o600)
    return path


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A directory that is root's alone, with something in it."""
    path = tmp_path / "private"
    path.mkdir()
    (path / "key").write_text("s")
    path.chmod(0o700)
    return path


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """The directory that the attacker can write."""
    path = tmp_path / "dev"
    path.mkdir(mode=0o755)
    return path


def _after(monkeypatch: pytest.MonkeyPatch, call: str, swap: Swap) -> None:
    """Let the swap happen right after the name was made."""
    real = getattr(os, call)

    def making(name: str, *args: int, dir_fd: int) -> None:
        real(name, *args, dir_fd=dir_fd)
        swap(name, dir_fd)

    monkeypatch.setattr(os, call, making)


def _link_to(target: Path) -> Swap:
    def swap(name: str, above: int) -> None:
        with suppress(IsADirectoryError):
            os.unlink(name, dir_fd=above)
        with suppress(FileNotFoundError):
            os.rmdir(name, dir_fd=above)
        os.symlink(target, name, dir_fd=above)

    return swap


def _hard_link_to(target: Path) -> Swap:
    def swap(name: str, above: int) -> None:
        os.unlink(name, dir_fd=above)
        os.link(target, name, dst_dir_fd=above)

    return swap


def _moved_in(target: Path) -> Swap:
    def swap(name: str, above: int) -> None:
        os.rmdir(name, dir_fd=above)
        os.rename(target, name, dst_dir_fd=above)

    return swap


@contextmanager
def _swapping(directory: Path, swap: Swap) -> Iterator[list[str]]:
    """Swap every name that shows in a directory, as fast as it goes; gives those that were hit."""
    fd, hit = os.open(directory, os.O_RDONLY), list[str]()

    def watch(ended: threading.Event) -> None:
        while not ended.is_set():
            for name in os.listdir(fd):
                with suppress(OSError):
                    if not stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                        swap(name, fd)
                        hit.append(name)

    try:
        with beside(watch):
            yield hit
    finally:
        os.close(fd)


@pytest.mark.parametrize("swapped", [_link_to, _hard_link_to])
def test_swapped_device_node_gets_no_mode(
    swapped: Callable[[Path], Swap], secret: Path, dev: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between mknod and the mode."""
    _after(monkeypatch, "mknod", swapped(secret))
    with pytest.raises(OSError, match="somebody put another file in its place"):
        device_nodes.make_node(str(dev / "nvidiactl"), *_NULL, 0o666)
    assert _mode(secret) == 0o600
    assert list(dev.iterdir()) == []


def test_node_swapped_for_another_device_stays_closed(
    dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link by another name to /dev/mem, as it were, stays closed."""
    os.mknod(tmp_path / "mem", stat.S_IFCHR | 0o600, os.makedev(1, 1))
    _after(monkeypatch, "mknod", _hard_link_to(tmp_path / "mem"))
    with pytest.raises(OSError, match="somebody put another file in its place"):
        device_nodes.make_node(str(dev / "nvidiactl"), *_NULL, 0o666)
    assert _mode(tmp_path / "mem") == 0o600


def test_removed_device_node_is_an_error(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error, and of the right kind."""
    _after(monkeypatch, "mknod", lambda name, above: os.unlink(name, dir_fd=above))
    with pytest.raises(FileNotFoundError):
        device_nodes.make_node(str(dev / "nvidiactl"), *_NULL, 0o666)


def test_device_nodes_in_a_race_are_right_or_refused(secret: Path, dev: Path) -> None:
    """With somebody who tries all the time; without him they are right."""
    with _swapping(dev, _link_to(secret)) as hit:
        for number in range(_TRIES):
            with suppress(OSError):
                device_nodes.make_node(str(dev / f"nvidia{number}"), *_NULL, 0o666)
    assert hit
    assert _mode(secret) == 0o600
    device_nodes.make_node(str(dev / "right"), *_NULL, 0o666)
    found = (dev / "right").lstat()
    assert (found.st_rdev, stat.S_IMODE(found.st_mode)) == (os.makedev(*_NULL), 0o666)


@pytest.mark.parametrize("swapped", [_link_to, _moved_in])
def test_swapped_directory_gets_no_mode(
    swapped: Callable[[Path], Swap], private: Path, dev: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between mkdir and the mode: by a link, or by a directory of root's from beside it."""
    _after(monkeypatch, "mkdir", swapped(private))
    with pytest.raises(OSError, match=r"Not a directory|symbolic links|in its place"):
        files.make_directory(str(dev / "new"), 0o755)
    there = private if private.exists() else dev / "new"
    assert _mode(there) == 0o700


def test_directories_in_a_race_are_right_or_refused(private: Path, dev: Path) -> None:
    """With somebody who tries all the time; without him they are right, whatever the umask."""
    with _swapping(dev, _link_to(private)) as hit:
        for number in range(_TRIES):
            with suppress(OSError):
                files.make_directory(str(dev / f"d{number}"), 0o755)
    assert hit
    assert _mode(private) == 0o700
    old = os.umask(0o077)
    try:
        files.make_directory(str(dev / "right"), 0o755)
    finally:
        os.umask(old)
    assert _mode(dev / "right") == 0o755
