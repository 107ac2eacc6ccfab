"""Debian's driver packages: libraries and programs behind absolute links, five in a row.

NVIDIA's generator follows such links on the host, where they lead nowhere or to something else: of
the real tree it misses the libraries behind them, and nvidia-smi.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.cdi.make import generate
from agent.host.paths import HostRoot
from agent.options.settings import resolve
from agent.toolkit import programs
from tests.doubles.nvml.nvml import FakeGpu
from tests.tools import debian_driver
from tests.tools.debian_driver import BEHIND_LINKS, CURRENT, LIB, PLAIN, make_debian_driver
from tests.tools.driver import make_nodes
from tests.tools.image_tools import Unavailable, image_tools
from tests.tools.kernel import make_kernel
from tests.tools.mounts import cover, separate
from tests.tools.private_apt import AptError
from tests.tools.runtimes import cache_directory

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root: run as root")

V = debian_driver.VERSION
ROOT = "/run/nvidia/driver"
_SUITE, _COMPONENTS = "trixie", "main contrib non-free non-free-firmware"
_PACKAGES = (
    "libcuda1", "libnvidia-ml1", "nvidia-smi", "nvidia-persistenced", "nvidia-modprobe",
    "libnvidia-cfg1", "libnvidia-encode1", "libnvcuvid1", "libnvidia-ptxjitcompiler1",
    "libnvidia-nvvm4", "libcudadebugger1", "libnvidia-opticalflow1", "libnvidia-allocator1",
    "nvidia-egl-icd", "nvidia-vulkan-icd", "nvidia-cuda-mps", "xserver-xorg-video-nvidia",
)  # fmt: skip


@dataclass(frozen=True)
class Tree:
    """A host with the driver below it, and the two specs of that."""

    host: Path
    management: dict[str, Any]
    gpu: dict[str, Any]

    def mounts(self, kind: str = "gpu") -> dict[str, str]:
        """Inside the driver root: what a container has, and what is mounted there."""
        spec = self.gpu if kind == "gpu" else self.management
        found = spec["containerEdits"]["mounts"]
        assert {m["hostPath"].startswith(f"{ROOT}/") for m in found} == {True}
        assert len({m["containerPath"] for m in found}) == len(found)
        return {m["containerPath"]: m["hostPath"].removeprefix(ROOT) for m in found}


def describe(host: Path) -> Tree:
    """Give the tree a GPU, and describe it. NVML does not answer there, the kernel does."""
    root = host / ROOT[1:]
    make_nodes(root)
    make_kernel(host, root, [FakeGpu(0)])
    hook = host / "usr/bin/nvidia-cdi-hook"
    hook.parent.mkdir(parents=True)
    hook.write_text("#!/bin/sh\n", encoding="ascii")
    hook.chmod(0o755)
    settings, seen = resolve({}, {}, "toolkit-agent"), HostRoot(str(host))
    program = programs.find(settings, seen, programs.CDI_HOOK)
    texts = [
        generate.spec_text(mode, settings, seen, "json", hook=program)[0]
        for mode in ("management", "gpu")
    ]
    return Tree(host, json.loads(texts[0]), json.loads(texts[1]))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    host = tmp_path_factory.mktemp("debian")
    make_debian_driver(host / ROOT[1:])
    # The host has alternatives of its own, with another driver.
    (host / "etc/alternatives").mkdir(parents=True)
    for name in ("nvidia--nvidia-smi", f"nvidia--libcuda.so.1-{LIB.rpartition('/')[2]}"):
        (host / "etc/alternatives" / name).symlink_to("/usr/bin/nvidia-cdi-hook")
    return describe(host)


@pytest.fixture(scope="module")
def real() -> Iterator[Tree]:
    """The packages themselves, installed into a folder and kept in the cache."""
    mark = hashlib.sha256(" ".join(_PACKAGES).encode()).hexdigest()[:8]
    cache = cache_directory() / "drivers"
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / f"{_SUITE}-{mark}"
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be at it
        if not kept.exists():
            try:
                image_tools().tree(kept, _PACKAGES, _SUITE, _COMPONENTS)
            except (AptError, Unavailable, AssertionError) as error:
                pytest.skip(f"Debian's driver cannot be unpacked here: {error}")
    # Beside it, for hard links.
    with tempfile.TemporaryDirectory(dir=cache, prefix=".host-") as folder:
        root = Path(folder) / ROOT[1:]
        root.parent.mkdir(parents=True)
        shutil.copytree(kept, root, symlinks=True, copy_function=os.link, ignore=_nodes)
        # The driver's own NVML makes /dev/nvidiactl where that is missing (550.163.01).
        with ThreadPoolExecutor(1) as thread:
            yield thread.submit(_describe_apart, Path(folder)).result()


def _describe_apart(host: Path) -> Tree:
    """Describe it in a thread with mounts of its own, in which /dev is another one."""
    assert separate()
    cover("/dev", ("null", "zero", "random", "urandom"))
    return describe(host)


def _nodes(folder: str, names: list[str]) -> list[str]:
    return names if folder.endswith(("/dev", "/proc", "/sys", "/var")) else []


def test_every_library_is_found_behind_its_links(small: Tree) -> None:
    """Under its real name, in both specs; and so is the compiler under the name that has a link of
    its own."""
    for kind in ("management", "gpu"):
        mounts = small.mounts(kind)
        for name in BEHIND_LINKS:
            path = f"{CURRENT}/{name}.so.{V}"
            assert mounts[path] == path
        for name in PLAIN:
            path = f"{LIB}/{name}.so.{V}"
            assert mounts[path] == path
        libraries = [path for path in mounts if path.startswith(LIB)]
        more = 1 if kind == "gpu" else 0  # of EGL, with a version of its own
        assert len(libraries) == len(BEHIND_LINKS) + len(PLAIN) + more


def test_programs_behind_links_are_mounted_by_their_real_path(small: Tree) -> None:
    """Called as one calls them; what is mounted is the file itself, for the host has links of the
    same names that lead elsewhere."""
    programs = {k: v for k, v in small.mounts().items() if "bin/" in k}
    assert programs == {
        "/usr/bin/nvidia-cuda-mps-control": "/usr/bin/nvidia-cuda-mps-control",
        "/usr/bin/nvidia-persistenced": "/usr/bin/nvidia-persistenced",
        "/usr/bin/nvidia-smi": "/usr/lib/nvidia/current/nvidia-smi",
        "/usr/sbin/nvidia-cuda-mps-server": "/usr/sbin/nvidia-cuda-mps-server",
    }


def test_files_for_graphics_are_found_behind_links(small: Tree) -> None:
    """Also those of the X server, which lie behind two alternatives."""
    plain = small.mounts("management")
    more = {k: v for k, v in small.mounts().items() if k not in plain}
    wayland = f"{LIB}/libnvidia-egl-wayland.so.1.1.18"
    share = "/usr/share"
    assert more == {
        wayland: wayland,
        "/etc/vulkan/icd.d/nvidia_icd.json": f"{share}/vulkan/icd.d/nvidia_icd.json",
        "/etc/vulkan/implicit_layer.d/nvidia_layers.json":
            f"{share}/vulkan/implicit_layer.d/nvidia_layers.json",
        f"{share}/X11/xorg.conf.d/nvidia-drm-outputclass.conf":
            "/etc/nvidia/current/nvidia-drm-outputclass.conf",
        f"{share}/egl/egl_external_platform.d/10_nvidia_wayland.json":
            f"{share}/egl/egl_external_platform.d/10_nvidia_wayland.json",
        f"{share}/glvnd/egl_vendor.d/10_nvidia.json":
            f"{share}/glvnd/egl_vendor.d/10_nvidia.json",
        "/usr/lib/xorg/modules/drivers/nvidia_drv.so": "/usr/lib/nvidia/current/nvidia_drv.so",
    }  # fmt: skip


def test_hooks_know_the_driver_s_own_directory(small: Tree) -> None:
    """Links are made there, and the loader is told of it."""
    common = small.gpu["containerEdits"]
    assert common["env"][0] == f"NVIDIA_CTK_LIBCUDA_DIR={LIB}:{CURRENT}"
    graphics, links, _, cache, *_ = [hook["args"] for hook in common["hooks"]]
    assert graphics[2:] == [
        "--link", f"../libnvidia-allocator.so.1::{CURRENT}/gbm/nvidia-drm_gbm.so",
    ]  # fmt: skip
    made = set(links[3::2])
    assert {
        f"libcuda.so.1::{CURRENT}/libcuda.so",
        f"libcuda.so.{V}::{CURRENT}/libcuda.so.1",
        f"libnvidia-ml.so.{V}::{CURRENT}/libnvidia-ml.so.1",
        f"libGLX_nvidia.so.{V}::{CURRENT}/libGLX_indirect.so.0",
    } <= made
    assert sorted(cache[3::2]) == [LIB, CURRENT]


def test_loader_s_cache_alone_is_enough(tmp_path: Path) -> None:
    """For a layout that no list of directories knows: the chains start in a directory that only
    the cache names."""
    root = make_debian_driver(tmp_path / ROOT[1:])
    odd = root / "usr/odd-lib"
    (root / LIB[1:]).rename(odd)
    for path in [*(root / "etc/alternatives").iterdir(), *(odd / "nvidia").iterdir()]:
        if path.is_symlink() and LIB in os.readlink(path):
            target = os.readlink(path).replace(LIB, "/usr/odd-lib")
            path.unlink()
            path.symlink_to(target)
    cache = root / "etc/ld.so.cache"
    # The cache has offsets in it: the new name is as long as the old one.
    name = b"/usr/odd-lib" + b"/." * ((len(LIB) - len("/usr/odd-lib")) // 2)
    cache.write_bytes(cache.read_bytes().replace(LIB.encode(), name.ljust(len(LIB), b"/")))
    mounts = describe(tmp_path).mounts("management")
    found = {path for path in mounts if ".so." in path}
    assert f"/usr/odd-lib/nvidia/current/libcuda.so.{V}" in found
    assert f"/usr/odd-lib/libnvidia-glcore.so.{V}" in found


def test_miniature_can_be_made_by_hand(tmp_path: Path) -> None:
    """As its first lines say; links are absolute, and one of them leads over five hops."""
    words = [sys.executable, "-m", "tests.tools.debian_driver", str(tmp_path / "root")]
    subprocess.run(words, check=True, cwd=Path(__file__).parents[4])
    path, hops = f"{LIB}/libnvidia-cfg.so.1", 0
    while (tmp_path / "root" / path[1:]).is_symlink():
        target = os.readlink(tmp_path / "root" / path[1:])
        path, hops = os.path.join(os.path.dirname(path), target), hops + 1
    assert (path, hops) == (f"{CURRENT}/libnvidia-cfg.so.{V}", 5)


@pytest.mark.long
def test_every_library_of_real_packages_is_mounted_once(real: Tree) -> None:
    """Every library of the driver's version in the tree is mounted once, by its real name; and
    nvidia-smi."""
    root = real.host / ROOT[1:]
    (library,) = (root / CURRENT[1:]).glob("libcuda.so.*.*")
    version = library.name.removeprefix("libcuda.so.")
    files = [*(root / LIB[1:]).glob(f"*.so.{version}"), *library.parent.glob(f"*.so.{version}")]
    there = {str(path).removeprefix(str(root)) for path in files if not path.is_symlink()}
    for kind in ("management", "gpu"):
        mounts = real.mounts(kind)
        assert there == {path for path in mounts if path.endswith(f".so.{version}")}
        assert mounts["/usr/bin/nvidia-smi"] == "/usr/lib/nvidia/current/nvidia-smi"
        for path in mounts.values():
            assert not (root / path[1:]).is_symlink()
            assert (root / path[1:]).is_file()
    hidden = {path for path in there if path.startswith(CURRENT)}
    assert {f"{CURRENT}/{name}.so.{version}" for name in BEHIND_LINKS} <= hidden
    assert {re.sub(r"\.so\..*", "", os.path.basename(path)) for path in there - hidden} >= {*PLAIN}
