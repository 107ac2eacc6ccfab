"""The management spec of made-up drivers has the right entries in the right order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cdi import model
from agent.cdi.driver import driver, loader
from agent.cdi.driver.root import DriverRoot
from agent.cdi.make import driver_files
from agent.cdi.make.driver_files import BuildContext
from agent.cdi.make.hooks import Hooks
from agent.cdi.model import Spec
from agent.errors import NoDriver
from agent.host.paths import HostRoot
from agent.options.settings import resolve
from tests.tools.driver import (
    CAPABILITIES,
    LIBRARIES,
    UVM,
    VERSION,
    elf,
    make_driver,
    remove_driver,
)
from tests.unit.support.ld_cache import make_cache

_DEFAULTS = resolve({}, {}, "toolkit-agent")

needs_nodes = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root: run as root")
pytestmark = needs_nodes

HOOK = "/usr/local/nvidia/toolkit/nvidia-cdi-hook"
LIB = f"/{LIBRARIES}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_driver(tmp_path / "run/nvidia/driver")


def found(root: Path, host: Path | None = None) -> driver.Driver:
    """The driver in `root`; the host root is `host`, else `/`."""
    name = str(root) if host is None else f"/{root.relative_to(host)}"
    return driver.find(
        HostRoot(str(host or "/")), resolve({"driver_root": name}, {}, "toolkit-agent")
    )


def spec(root: Path, hook: str | None = HOOK, host: Path | None = None) -> Spec:
    return driver_files.management_spec(found(root, host), BuildContext(Hooks(hook), "6.1.0"))


def test_device_all_has_every_node_with_its_numbers(root: Path) -> None:
    """Sorted by depth and path; numbers, mode and group as the kernel says; no uid, no type."""
    host = root.parents[2]  # and not this machine, which may have device nodes of its own
    (device,) = spec(root, host=host).devices
    nodes = [
        (n.path, n.major, n.minor, n.file_mode, n.gid) for n in device.container_edits.device_nodes
    ]
    assert device.name == "all"
    assert nodes == [
        ("/dev/nvidia-modeset", 195, 254, 0o660, 44),
        ("/dev/nvidia-uvm", UVM, 0, 0o666, None),
        ("/dev/nvidia-uvm-tools", UVM, 1, 0o666, None),
        ("/dev/nvidia0", 195, 0, 0o666, None),
        ("/dev/nvidiactl", 195, 255, 0o666, None),
        ("/dev/nvidia-caps/nvidia-cap1", CAPABILITIES, 1, 0o400, None),
        ("/dev/nvidia-caps/nvidia-cap2", CAPABILITIES, 2, 0o444, None),
    ]
    first = device.container_edits.device_nodes[0]
    assert (first.host_path, first.permissions) == ("/run/nvidia/driver/dev/nvidia-modeset", "rwm")
    assert device.container_edits.additional_gids == (44,)


def test_spec_has_environment_libraries_firmware_and_programs(root: Path) -> None:
    """Environment, libraries by their real names, firmware and programs."""
    common = spec(root).container_edits
    assert common.env == (f"NVIDIA_CTK_LIBCUDA_DIR={LIB}", "NVIDIA_VISIBLE_DEVICES=void")
    assert [mount.container_path for mount in common.mounts] == [
        "/usr/bin/nvidia-cuda-mps-control",
        "/usr/bin/nvidia-debugdump",
        "/usr/bin/nvidia-persistenced",
        "/usr/bin/nvidia-smi",
        f"{LIB}/libGLX_nvidia.so.{VERSION}",
        f"{LIB}/libcuda.so.{VERSION}",
        f"{LIB}/libnvidia-glcore.so.{VERSION}",
        f"{LIB}/libnvidia-ml.so.{VERSION}",
        f"{LIB}/libnvidia-nvvm70.so.4",
        f"{LIB}/libnvidia-opticalflow.so.{VERSION}",
        f"{LIB}/libnvidia-ptxjitcompiler.so.{VERSION}",
        f"/lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin",
        f"/lib/firmware/nvidia/{VERSION}/gsp_tu10x.bin",
        f"{LIB}/vdpau/libvdpau_nvidia.so.{VERSION}",
    ]
    for mount in common.mounts:
        assert mount.host_path == f"{root}{mount.container_path}"
        assert mount.options == ("ro", "nosuid", "nodev", "rbind", "rprivate")


def test_hooks_are_in_the_order_of_the_ecosystem(root: Path) -> None:
    """Links first, then an image's own newer libraries, then the loader's cache."""
    links, compat, cache = spec(root).container_edits.hooks
    assert {hook.hook_name for hook in (links, compat, cache)} == {"createContainer"}
    assert {(hook.path, hook.env) for hook in (links, compat, cache)} == {
        (HOOK, ("NVIDIA_CTK_DEBUG=false",))
    }
    assert links.args[:2] == ("nvidia-cdi-hook", "create-symlinks")
    assert links.args[3::2] == (
        f"libGLX_nvidia.so.{VERSION}::{LIB}/libGLX_indirect.so.0",
        f"libGLX_nvidia.so.{VERSION}::{LIB}/libGLX_nvidia.so.0",
        f"libcuda.so.1::{LIB}/libcuda.so",
        f"libcuda.so.{VERSION}::{LIB}/libcuda.so.1",
        f"libnvidia-ml.so.{VERSION}::{LIB}/libnvidia-ml.so.1",
        f"libnvidia-ml.so.1::{LIB}/libnvidia-ml.so",
        f"libnvidia-opticalflow.so.1::{LIB}/libnvidia-opticalflow.so",
        f"libnvidia-opticalflow.so.{VERSION}::{LIB}/libnvidia-opticalflow.so.1",
        f"libnvidia-ptxjitcompiler.so.{VERSION}::{LIB}/libnvidia-ptxjitcompiler.so.1",
        f"libvdpau_nvidia.so.{VERSION}::{LIB}/vdpau/libvdpau_nvidia.so.1",
    )
    assert compat.args[1:] == ("enable-cuda-compat", f"--host-driver-version={VERSION}")
    assert cache.args[1:] == ("update-ldcache", "--folder", LIB, "--folder", f"{LIB}/vdpau")


def test_spec_has_no_hooks_without_their_binary(root: Path) -> None:
    """A hook whose binary is missing fails every container."""
    assert spec(root, hook=None).container_edits.hooks == ()


def test_paths_of_the_hosts_own_driver_are_equal(tmp_path: Path) -> None:
    """Seen below a host root, named as the host names it; then host and container path are one."""
    make_driver(tmp_path)
    there = driver.find(HostRoot(str(tmp_path)), _DEFAULTS)
    made = driver_files.management_spec(there, BuildContext(Hooks(None), "6"))
    assert made.devices[0].container_edits.device_nodes[0].host_path == ""
    assert {m.host_path == m.container_path for m in made.container_edits.mounts} == {True}


def test_driver_container_is_preferred(tmp_path: Path) -> None:
    """Where both are there, the one that a driver container installed is loaded."""
    make_driver(tmp_path, "1.2.3")
    make_driver(tmp_path / "run/nvidia/driver")
    assert driver.find(HostRoot(str(tmp_path)), _DEFAULTS).version == VERSION


def test_driver_container_without_nodes_takes_those_of_the_host(tmp_path: Path) -> None:
    """Older driver containers make them in the host's /dev only."""
    make_driver(tmp_path / "run/nvidia/driver", nodes=False)
    make_driver(tmp_path)
    shutil.rmtree(tmp_path / "usr")
    got = driver.find(HostRoot(str(tmp_path)), _DEFAULTS)
    assert (got.root.host_path, got.nodes[0].host_path) == (
        "/run/nvidia/driver",
        "/dev/nvidia-modeset",
    )


@pytest.mark.parametrize("line", [
    "NVIDIA UNIX x86_64 Kernel Module  {}  Tue Oct 31 19:23:25 UTC 2023",
    "NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (builder@host)  Tue Oct 31",
])  # fmt: skip
def test_libraries_have_the_version_of_the_loaded_driver(tmp_path: Path, line: str) -> None:
    """An upgrade may leave the libraries of before, and with these nothing would work: NVIDIA's
    generator takes the version that NVML tells."""
    root = make_driver(tmp_path / "run/nvidia/driver", "535.183.01")
    make_driver(root)
    assert found(root, tmp_path).version == "535.183.01"
    shown = tmp_path / "proc/driver/nvidia/version"
    shown.parent.mkdir(parents=True)
    for version, expected in ((VERSION, VERSION), ("570.86", "535.183.01")):
        shown.write_text(f"NVRM version: {line.format(version)}\nGCC version: 12\n", "ascii")
        there = found(root, tmp_path)
        assert there.version == expected
        assert f"{LIB}/libcuda.so.{expected}" in there.libraries()


def test_absolute_links_are_followed_inside_the_root(root: Path) -> None:
    """Debian's alternatives: a program and a library behind five hops, all absolute."""
    current = root / "usr/lib/nvidia/current"
    current.mkdir(parents=True)
    (root / "usr/bin/nvidia-smi").rename(current / "nvidia-smi")
    hops = ["usr/bin/nvidia-smi", *(f"etc/alternatives/{n}" for n in range(4))]
    (root / "etc/alternatives").mkdir(parents=True)
    for link, target in zip(hops, [*hops[1:], "usr/lib/nvidia/current/nvidia-smi"], strict=True):
        (root / link).symlink_to(f"/{target}")
    mounts = {m.container_path: m.host_path for m in spec(root).container_edits.mounts}
    # The host would follow /etc/alternatives of its own, so the target itself is mounted.
    assert mounts["/usr/bin/nvidia-smi"] == f"{current}/nvidia-smi"


def test_libraries_behind_absolute_links_are_found(root: Path) -> None:
    """Libraries in nvidia/current, reached by absolute links only, are found by their places."""
    lib = root / LIBRARIES
    current = lib / "nvidia/current"
    current.mkdir(parents=True)
    for path in [p for p in lib.iterdir() if p.is_file() and not p.is_symlink()]:
        path.rename(current / path.name)
        path.symlink_to(f"/{LIBRARIES}/nvidia/current/{path.name}")
    for path in [p for p in lib.iterdir() if p.is_symlink() and VERSION not in p.name]:
        path.rename(current / path.name)
    made = spec(root)
    assert made.container_edits.env[0].startswith(f"NVIDIA_CTK_LIBCUDA_DIR={LIB}/nvidia/current")
    paths = [m.container_path for m in made.container_edits.mounts]
    assert f"{LIB}/nvidia/current/libcuda.so.{VERSION}" in paths
    assert f"{LIB}/libcuda.so.{VERSION}" not in paths


def test_links_that_leave_the_root_are_nothing(root: Path, tmp_path: Path) -> None:
    """What a relative link over the edge points to is not the driver's."""
    (tmp_path / "secret.so").touch()
    link = root / LIBRARIES / f"libevil.so.{VERSION}"
    link.symlink_to("../" * 9 + str(tmp_path / "secret.so")[1:])
    paths = [m.host_path for m in spec(root).container_edits.mounts]
    assert not [path for path in paths if "secret" in path or "evil" in path]


def test_files_that_are_no_libraries_do_no_harm(root: Path) -> None:
    """A broken libnvidia-ml, a text, an empty file, a cut one: mounted, without links."""
    lib = root / LIBRARIES
    contents = (b"", b"text", elf("libx.so.1")[:90], b"\x7fELF" + bytes(60))
    for number, content in enumerate(contents):
        (lib / f"libodd{number}.so.{VERSION}").write_bytes(content)
    (lib / f"libnvidia-ml.so.{VERSION}").write_bytes(b"broken")
    made = spec(root)
    assert model.problems(made) == []
    assert not [word for word in made.container_edits.hooks[0].args if "libodd" in word]


def test_soname_is_read_from_elf_files_of_a_driver(tmp_path: Path) -> None:
    """Of 64 bits, little endian; none is told from no ELF file."""
    from agent.cdi.driver.loader import soname

    path = tmp_path / "lib"
    for name in ("libx.so.1", ""):
        path.write_bytes(elf(name))
        assert soname(str(path)) == name
    for wide, order in ((False, "<"), (True, ">")):
        path.write_bytes(elf("libx.so.1", wide=wide, order=order))
        assert soname(str(path)) is None
    assert soname(str(tmp_path / "none")) is None


def test_sockets_of_daemons_are_mounted_writable(root: Path) -> None:
    """The first place of each; not read-only, for one connects to them."""
    import socket

    (root / "run/nvidia-persistenced").mkdir(parents=True)
    (root / "var").mkdir()
    (root / "var/run").symlink_to("../run")
    with socket.socket(socket.AF_UNIX) as server:
        directory = os.open(root / "run/nvidia-persistenced", os.O_RDONLY)
        server.bind(f"/proc/self/fd/{directory}/socket")
        os.close(directory)
    (mount,) = [m for m in spec(root).container_edits.mounts if m.container_path.endswith("socket")]
    assert mount.container_path == "/run/nvidia-persistenced/socket"
    assert mount.options == ("nosuid", "nodev", "rbind", "rprivate", "noexec")


def test_other_nodes_are_not_taken(root: Path) -> None:
    """They have specs of their own; links and files are no device nodes."""
    for name in ("nvidia-fs0", "nvidia-nvswitch0", "nvidia-nvlink"):
        os.mknod(root / "dev" / name, 0o020666, os.makedev(240, 0))
    (root / "dev/nvidia9").symlink_to("nvidia0")
    (root / "dev/nvidia8").touch()
    names = {n.path for n in spec(root).devices[0].container_edits.device_nodes}
    assert not {f"/dev/{n}" for n in ("nvidia-fs0", "nvidia-nvswitch0", "nvidia-nvlink")} & names
    assert not {"/dev/nvidia8", "/dev/nvidia9"} & names


@pytest.mark.parametrize("what", ["nothing", "no nodes", "upgraded away", "no directory"])
def test_missing_driver_is_an_error_with_the_places(tmp_path: Path, what: str) -> None:
    """Says what is missing and where it was looked for."""
    root = tmp_path / "driver"
    if what != "no directory":
        root.mkdir()
    if what in ("no nodes", "upgraded away"):
        make_driver(root, nodes=what == "upgraded away")
    if what == "upgraded away":
        remove_driver(root)
    settings = resolve({"driver_root": "/driver", "dev_root": "/driver"}, {}, "toolkit-agent")
    with pytest.raises(NoDriver, match=r"^cannot make a CDI spec: .*driver"):
        driver.find(HostRoot(str(tmp_path)), settings)


def test_libraries_are_found_by_the_loaders_cache(root: Path) -> None:
    """A layout of its own, as on NixOS."""
    lib, odd = root / LIBRARIES, root / "opt/odd"
    odd.parent.mkdir()
    lib.rename(odd)
    (root / "etc").mkdir(exist_ok=True)
    names = [f"/opt/odd/{p.name}" for p in odd.iterdir() if VERSION in p.name]
    (root / "etc/ld.so.cache").write_bytes(make_cache(sorted(names)))
    made = found(root)
    assert (made.version, made.directories) == (VERSION, ("/opt/odd",))
    assert f"/opt/odd/libcuda.so.{VERSION}" in made.libraries()


def caches() -> Iterator[bytes]:
    whole = make_cache(["/lib/a.so.1"])
    yield from (b"", b"text", whole[:30], whole[:60], whole.replace(b"/lib", b"\0lib"))


@pytest.mark.parametrize("data", list(caches()))
def test_broken_cache_names_nothing(data: bytes) -> None:
    """Whatever is in the file, it is no reason to fail."""
    assert loader.cached_paths(data) == ()


def test_bytes_are_the_same_each_time(root: Path) -> None:
    """And valid, of the lowest version that has additional groups."""
    first, second = (model.text(spec(root)) for _ in range(2))
    assert first == second
    assert '\ncdiVersion: "0.7.0"\n' in first


def test_root_names_things_inside(tmp_path: Path) -> None:
    """A pattern with slashes, hidden names, and what is not there."""
    for name in ("a/x1/f", "a/x2/f", "a/.hidden/f"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    tree = DriverRoot(str(tmp_path), "/driver", HostRoot("/"))
    assert tree.files(("/a", "/none"), "*/f") == ("/a/x1/f", "/a/x2/f")
