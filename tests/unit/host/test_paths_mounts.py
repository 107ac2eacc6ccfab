"""Directories of the host that are mounted elsewhere keep their name on the host."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.host.paths import HostPath, HostRoot, Mount, parse_mountinfo
from tests.unit.support.made_host import make_host

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_host(tmp_path)


def daemonset(root: Path, name: str = "/runtime/config-dir") -> tuple[HostRoot, Path]:
    """gpu-operator's mount of /etc/containerd: the directory, and the line in the table."""
    own = root.parent / name.lstrip("/")
    own.parent.mkdir(parents=True, exist_ok=True)
    mounts = (
        Mount("/", "0:30", "/"),
        Mount(str(root), "8:1", "/"),
        Mount(str(own), "8:1", "/etc/containerd"),
    )
    own.mkdir()
    return HostRoot(str(root), mounts), own


def alias(monkeypatch: pytest.MonkeyPatch, one: Path, other: Path) -> None:
    """Make two directories the same by device and inode, as a bind mount does."""
    real = os.path.samestat
    ids = {one.stat().st_ino, other.stat().st_ino}

    def samestat(a: os.stat_result, b: os.stat_result) -> bool:
        return real(a, b) or {a.st_ino, b.st_ino} == ids

    monkeypatch.setattr(os.path, "samestat", samestat)


def test_own_mount_has_its_name_on_the_host(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/runtime/config-dir is /etc/containerd: found by device and inode, opened by its own name."""
    host, own = daemonset(root)
    alias(monkeypatch, own, root / "etc/containerd")
    place = host.locate(f"{own}/conf.d/99-nvidia.toml")
    assert place.host == "/etc/containerd/conf.d/99-nvidia.toml"
    assert place.agent == f"{own}/conf.d/99-nvidia.toml"
    assert host.is_on_host(place)
    # The host's name leads there too, if the mount was named: the root may be mounted read-only.
    host = host.with_mounts_of(str(own))
    assert host.resolve("/etc/containerd/conf.d").agent == f"{own}/conf.d"


def test_looking_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a host root answers does not depend on what it was asked before."""
    host, own = daemonset(root)
    alias(monkeypatch, own, root / "etc/containerd")
    before = host.resolve("/etc/containerd")
    host.locate(f"{own}/conf.d/99-nvidia.toml")
    assert host.resolve("/etc/containerd") == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        host.views = ()  # type: ignore[misc]


def test_own_mount_behind_a_link_keeps_its_host_name(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/usr/local/nvidia of a host whose /usr/local is a link to /var/usrlocal: what is written goes
    through the mount, for below the host root all may be read-only."""
    own = root.parent / "local/nvidia"
    own.mkdir(parents=True)
    above = root / str(root.parent).lstrip("/")
    (above / "usrlocal/nvidia").mkdir(parents=True)
    (above / "local").symlink_to("usrlocal")
    alias(monkeypatch, own, above / "usrlocal/nvidia")
    mounts = (Mount("/", "0:30", "/"), Mount(str(root), "8:1", "/"), Mount(str(own), "8:1", "/x"))
    host = HostRoot(str(root), mounts)
    place = host.locate(f"{own}/toolkit")
    assert place == HostPath(f"{own}/toolkit", f"{root.parent}/usrlocal/nvidia/toolkit")
    host = host.with_mounts_of(str(own))
    assert host.agent_path(f"{own}/toolkit") == f"{own}/toolkit"


def test_own_mount_that_is_another_directory_is_used_as_given(root: Path) -> None:
    """Equal names prove nothing: the inode is another one."""
    host, own = daemonset(root)
    place = host.locate(f"{own}/x.toml")
    assert place == HostPath(f"{own}/x.toml", f"{own}/x.toml")


def test_standard_mount_of_a_container_is_not_the_hosts(root: Path) -> None:
    """The container's own tmpfs on /run: what the option names is the host's /run."""
    mounts = (Mount("/", "0:30", "/"), Mount("/run", "0:31", "/"), Mount(str(root), "8:1", "/"))
    place = HostRoot(str(root), mounts).locate("/run/nvidia/validations")
    assert place == HostPath(f"{root}/run/nvidia/validations", "/run/nvidia/validations")


def test_path_without_a_mount_is_the_hosts(root: Path) -> None:
    """An option that names a host path works as it is written."""
    host = HostRoot(str(root), (Mount("/", "0:30", "/"), Mount(str(root), "8:1", "/")))
    place = host.locate("/etc/containerd/config.toml")
    assert place.agent == f"{root}/etc/containerd/config.toml"


IN_NAMESPACE = """
import os, sys
from agent.host.paths import open_host_root
base = sys.argv[1]
host = open_host_root(base + "/host")
for given in sys.argv[2:]:
    place = host.locate(given)
    print(place.agent, place.host, host.is_on_host(place))
"""


def in_namespace(base: Path, binds: list[tuple[str, str]], *given: str) -> list[list[str]]:
    """Locate paths in a mount namespace of its own, with these directories bound below `base`."""
    lines = ["set -e", "mount --make-rprivate /", f"mount --bind {base}/host {base}/host"]
    for source, target in binds:
        (base / target).mkdir(parents=True, exist_ok=True)
        lines.append(f"mount --bind {base}/{source} {base}/{target}")
    lines.append('exec "$@"')
    script = "\n".join(lines)
    program = [sys.executable, "-c", IN_NAMESPACE, str(base)]
    argv = ["unshare", "-m", "sh", "-c", script, "sh", *program, *given]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=PROJECT)
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"cannot have mounts of its own: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


real_mounts = pytest.mark.skipif(os.geteuid() != 0, reason="mounts: run tests/run as root")


@real_mounts
def test_real_bind_mount_is_found_on_the_host(root: Path) -> None:
    """The kernel's own table: a directory of the host, mounted at another place."""
    base = root.parent
    own = f"{base}/runtime/config-dir"
    binds = [("host/etc/containerd", "runtime/config-dir")]
    (found,) = in_namespace(base, binds, f"{own}/config.toml")
    assert found == [f"{own}/config.toml", "/etc/containerd/config.toml", "True"]


@real_mounts
def test_real_mount_from_elsewhere_is_used_as_given(root: Path) -> None:
    """A directory that does not lie below the host root has no name there."""
    base = root.parent
    own = f"{base}/runtime/config-dir"
    (found,) = in_namespace(
        base, [("outside/etc/containerd", "runtime/config-dir")], f"{own}/config.toml"
    )
    assert found == [f"{own}/config.toml", f"{own}/config.toml", "True"]


@real_mounts
def test_absolute_link_on_an_own_mount_is_the_hosts(root: Path) -> None:
    """/runtime/config-dir/config.toml → /data/config.toml leads to the host's /data."""
    base = root.parent
    (root / "data/config.toml").write_text("the host's")
    (root / "etc/containerd/config.toml").unlink()
    (root / "etc/containerd/config.toml").symlink_to("/data/config.toml")
    binds = [("host/etc/containerd", "runtime/config-dir")]
    (found,) = in_namespace(base, binds, f"{base}/runtime/config-dir/config.toml")
    assert found == [f"{root}/data/config.toml", "/data/config.toml", "True"]


def test_mountinfo_is_read_with_its_escapes() -> None:
    """Fields of proc(5); octal escapes in names."""
    text = (
        "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
        "37 35 0:5 /a\\040b /c\\011\\134040 rw - tmpfs tmpfs rw\n\nshort line\n"
    )
    assert parse_mountinfo(text.splitlines()) == (
        Mount("/mnt2", "98:0", "/mnt1", "rw,noatime", "ext3"),
        Mount("/c\t\\040", "0:5", "/a b", "rw", "tmpfs"),
    )


_ROOT, _USR, _LOCAL = (
    Mount("/", "8:1", "/"),
    Mount("/usr", "8:2", "/"),
    Mount("/usr/local", "8:3", "/"),
)


@pytest.mark.parametrize(
    ("mounts", "path", "expected"),
    [
        ((), "/usr/local", None),
        ((_ROOT,), "/usr/local/x", _ROOT),
        ((_USR,), "/opt", None),
        ((_ROOT, _USR, _LOCAL), "/usr/local/not/there", _LOCAL),
        ((_ROOT, _USR, _LOCAL), "/usr/local", _LOCAL),
        ((_ROOT, _USR, _LOCAL), "/usr/locale", _USR),
        ((_ROOT, _USR, _LOCAL), "/usrlocal", _ROOT),
        # The root is not the first where an initial RAM disk moved the others there.
        ((_LOCAL, _USR, _ROOT), "/usr/local/x", _LOCAL),
        # The last of those at one place hides the others.
        ((_ROOT, Mount("/usr", "0:1", "/"), _USR), "/usr/x", _USR),
    ],
)  # fmt: skip
def test_innermost_mount_of_a_path_counts(
    root: Path, mounts: tuple[Mount, ...], path: str, expected: Mount | None
) -> None:
    """The innermost."""
    assert HostRoot(str(root), mounts).mount(HostPath(path, "/elsewhere")) == expected
