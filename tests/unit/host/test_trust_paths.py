"""A path is trusted where root alone decides every part of its way, links included."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.errors import Refused
from agent.host.paths import HostRoot
from agent.host.trust import open_path

_USER = 1234

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")


def _tree(root: Path) -> None:
    for directory in ("usr/lib", "run", "tmp/mine", "tmp/theirs", "home"):
        (root / directory).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    (root / "tmp/theirs").chmod(0o777)
    for name in ("usr/lib/libx.so", "run/a.sock", "tmp/mine/x", "tmp/theirs/x", "tmp/file"):
        (root / name).write_text(name)
    (root / "usr/lib/open.so").write_text("x")
    (root / "usr/lib/open.so").chmod(0o666)
    (root / "usr/lib/link.so").symlink_to("libx.so")
    (root / "usr/lib/far").symlink_to("/tmp/mine")
    (root / "tmp/link").symlink_to("/run/a.sock")
    (root / "tmp/theirs/link").symlink_to("/run/a.sock")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host root with directories of root's, sticky ones, and one that anybody can write."""
    _tree(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "path", "distrust"),
    [
        ("/usr/lib/libx.so", "/usr/lib/libx.so", None),
        ("/usr/lib/link.so", "/usr/lib/libx.so", None),
        ("/usr/lib/../lib/./libx.so", "/usr/lib/libx.so", None),
        ("/usr/lib/far/x", "/tmp/mine/x", None),
        ("/tmp/mine", "/tmp/mine", None),
        ("/tmp/link", "/run/a.sock", None),  # root's own, in a sticky directory
        ("/tmp", "/tmp", None),
        ("/tmp/theirs", "/tmp/theirs", None),  # whom it belongs to counts, if nothing below it does
        ("/", "/", None),
        ("/usr/lib/open.so", "/usr/lib/open.so", "/usr/lib/open.so can be written by others"),
        ("/tmp/theirs/x", "/tmp/theirs/x", "/tmp/theirs can be written by others"),
        ("/tmp/theirs/link", "/run/a.sock", "/tmp/theirs can be written by others"),
        ("/tmp/theirs/../mine/x", "/tmp/mine/x", "/tmp/theirs can be written by others"),
    ],
)
def test_every_part_of_the_way_is_judged(
    root: Path, name: str, path: str, distrust: str | None
) -> None:
    """What is opened is what the host means by the name, and the reason names the part."""
    with open_path(HostRoot(str(root)), name) as found:
        assert found.path.host == path
        assert os.path.normpath(found.path.agent) == os.path.realpath(f"{root}{path}")
        assert os.path.samestat(os.fstat(found.fd), os.stat(f"{root}{path}"))
        if distrust is None:
            assert found.distrust is None
        else:
            assert (found.distrust or "").startswith(distrust)


@needs_root
@pytest.mark.parametrize(
    ("given", "name", "distrust"),
    [
        ("tmp/mine", "/tmp/mine", "/tmp/mine belongs to user 1234"),
        ("tmp/link", "/tmp/link", "/tmp/link belongs to user 1234"),
        ("usr/lib/link.so", "/usr/lib/link.so", None),  # nobody but root can exchange it
        ("usr", "/usr/lib/libx.so", "/usr belongs to user 1234"),
        ("tmp", "/tmp/mine/x", "/tmp belongs to user 1234"),
        (".", "/usr/lib/libx.so", "/ belongs to user 1234"),
        ("usr/lib/libx.so", "/usr/lib/link.so", "/usr/lib/libx.so belongs to user 1234"),
    ],
)
def test_part_of_somebody_else_is_distrusted(
    root: Path, given: str, name: str, distrust: str | None
) -> None:
    """A part that belongs to somebody else is not root's to name."""
    os.chown(root / given, _USER, _USER, follow_symlinks=False)
    with open_path(HostRoot(str(root)), name) as found:
        if distrust is None:
            assert found.distrust is None
        else:
            assert (found.distrust or "").startswith(distrust)


def test_read_by_the_descriptor(root: Path) -> None:
    """A link that is put in the place of what was judged changes nothing."""
    with open_path(HostRoot(str(root)), "/usr/lib/libx.so", os.O_RDONLY) as found:
        (root / "usr/lib/libx.so").unlink()
        (root / "usr/lib/libx.so").symlink_to("/etc/shadow")
        assert os.read(found.fd, 100) == b"usr/lib/libx.so"


@pytest.mark.parametrize(
    "name", ["/nothing", "/usr/lib/nothing/x", "/dangling", "/loop", "/run/a.sock/x"]
)
def test_missing_file_leaves_nothing_open(root: Path, name: str) -> None:
    """Nothing is left open."""
    (root / "dangling").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Errno"), open_path(HostRoot(str(root)), name):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["/usr/../../x", "/a\nb", "/" + "x" * 5000])
def test_impossible_path_is_refused(root: Path, name: str) -> None:
    """What no path of the host can be."""
    with pytest.raises(Refused), open_path(HostRoot(str(root)), name):
        pass


def test_links_of_a_process_are_refused() -> None:
    """They lead to what has no name on the host."""
    with (
        pytest.raises(Refused, match="into a process"),
        open_path(HostRoot("/"), f"/proc/{os.getpid()}/cwd/x"),
    ):
        pass


def test_way_is_judged_from_our_mount_on(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What a mount of our own shows is judged there, from the mount on."""
    elsewhere = tmp_path_factory.mktemp("view")
    (elsewhere / "nvidia.yaml").write_text("x")
    host = HostRoot(str(root)).with_view(str(elsewhere), "/etc/cdi")
    (root / "etc").mkdir()
    with open_path(host, "/etc/cdi/nvidia.yaml", os.O_RDONLY) as found:
        assert (found.path.host, found.distrust) == ("/etc/cdi/nvidia.yaml", None)
        assert os.path.samestat(os.fstat(found.fd), (elsewhere / "nvidia.yaml").stat())
    (elsewhere / "nvidia.yaml").chmod(0o666)
    with open_path(host, "/etc/cdi/nvidia.yaml") as found:
        assert (found.distrust or "").startswith("/etc/cdi/nvidia.yaml can be written")
