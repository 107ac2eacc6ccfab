"""A file is whole at every moment: old or new, whatever fails in between."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from agent.errors import Refused
from agent.host import files
from agent.host.files import FileState
from tests.unit.support.faults import CODES, Faults, Killed, count

OLD, NEW = b"old = 1\n", b"new = 2\n" * 9000
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: run tests/run as root")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_bytes(OLD)
    file.chmod(0o640)
    return file


def own(data: bytes, mode: int = 0o640) -> FileState:
    """A state that belongs to whoever runs the tests."""
    return FileState(data, mode, os.geteuid(), os.getegid())


def test_read_gives_bytes_mode_and_owner(path: Path) -> None:
    """All that has to stay is read with the bytes."""
    found = files.read(str(path))
    assert found == own(OLD)


def test_read_of_nothing_is_none(tmp_path: Path) -> None:
    """A missing file is an answer, not an error."""
    assert files.read(str(tmp_path / "none")) is None


def _directory(path: Path) -> None:
    path.mkdir()


def _large(path: Path) -> None:
    path.write_bytes(b"#" * (2 << 20))


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _link(path: Path) -> None:
    path.symlink_to("/dev/null")


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (_directory, "it is a directory"),
        (os.mkfifo, "not a regular file"),
        (_large, "larger than 1048576 bytes"),
        (_loop, "symbolic links"),
        (_link, "symbolic links"),
    ],
)
def test_read_refuses_what_is_no_file(
    make: Callable[[Path], None], cause: str, tmp_path: Path
) -> None:
    """Directory, fifo (without waiting for a writer), 2 MiB and links end at once, by name."""
    path = tmp_path / "config.toml"
    make(path)
    with pytest.raises(Refused, match=f"^cannot read /host/name: .*{cause}"):
        files.read(str(path), "/host/name")


def test_read_below_a_file_is_refused(path: Path) -> None:
    """A file in the place of a directory is not "no file"."""
    with pytest.raises(Refused, match="not a directory"):
        files.read(str(path / "x"))


def test_a_file_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    """The limit itself is allowed."""
    path = tmp_path / "f"
    path.write_bytes(b"x" * files.LIMIT)
    found = files.read(str(path))
    assert found is not None
    assert len(found.data) == files.LIMIT


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o4755])
def test_write_keeps_the_mode_whatever_the_umask(mode: int, path: Path) -> None:
    """The mode is the state's, not the umask's."""
    old = os.umask(0o077)
    try:
        files.write(str(path), own(NEW, mode))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == NEW


@root_only
def test_write_keeps_the_owner(path: Path) -> None:
    """A file of somebody else stays theirs."""
    files.write(str(path), FileState(NEW, 0o600, 12, 34))
    found = path.stat()
    assert (found.st_uid, found.st_gid) == (12, 34)


@pytest.mark.parametrize("label", [b"system_u:object_r:container_config_t:s0\0", None])
def test_write_keeps_the_label(
    label: bytes | None, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SELinux's label of the old file, where it has one; an attribute of users stands in for it
    where the tests may not set the real one."""
    if os.geteuid() != 0:
        monkeypatch.setattr(files, "_LABEL", "user.toolkit-agent-test")
    attribute = files._LABEL
    if label is not None:
        try:
            os.setxattr(path, attribute, label)
        except OSError as error:
            pytest.skip(f"no attributes here: {error}")
    old = files.read(str(path))
    assert old is not None
    assert old.label == label
    inode = path.stat().st_ino
    files.write(str(path), FileState(NEW, old.mode, old.uid, old.gid, old.label))
    assert path.stat().st_ino != inode
    assert (attribute in os.listxattr(path)) == (label is not None)
    assert label is None or os.getxattr(path, attribute) == label


def test_label_that_cannot_be_kept_is_let_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without it is better than no file: the policy gives one by the directory."""
    refused = OSError(errno.EOPNOTSUPP, "no attributes")
    monkeypatch.setattr(os, "setxattr", mock.Mock(side_effect=refused))
    files.write(str(path), FileState(NEW, 0o600, os.geteuid(), os.getegid(), b"x\0"))
    assert path.read_bytes() == NEW


def test_names_of_a_file_are_counted(path: Path) -> None:
    """Hard links: a rewrite leaves the other names with the old content."""
    os.link(path, path.parent / "other")
    found = files.read(str(path))
    assert found is not None
    assert found.links == 2
    files.write(str(path), own(NEW))
    assert (path.parent / "other").read_bytes() == OLD


def test_write_is_durable_before_the_name_shows(path: Path) -> None:
    """Bytes reach the disk, then the name, then the directory."""
    faults = Faults.none()
    with faults.installed():
        files.write(str(path), own(NEW))
    order = [name for name, _ in faults.calls if name in ("write", "fsync", "rename")]
    assert order[-3:] == ["fsync", "rename", "fsync"]
    assert "write" in order[:-3]


def test_temporary_name_is_taken_by_no_glob(path: Path) -> None:
    """Readers take `*.toml`, `*.json`, `*.yaml`: the name in between ends in `~`."""
    staged = files.stage(str(path), own(NEW))
    assert Path(staged).parent == path.parent
    assert staged.endswith("~")


@pytest.mark.parametrize("code", CODES, ids=lambda code: str(errno.errorcode[code]))
def test_failed_write_leaves_old_or_new_and_nothing_else(code: int, path: Path) -> None:
    """Whichever call fails, with whichever error: one whole file, and no second name."""
    calls = count(lambda: files.write(str(path), own(OLD)))
    assert calls > 8
    outcomes = set()
    for k in range(1, calls + 1):
        path.write_bytes(OLD)
        try:
            with Faults.failing(k, code).installed():
                files.write(str(path), own(NEW))
            outcomes.add("written")
        except OSError as error:
            outcomes.add(errno.errorcode[error.errno or 0])
        assert path.read_bytes() in (OLD, NEW)
        assert os.listdir(path.parent) == [path.name]
    assert outcomes == {errno.errorcode[code]}


def test_killed_write_leaves_old_or_new(path: Path) -> None:
    """What is left beside the file ends in `~`, and the next write does not mind it."""
    calls = count(lambda: files.write(str(path), own(OLD)))
    for k in range(1, calls + 1):
        path.write_bytes(OLD)
        with pytest.raises(Killed), Faults.killed(k).installed():
            files.write(str(path), own(NEW))
        assert path.read_bytes() in (OLD, NEW)
        assert all(n.endswith("~") for n in os.listdir(path.parent) if n != path.name)
        files.write(str(path), own(NEW))
        assert path.read_bytes() == NEW


def test_short_writes_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may take fewer bytes than it is given."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:1000])))
    files.write(str(path), own(NEW))
    assert path.read_bytes() == NEW


def test_write_replaces_a_link_rather_than_following_it(tmp_path: Path) -> None:
    """Resolving is somebody else's task; here nothing outside is ever written."""
    other, link = tmp_path / "other", tmp_path / "link"
    other.write_bytes(OLD)
    link.symlink_to(other)
    files.write(str(link), own(NEW))
    assert other.read_bytes() == OLD
    assert not link.is_symlink()


def test_directories_are_made_and_go_again(tmp_path: Path) -> None:
    """What was missing is told outermost first; only empty ones go."""
    deep = tmp_path / "a/b/c"
    missing = files.missing_directories(str(deep))
    assert [Path(p).name for p in missing] == ["a", "b", "c"]
    files.make_directories(str(deep))
    files.make_directories(str(deep))
    (tmp_path / "a/foreign").touch()
    files.remove_directories(missing)
    files.remove_directories(missing)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "foreign"]


def test_removing_twice_is_fine(path: Path) -> None:
    """Gone is gone."""
    files.remove(str(path))
    files.remove(str(path))
    files.remove(str(path.parent / "no-directory/x"))
    assert not path.exists()
