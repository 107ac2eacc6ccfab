"""The agent opens what the host means by a path, and never another place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import Refused, UsageError
from agent.host.paths import HostPath, HostRoot
from tests.unit.support.made_host import make_host

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_host(tmp_path)


def resolve(root: Path, host: str) -> str:
    """Host name of what a host path leads to; the two names have to agree."""
    found = HostRoot(str(root)).resolve(host)
    assert found.agent == str(root) + found.host.rstrip("/")
    return found.host


def test_absolute_link_stays_inside(root: Path) -> None:
    """As the host follows it, not as the container would."""
    (root / "data/containerd").symlink_to("/etc/containerd")
    assert resolve(root, "/data/containerd/config.toml") == "/etc/containerd/config.toml"


def test_chain_of_links_is_followed(root: Path) -> None:
    """Absolute and relative ones, in the middle and at the end."""
    (root / "a").symlink_to("data/b")
    (root / "data/b").symlink_to("/c")
    (root / "c").symlink_to("data/../etc")
    (root / "etc/link.toml").symlink_to("containerd/config.toml")
    assert resolve(root, "/a/link.toml") == "/etc/containerd/config.toml"


def test_link_to_the_root_means_the_host_root(root: Path) -> None:
    """`/` in a link is the host's."""
    (root / "data/host").symlink_to("/")
    assert resolve(root, "/data/host/etc") == "/etc"


@pytest.mark.parametrize("target", ["loop", "/data/loop", "../data/loop/x"])
def test_loop_is_refused(target: str, root: Path) -> None:
    """By name, and in finite time."""
    (root / "data/loop").symlink_to(target)
    with pytest.raises(Refused, match=r"^cannot follow /data/loop: too many links"):
        HostRoot(str(root)).resolve("/data/loop")


@pytest.mark.parametrize("count", [40, 41])
def test_forty_links_are_followed_and_no_more(count: int, root: Path) -> None:
    """Forty are followed, one more is not."""
    (root / "data/0").write_text("end")
    for number in range(count):
        (root / f"data/{number + 1}").symlink_to(str(number))
    if count > 40:
        with pytest.raises(Refused, match="too many links"):
            resolve(root, f"/data/{count}")
    else:
        assert resolve(root, f"/data/{count}") == "/data/0"


@pytest.mark.parametrize("host", ["/../outside/secret", "/etc/../../outside/secret"])
def test_dots_out_of_the_root_are_refused(host: str, root: Path) -> None:
    """What leads out of the host root is not opened."""
    with pytest.raises(Refused, match="leads out of the host root"):
        HostRoot(str(root)).resolve(host)


def test_link_out_of_the_root_is_refused(root: Path) -> None:
    """Dots in a link count like dots in the path."""
    (root / "etc/escape").symlink_to("../../outside")
    with pytest.raises(Refused, match="leads out of the host root"):
        HostRoot(str(root)).resolve("/etc/escape/secret")


def test_dots_inside_the_root_go_up_from_the_target(root: Path) -> None:
    """`..` after a link is the parent of where it leads, as in the kernel."""
    (root / "data/deep").symlink_to("/etc/containerd")
    assert resolve(root, "/data/deep/../containerd/./config.toml") == "/etc/containerd/config.toml"


def test_last_part_may_be_missing(root: Path) -> None:
    """A file that is going to be made has a place already."""
    assert resolve(root, "/etc/containerd/conf.d/new.toml") == "/etc/containerd/conf.d/new.toml"
    assert resolve(root, "/no/such/place") == "/no/such/place"


@pytest.mark.parametrize("target", ["/data/missing", "missing", "../missing/deep"])
def test_dangling_link_is_refused(target: str, root: Path) -> None:
    """Writing through it would make a file that nobody expects."""
    (root / "data/link").symlink_to(target)
    with pytest.raises(Refused, match=r"^cannot follow /data/link.* dangling"):
        HostRoot(str(root)).resolve("/data/link")


def test_dangling_link_in_the_middle_is_refused(root: Path) -> None:
    """Directories behind it would be made in a place that nobody expects."""
    (root / "etc/gone").symlink_to("/data/unmounted")
    with pytest.raises(Refused, match=r"^cannot follow .*/etc/gone .*dangling"):
        HostRoot(str(root)).resolve("/etc/gone/config.toml")


def test_link_in_the_middle_to_a_file_is_refused(root: Path) -> None:
    """A file has nothing below it."""
    (root / "data/link").symlink_to("/etc/containerd/config.toml")
    with pytest.raises(Refused, match=r"^cannot follow /data/link/x: .*not a directory"):
        HostRoot(str(root)).resolve("/data/link/x")


def test_host_root_has_to_be_a_directory(tmp_path: Path) -> None:
    """Told as a mistake in the options."""
    with pytest.raises(UsageError, match=r"^cannot use host root .*not a directory"):
        HostRoot(str(tmp_path / "none"))


def test_host_itself_needs_no_other_name(root: Path) -> None:
    """Outside a container both names are one, and links are still followed."""
    (root / "data/link").symlink_to("../etc/containerd")
    place = HostRoot("/").locate(f"{root}/data/link/config.toml")
    assert place == HostPath(*[f"{root.resolve()}/etc/containerd/config.toml"] * 2)


def test_path_below_the_host_root_is_resolved_like_its_host_name(root: Path) -> None:
    """`--config=/host/etc/…` must not follow an absolute link in the container's own root."""
    (root / "etc/link").symlink_to("/etc/containerd")
    place = HostRoot(str(root)).locate(f"{root}/etc/link/config.toml")
    assert place.host == "/etc/containerd/config.toml"
    assert place.agent == f"{root}/etc/containerd/config.toml"


def test_dots_behind_the_host_root_are_refused(root: Path) -> None:
    """Its name in front is no permit to leave it."""
    with pytest.raises(Refused, match="leads out of the host root"):
        HostRoot(str(root)).locate(f"{root}/../outside/secret")


def test_links_above_the_host_root_are_followed_once(root: Path, tmp_path: Path) -> None:
    """What is opened has no link in it, whatever the host root was called."""
    (tmp_path / "called").symlink_to("host")
    host = HostRoot(str(tmp_path / "called"))
    for called in ("/etc/containerd", f"{root}/etc/containerd", f"{host.root}/etc/containerd"):
        assert host.locate(called) == HostPath(f"{root}/etc/containerd", "/etc/containerd")
    assert host.locate(f"{tmp_path}/called/etc").host == "/etc"


def test_host_root_behind_a_process_is_refused() -> None:
    """`/proc/1/root` reads as a link to `/`, which is another directory in a container."""
    with (
        mock.patch("agent.host.paths.os.path.realpath", return_value="/usr"),
        pytest.raises(UsageError, match=r"^cannot use host root /proc/1/root: .*process"),
    ):
        HostRoot("/proc/1/root")


@pytest.mark.parametrize("name", ["root", "cwd", "fd/0", "task/1/root", "ns/net"])
@pytest.mark.parametrize("process", ["self", "1"])
def test_magic_link_is_refused(process: str, name: str, root: Path) -> None:
    """Links into a process in the host's /proc."""
    link = root / "proc/1" / name
    link.parent.mkdir(parents=True)
    link.symlink_to("/etc")
    (root / "proc/self").symlink_to("1")
    with pytest.raises(Refused, match=r"^cannot follow /proc/.* leads into a process; name"):
        HostRoot(str(root)).resolve(f"/proc/{process}/{name}/containerd")


@pytest.mark.parametrize("path", ["/proc/self/root/etc", "/proc/thread-self/cwd"])
def test_magic_link_of_a_real_process_is_refused(path: str) -> None:
    """As the kernel has them."""
    with pytest.raises(Refused, match="leads into a process"):
        HostRoot("/").resolve(path)


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "\x1b[2J", "a\0b", "\x7f"])
def test_control_characters_are_refused(name: str, root: Path) -> None:
    """They would break lines of the log and of the status file; the message shows them harmless."""
    with pytest.raises(Refused, match=r"^cannot use the path .*control character") as caught:
        HostRoot(str(root)).resolve(f"/etc/{name}")
    assert name not in caught.value.message


@pytest.mark.parametrize("path", ["/etc/" + "x" * 256, "/etc" + "/x" * 2048])
def test_too_long_a_path_is_refused(path: str, root: Path) -> None:
    """A name of 256 bytes, and a path of 4096."""
    (root / "etc/x").mkdir()
    with pytest.raises(Refused, match=r"^cannot .*file name too long"):
        HostRoot(str(root)).resolve(path)


def test_too_long_a_path_is_not_told_whole(root: Path) -> None:
    """The cause stands behind it, and the status file takes a thousand characters."""
    with pytest.raises(Refused) as caught:
        HostRoot(str(root)).resolve("/x" * 3000)
    assert len(caught.value.message) < 300


# --- any tree, any path ------------------------------------------------------------------------

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="chroot: run tests/run as root")

NAMES = st.sampled_from("abc")
STEPS = st.one_of(NAMES, st.just(".."), st.just("."))
RELATIVE = st.lists(STEPS, min_size=1, max_size=4).map("/".join)
ANY_PATH = st.one_of(RELATIVE, RELATIVE.map("/".__add__))
PLACES = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TREES = st.lists(st.tuples(PLACES, st.one_of(st.none(), st.just(""), ANY_PATH)), max_size=7)


def build(root: Path, tree: list[tuple[str, str | None]]) -> None:
    """Make directories (None), files ("") and links, as far as they do not clash."""
    for place, what in tree:
        path = root / place
        if any((root / above).is_symlink() for above in _above(place)) or os.path.lexists(path):
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if what is None:
                path.mkdir()
            elif what == "":
                path.touch()
            else:
                path.symlink_to(what)
        except (FileExistsError, NotADirectoryError):
            continue


def _above(place: str) -> list[str]:
    parts = place.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


@given(tree=TREES, path=ANY_PATH)
def test_no_path_leads_out_of_the_root(tree: list[tuple[str, str | None]], path: str) -> None:
    """Whatever links there are: refused, or a place inside that is no link itself."""
    base = tempfile.mkdtemp()
    try:
        root = Path(base, "1/2/3/host")
        root.mkdir(parents=True)
        build(root, tree)
        try:
            found = HostRoot(str(root)).resolve("/" + path.lstrip("/"))
        except Refused:
            return
        # The agent opens this name with its own root: nothing in it may be a link any more.
        assert os.path.realpath(found.agent) == found.agent.rstrip("/")
        assert Path(found.agent) == root / found.host.lstrip("/")
        assert ".." not in found.host.split("/")
    finally:
        shutil.rmtree(base)


KERNEL = """
import json, os, sys
def find(root, path):
    os.chroot(root)
    os.chdir("/")
    found = os.stat("/" + path)
    return [found.st_dev, found.st_ino]
for line in sys.stdin:
    root, *paths = json.loads(line)
    answers = []
    for path in paths:
        reader, writer = os.pipe()
        if os.fork() == 0:
            try:
                os.write(writer, json.dumps(find(root, path)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        answers.append(json.loads(os.read(reader, 1000) or b"null"))
        os.close(reader)
        os.wait()
    print(json.dumps(answers), flush=True)
"""


@pytest.fixture(scope="module")
def kernel() -> Iterator[Callable[[Path, list[str]], list[list[int] | None]]]:
    """Ask what a process with another root directory finds: device and inode, None for nothing.

    A process of its own does it: forking this one would not do with threads in it.
    """
    argv = [sys.executable, "-c", KERNEL]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        asked, answers = child.stdin, child.stdout

        def ask(root: Path, wanted: list[str]) -> list[list[int] | None]:
            asked.write(json.dumps([str(root), *wanted]) + "\n")
            asked.flush()
            found: list[list[int] | None] = json.loads(answers.readline())
            return found

        yield ask
        asked.close()


@root_only
@given(tree=TREES, wanted=st.lists(ANY_PATH, min_size=1, max_size=4))
def test_same_place_as_the_host_finds(
    kernel: Callable[[Path, list[str]], list[list[int] | None]],
    tree: list[tuple[str, str | None]],
    wanted: list[str],
) -> None:
    """What the kernel finds in a chroot is what is found here, or it was refused."""
    base = tempfile.mkdtemp()
    try:
        root = Path(base, "host")
        root.mkdir()
        build(root, tree)
        host = HostRoot(str(root))
        for path, seen in zip(wanted, kernel(root, wanted), strict=True):
            try:
                found = os.stat(host.resolve("/" + path.lstrip("/")).agent)
            except (Refused, OSError):
                continue
            # `missing/..` is undone by name where the kernel finds nothing: more, never another.
            assert seen is None or seen == [found.st_dev, found.st_ino]
    finally:
        shutil.rmtree(base)
