"""Files for EGL, Vulkan, OpenCL and X are found. Figures are from NVIDIA's own tests (v1.20)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.nvml.nvml import FakeGpu
from tests.tools.driver import VERSION, elf
from tests.unit.support.gpu_node import LIB, MARKS, Node, mounted

pytestmark = MARKS


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def library(node: Node, name: str) -> str:
    path = f"{LIB}/{name}"
    (node.root / path[1:]).write_bytes(elf(name.partition(".so")[0] + ".so.1"))
    return path


def graphics(node: Node) -> tuple[list[str], list[dict[str, Any]]]:
    """Links of the hook for graphics, and what is mounted beside what every driver has."""
    data, _ = node.set(FakeGpu(0)).generate()
    common = data["containerEdits"]
    plain, _ = node.generate("management")
    known = plain["containerEdits"]["mounts"]
    links = [one["args"][3::2] for one in common["hooks"] if one["args"][1] == "create-symlinks"]
    return links[0] if len(links) > 1 else [], [m for m in common["mounts"] if m not in known]


def test_driver_for_computing_has_no_graphics_files(node: Node) -> None:
    """A driver for computing only."""
    assert graphics(node) == ([], [])


@pytest.mark.parametrize("found", [("gbm",), ("gbm", "wayland", "wayland2", "xcb", "xlib")])
def test_platforms_of_egl_have_versions_of_their_own(node: Node, found: tuple[str, ...]) -> None:
    """They have versions of their own."""
    made = [library(node, f"libnvidia-egl-{name}.so.1.1.{n}") for n, name in enumerate(found)]
    links, mounts = graphics(node)
    assert links == []
    assert mounts == [mounted(path) for path in sorted(made)]


def test_links_for_graphics_are_in_the_peers_order(node: Node) -> None:
    """In the peer's order; the allocator and the producer are mounted with the driver's libraries
    once, so nothing comes on top."""
    library(node, f"libnvidia-vulkan-producer.so.{VERSION}")
    assert graphics(node)[0] == [
        f"libnvidia-vulkan-producer.so.{VERSION}::{LIB}/libnvidia-vulkan-producer.so"
    ]
    library(node, f"libnvidia-allocator.so.{VERSION}")
    links, mounts = graphics(node)
    assert links == [
        f"../libnvidia-allocator.so.1::{LIB}/gbm/nvidia-drm_gbm.so",
        f"libnvidia-vulkan-producer.so.{VERSION}::{LIB}/libnvidia-vulkan-producer.so",
    ]
    assert mounts == []


@pytest.mark.parametrize(
    "directory",
    [f"{LIB}/nvidia/xorg", f"{LIB}/xorg/modules/updates/extensions",
     "/usr/lib/xorg/modules/drivers",
     "/usr/lib64/xorg/modules/extensions", "/usr/X11R6/lib64/modules/drivers"],
)  # fmt: skip
def test_modules_of_the_x_server_are_taken_from_the_first_place(node: Node, directory: str) -> None:
    """The first place that has them."""
    for place_ in (directory, "/usr/X11R6/lib64/modules/updates/extensions"):
        (node.root / place_[1:]).mkdir(parents=True)
        for name in ("nvidia_drv.so", f"libglxserver_nvidia.so.{VERSION}"):
            (node.root / place_[1:] / name).touch()
    links, mounts = graphics(node)
    server = f"libglxserver_nvidia.so.{VERSION}"
    assert links == [f"{server}::{directory}/libglxserver_nvidia.so"]
    assert mounts == [mounted(f"{directory}/{n}") for n in sorted((server, "nvidia_drv.so"))]


@pytest.mark.parametrize(
    ("there", "in_container"),
    [
        ("/etc/glvnd/egl_vendor.d/10_nvidia.json", "/usr/share/glvnd/egl_vendor.d/10_nvidia.json"),
        ("/usr/local/share/nvidia/nvoptix.bin", "/usr/share/nvidia/nvoptix.bin"),
        ("/usr/share/X11/xorg.conf.d/10-nvidia.conf", "/usr/share/X11/xorg.conf.d/10-nvidia.conf"),
        ("/usr/share/OpenCL/vendors/nvidia.icd", "/etc/OpenCL/vendors/nvidia.icd"),
        ("/usr/share/vulkan/icd.d/nvidia_icd.json", "/etc/vulkan/icd.d/nvidia_icd.json"),
        ("/vulkan/implicit_layer.d/nvidia_layers.json",
         "/etc/vulkan/implicit_layer.d/nvidia_layers.json"),
    ],
)  # fmt: skip
def test_configuration_for_graphics_is_mounted_where_programs_look(
    node: Node, there: str, in_container: str
) -> None:
    """A container has it where programs look for it, wherever it is here."""
    path = node.root / there[1:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert graphics(node) == ([], [mounted(in_container, there)])


def test_second_place_of_a_file_does_not_count(node: Node) -> None:
    """One file for one name."""
    for above in ("etc", "usr/share"):
        path = node.root / above / "vulkan/icd.d/nvidia_icd.json"
        path.parent.mkdir(parents=True)
        path.touch()
    name = "/etc/vulkan/icd.d/nvidia_icd.json"
    assert graphics(node) == ([], [mounted(name)])


def test_icd_that_names_the_machine_is_found(node: Node) -> None:
    """Some packages name the machine in it."""
    machine = os.uname().machine
    for name in (machine, "riscv64"):
        path = node.root / f"usr/share/vulkan/icd.d/nvidia_icd.{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    own = f"vulkan/icd.d/nvidia_icd.{machine}.json"
    assert graphics(node) == ([], [mounted(f"/etc/{own}", f"/usr/share/{own}")])
