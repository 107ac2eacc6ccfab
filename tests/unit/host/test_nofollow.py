"""No link is followed between looking at a path and writing to it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.errors import Refused
from agent.host import files, lock, nofollow
from agent.host.paths import HostRoot
from tests.tools.beside import beside

PROJECT = Path(__file__).resolve().parents[3]
STATE = files.new_state(b"new = 1\n")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Directories, files, and every kind of link to them."""
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/line\nbreak").mkdir()
    (tmp_path / "a/file").touch()
    (tmp_path / "a/link").symlink_to("b")
    (tmp_path / "a/absolute").symlink_to(tmp_path / "a/b")
    (tmp_path / "a/to-file").symlink_to("file")
    (tmp_path / "a/dangling").symlink_to("nothing")
    (tmp_path / "a/loop").symlink_to("loop")
    (tmp_path / "a/up").symlink_to("..")
    return tmp_path


CASES: dict[str, int] = {
    "": 0,
    "a": 0,
    "a/b/c": 0,
    "a//b/./c/": 0,
    "a/line\nbreak": 0,
    "a/link": errno.ELOOP,
    "a/link/": errno.ELOOP,
    "a/link/c": errno.ELOOP,
    "a/absolute": errno.ELOOP,
    "a/absolute/c": errno.ELOOP,
    "a/to-file": errno.ELOOP,
    "a/to-file/x": errno.ELOOP,
    "a/dangling": errno.ELOOP,
    "a/dangling/x": errno.ELOOP,
    "a/loop": errno.ELOOP,
    "a/loop/x": errno.ELOOP,
    "a/up": errno.ELOOP,
    "a/up/a": errno.ELOOP,
    "a/..": errno.EXDEV,
    "a/../a/b": errno.EXDEV,
    "a/b/../../..": errno.EXDEV,
    "a/file": errno.ENOTDIR,
    "a/file/x": errno.ENOTDIR,
    "a/nothing": errno.ENOENT,
    "nothing/b": errno.ENOENT,
    "a/" + "n" * 256: errno.ENAMETOOLONG,
    "a/" + "b/" * 4096: errno.ENAMETOOLONG,
    "a/\0": errno.EINVAL,
}


Opener = Callable[[str], contextlib.AbstractContextManager[int]]
OPENERS: dict[str, Opener] = {
    "look": nofollow.open_directory,
    "list": lambda path: nofollow.open_directory(path, os.O_RDONLY),
}


def opened(path: str, opener: Opener) -> os.stat_result | int:
    """What a path leads to, or the error."""
    try:
        with opener(path) as fd:
            assert not os.get_inheritable(fd)
            return os.fstat(fd)
    except OSError as error:
        return error.errno or -1


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS.keys())
@pytest.mark.parametrize(("path", "code"), CASES.items(), ids=range(len(CASES)))
def test_directory_is_the_very_one_or_an_error(
    path: str, code: int, opener: Opener, tree: Path
) -> None:
    """The very directory, or an error that says what is in the way."""
    found = opened(f"{tree}/{path}", opener)
    if code:
        assert found == code
    else:
        assert isinstance(found, os.stat_result)
        assert os.path.samestat(found, os.stat(f"{tree}/{path}"))


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS.keys())
@pytest.mark.parametrize(("path", "code"), CASES.items(), ids=range(len(CASES)))
def test_relative_path_is_the_same_directory(
    path: str, code: int, opener: Opener, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where the process is, it is the same."""
    monkeypatch.chdir(tree)
    found = opened(path, opener)
    assert (0 if isinstance(found, os.stat_result) else found) == code


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS.keys())
@pytest.mark.parametrize("path", ["/proc/self/root", "/proc/self/cwd/x", "/proc/self/fd/0"])
def test_magic_links_lead_nowhere(path: str, opener: Opener) -> None:
    """They have no name to be checked by."""
    assert opened(path, opener) == errno.ELOOP  # `self` is a link already
    assert opened(path.replace("self", str(os.getpid())), opener) == errno.ELOOP


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS.keys())
def test_root_opens_as_itself(opener: Opener) -> None:
    """It has no directory above."""
    found = opened("/", opener)
    assert isinstance(found, os.stat_result)
    assert os.path.samestat(found, os.stat("/"))


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS.keys())
def test_nothing_stays_open(opener: Opener, tree: Path) -> None:
    """Neither what was found nor what was on the way."""
    before = os.listdir("/proc/self/fd")
    for path in CASES:
        opened(f"{tree}/{path}", opener)
    assert os.listdir("/proc/self/fd") == before


def test_reading_does_without_the_system_call(tmp_path: Path) -> None:
    """What makes it takes long to load; a command that finds nothing to do must not."""
    code = (
        "import sys; from agent.host import files; files.read(sys.argv[1] + '/x');"
        "files.names(sys.argv[1]); sys.exit('ctypes' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=PROJECT)


# --- every operation on files ------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[str], object]] = {
    "read": files.read,
    "write": lambda path: files.write(path, STATE),
    "stage": lambda path: files.stage(path, STATE),
    "discard": files.discard,
    "remove": files.remove,
    "move": lambda path: files.move(path, path + "~"),
    "names": lambda path: files.names(os.path.dirname(path)),
    "sync": lambda path: files.sync_directory(os.path.dirname(path)),
    "make": lambda path: files.make_directories(path + ".d"),
    "unmake": lambda path: files.remove_directories((os.path.dirname(path) + "/empty",)),
    "lock": lambda path: os.close(lock.take(path)),
    "open": lambda path: files.open_file(path).__enter__(),
}


@pytest.mark.parametrize("deep", [False, True], ids=["beside", "deeper"])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_no_operation_follows_a_link(
    operation: Callable[[str], object], deep: bool, tmp_path: Path
) -> None:
    """A directory that was one when it was looked up, and is a link now."""
    outside = tmp_path / "outside"
    (outside / "d/empty").mkdir(parents=True)
    (outside / "empty").mkdir()
    for name in ("file", "d/file"):
        (outside / name).write_text("outside")
    (tmp_path / "dir").symlink_to(outside)
    before = shape(outside)
    path = tmp_path / ("dir/d/file" if deep else "dir/file")
    with pytest.raises((OSError, Refused)) as caught:
        operation(str(path))
    assert "symbolic links" in str(caught.value)
    assert shape(outside) == before


def shape(root: Path) -> list[tuple[str, int, int, bytes]]:
    """Every name below a directory, with all that an operation could change."""
    found = []
    for path in sorted((root, *root.rglob("*"))):
        seen = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found.append((str(path), seen.st_ino, seen.st_mtime_ns, data))
    return found


def test_refusal_says_what_happened(tmp_path: Path) -> None:
    """And what to do."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "dir").symlink_to("outside")
    with pytest.raises(Refused, match=r"^cannot read /etc/x: .*changed while we looked.*try again"):
        files.read(str(tmp_path / "dir/x"), "/etc/x")


# --- races -------------------------------------------------------------------------------------


def exchange(one: str, other: str) -> None:
    """Let two names change places, in one step."""
    libc = ctypes.CDLL(None, use_errno=True)
    here, both = ctypes.c_int(-100), ctypes.c_uint(2)  # AT_FDCWD, RENAME_EXCHANGE
    if libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), both):
        raise OSError(ctypes.get_errno(), "renameat2")


@contextlib.contextmanager
def swapping(directory: Path, outside: Path) -> Iterator[None]:
    """Somebody who puts a link to `outside` in the place of `directory` and takes it away again,
    as fast as can be; the directory is back in the end."""
    link = f"{directory}.link"
    os.symlink(outside, link)

    def swap(ended: threading.Event) -> None:
        while not ended.is_set():
            exchange(str(directory), link)
            exchange(str(directory), link)

    with beside(swap):
        yield


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A directory with a file, and a place outside with one of the same name."""
    # Waiting for the disk is not what this is about.
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    inside, outside = tmp_path / "host/etc/containerd", tmp_path / "outside"
    for place in (inside, outside):
        place.mkdir(parents=True)
        (place / "config.toml").write_text(place.name)
    return inside, outside


def test_two_thousand_writes_stay_inside(places: tuple[Path, Path]) -> None:
    """Resolved, read, written, removed and made again while the directory changes: whatever ends
    well happened in the directory, and nothing was ever seen or done outside."""
    inside, outside = places
    host = HostRoot(str(inside.parents[1]))
    path = host.resolve("/etc/containerd/config.toml")
    before = shape(outside)
    with swapping(inside, outside):
        for number in range(2000):
            state = files.new_state(b"%d" % number)
            with contextlib.suppress(OSError, Refused):
                files.write(path.agent, state)
                found = files.read(path.agent)
                assert found is None or found.data == state.data
            with contextlib.suppress(OSError):
                files.make_directories(os.path.join(os.path.dirname(path.agent), "conf.d"))
            with contextlib.suppress(OSError):
                files.remove_directories((os.path.join(os.path.dirname(path.agent), "conf.d"),))
            with contextlib.suppress(OSError):
                files.remove(path.agent)
            with contextlib.suppress(OSError, Refused):
                # As every command does: looked up anew, in whatever is there just now.
                files.write(host.resolve("/etc/containerd/config.toml").agent, state)
    assert shape(outside) == before
    files.write(path.agent, STATE)
    assert sorted(set(os.listdir(inside)) - {"conf.d"}) == ["config.toml"]


SWAP_AT = ("open", "write", "fchmod", "rename", "fsync")


@pytest.mark.parametrize("call", SWAP_AT)
def test_write_ends_in_the_directory_that_was_opened(
    call: str, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the directory is open, the write ends in it, wherever it has been moved."""
    inside, outside = places
    aside = Path(f"{inside}.aside")
    real = getattr(os, call)

    def swap(*args: object, **kwargs: object) -> object:
        # The walk opens too; what is meant is the call that makes a file.
        if not aside.exists() and (call != "open" or len(args) == 3):
            os.replace(inside, aside)
            os.symlink(outside, inside)
        return real(*args, **kwargs)

    before = shape(outside)
    monkeypatch.setattr(os, call, swap)
    files.write(str(inside / "config.toml"), STATE)
    monkeypatch.undo()
    assert inside.is_symlink()
    assert shape(outside) == before
    assert os.listdir(aside) == ["config.toml"]
    assert (aside / "config.toml").read_bytes() == STATE.data
