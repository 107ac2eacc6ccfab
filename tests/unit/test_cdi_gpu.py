"""The spec `nvidia.com/gpu`: of GPUs that a scripted NVML tells of, and of the kernel's list.

Figures are those of NVIDIA's own tests (v1.20) where they have some. Differences are said where
they are. One is everywhere: device nodes here are real ones, so they have their numbers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.cdi import driver, emit, generate, gpu, pipeline, rules
from agent.cdi.driver import Driver
from agent.cdi.hooks import Hooks
from agent.cdi.inventory import Gpu, Mig
from agent.cdi.recipe import Surroundings
from agent.errors import DriverFailed, NoDevices, NoDriver
from agent.host.paths import HostRoot
from agent.settings import resolve
from tests.tools.driver import LIBRARIES, VERSION, elf, make_driver, make_nodes
from tests.tools.kernel import information, make_kernel, make_node
from tests.tools.nvml import COMPILER, LOST, NOT_LOADED, FakeGpu, FakePart, place

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root: run as root"),
    pytest.mark.skipif(COMPILER is None, reason="a C compiler makes the library: gcc"),
]

LIB = f"/{LIBRARIES}"
ROOT = "/run/nvidia/driver"
HOOK = "/usr/bin/nvidia-cdi-hook"
OPTIONS = ["ro", "nosuid", "nodev", "rbind", "rprivate"]


class Node:
    """A made-up host with a driver container, its GPUs, and NVIDIA's hook."""

    def __init__(self, host: Path) -> None:
        self.host, self.root = host, host / ROOT[1:]
        hook = host / HOOK[1:]
        hook.parent.mkdir(parents=True)
        hook.write_text("#!/bin/sh\n", encoding="ascii")
        hook.chmod(0o755)
        make_driver(self.root)
        (self.root / "dev/nvidia0").unlink()

    def set(self, *gpus: FakeGpu, extra: tuple[str, ...] = (), variant: str = "") -> Node:
        """Let these be its GPUs."""
        place(self.root, gpus, extra, variant)
        make_kernel(self.host, self.root, gpus)
        return self

    def generate(self, mode: str = "gpu", **options: str) -> tuple[dict[str, Any], list[str]]:
        """The spec as data, and warnings."""
        text, warnings = self.text(mode, "json", **options)
        data: dict[str, Any] = json.loads(text)
        return data, list(warnings)

    def text(self, mode: str, form: str, **options: str) -> tuple[str, tuple[str, ...]]:
        """What is written."""
        asked = resolve(options, {}, "toolkit-agent")
        return generate.text(mode, asked, HostRoot(str(self.host)), form)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def names(data: dict[str, Any]) -> list[str]:
    return [device["name"] for device in data["devices"]]


def edits(data: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [d["containerEdits"] for d in data["devices"] if d["name"] == name]
    return dict(found)


def paths(data: dict[str, Any], name: str) -> list[str]:
    return [one["path"] for one in edits(data, name)["deviceNodes"]]


def hook(name: str, *args: str) -> dict[str, Any]:
    return {
        "hookName": "createContainer", "path": HOOK, "args": ["nvidia-cdi-hook", name, *args],
        "env": ["NVIDIA_CTK_DEBUG=false"],
    }  # fmt: skip


def mounted(inside: str, found: str = "") -> dict[str, Any]:
    return {
        "hostPath": f"{ROOT}{found or inside}", "containerPath": inside, "options": OPTIONS,
    }  # fmt: skip


# NVIDIA's generate_test.go: one GPU, and a driver of two files that are no libraries, so that only
# the link that needs no soname is made.

_V = "999.88.77"
_SMALL = (f"{LIB[4:]}/libcuda.so.{_V}", f"{LIB[4:]}/vdpau/libvdpau_nvidia.so.{_V}")
_FOUR = {
    "create-symlinks": ("--link", f"libcuda.so.1::{LIB[4:]}/libcuda.so"),
    "enable-cuda-compat": (f"--host-driver-version={_V}",),
    "update-ldcache": ("--folder", LIB[4:], "--folder", f"{LIB[4:]}/vdpau"),
    "disable-device-node-modification": (),
    "update-application-profile": (),  # came later than the expectation in that file
}


@pytest.fixture
def small(tmp_path: Path) -> Node:
    found = Node(tmp_path)
    root = tmp_path / "small"
    for path in _SMALL:
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (root / path[1:]).touch()
    make_node(root / "dev/nvidia0", 195, 0)
    make_node(root / "dev/nvidiactl", 195, 255)
    information(tmp_path, FakeGpu(0))
    return found


@pytest.mark.parametrize(
    "disabled",
    ["", "enable-cuda-compat", "enable-cuda-compat,update-ldcache", "all", "all,chmod"],
)
def test_the_peer_s_own_figures(small: Node, disabled: str) -> None:
    """Everything that its test expects, with each set of hooks that it switches off."""
    data, warnings = small.generate(
        driver_root="/small", device_name_strategies="index", disabled_hooks=disabled
    )
    node = {"path": "/dev/nvidia0", "hostPath": "/small/dev/nvidia0", "major": 195,
            "fileMode": 0o666, "permissions": "rwm"}  # fmt: skip
    control = node | {"path": "/dev/nvidiactl", "hostPath": "/small/dev/nvidiactl", "minor": 255}
    off = disabled.split(",")
    common = {
        "env": [f"NVIDIA_CTK_LIBCUDA_DIR={LIB[4:]}", "NVIDIA_VISIBLE_DEVICES=void"],
        "deviceNodes": [control],
        "hooks": [hook(n, *args) for n, args in _FOUR.items() if not {n, "all"} & set(off)],
        "mounts": [
            {"hostPath": f"/small{p}", "containerPath": p, "options": OPTIONS} for p in _SMALL
        ],
    }
    assert data == {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": [
            {"name": "0", "containerEdits": {"deviceNodes": [node]}},
            {"name": "all", "containerEdits": {"deviceNodes": [node]}},
        ],
        "containerEdits": {key: value for key, value in common.items() if value},
    }
    (warning,) = warnings
    assert warning.startswith("GPUs are those of the kernel's list, for NVML does not tell them")
    assert warning.endswith(f": there is no libnvidia-ml.so.{_V}")


def test_hooks_of_the_management_spec_are_switched_off_too(node: Node) -> None:
    """By the same option; it has neither of the last two anyway."""
    data, _ = node.generate("management", disabled_hooks="update-ldcache")
    hooks = [one["args"][1] for one in data["containerEdits"]["hooks"]]
    assert hooks == ["create-symlinks", "enable-cuda-compat"]


def test_no_hook_binary_no_hooks(node: Node) -> None:
    """A hook whose binary is missing fails every container; who wants none is not warned."""
    (node.host / HOOK[1:]).unlink()
    data, (warning,) = node.set(FakeGpu(0)).generate()
    assert "has no hooks" in warning
    assert "hooks" not in data["containerEdits"]
    assert not [d for d in data["devices"] if "hooks" in d["containerEdits"]]
    assert node.generate(disabled_hooks="all")[1] == []


def test_bytes_are_the_same_each_time(node: Node) -> None:
    """And both forms say the same."""
    node.set(FakeGpu(0), FakeGpu(1, mig=1, parts=(FakePart(0, 1),)))
    text, warnings = node.text("gpu", "yaml")
    assert node.text("gpu", "yaml") == (text, warnings)
    assert yaml.safe_load(text) == node.generate()[0]


# Devices and their names.


@pytest.mark.parametrize(
    ("strategies", "expected"),
    [
        ("index", ["0", "1:0", "all"]),
        ("uuid", ["GPU", "MIG", "all"]),
        ("type-index", ["all", "gpu0", "mig1:0"]),
        ("index,uuid", ["0", "1:0", "GPU", "MIG", "all"]),
        ("uuid,index,type-index", ["0", "1:0", "GPU", "MIG", "all", "gpu0", "mig1:0"]),
    ],
)
def test_names(node: Node, strategies: str, expected: list[str]) -> None:
    """Every device under each of its names, with the same things."""
    node.set(FakeGpu(0), FakeGpu(1, mig=1, parts=(FakePart(0, 1),)))
    data, warnings = node.generate(device_name_strategies=strategies)
    assert [name.split("-")[0] for name in names(data)] == expected
    assert warnings == []
    gpus = [n for n in names(data) if n.startswith(("0", "GPU", "gpu"))]
    assert len({json.dumps(edits(data, name)) for name in gpus}) == 1


def test_eight_gpus(node: Node) -> None:
    """Each with its own nodes, whatever its minor number; `all` has all of them."""
    gpus = [FakeGpu(index, minor=7 - index) for index in range(8)]
    data, warnings = node.set(*gpus).generate()
    assert warnings == []
    assert len(names(data)) == 17
    for one in gpus:
        expected = [f"/dev/nvidia{one.number}", f"/dev/dri/card{one.index + 1}",
                    f"/dev/dri/renderD{one.index + 128}"]  # fmt: skip
        assert paths(data, str(one.index)) == paths(data, one.name) == expected
    assert len(paths(data, "all")) == 24
    assert len(edits(data, "all")["hooks"]) == 8


def test_control_nodes_are_for_everybody(node: Node) -> None:
    """With the group of the one that is not for everybody."""
    data, _ = node.set(FakeGpu(0)).generate()
    common = data["containerEdits"]
    assert [one["path"] for one in common["deviceNodes"]] == [
        "/dev/nvidia-modeset", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidiactl",
    ]  # fmt: skip
    assert common["additionalGids"] == [44]
    assert data["cdiVersion"] == "0.7.0"


def test_links_by_address(node: Node) -> None:
    """Named as a container has them. NVIDIA's generator puts the device root before the link's
    name, where nobody in the container looks for it."""
    one = FakeGpu(0)
    data, _ = node.set(one).generate()
    assert edits(data, "0")["hooks"] == [
        hook(
            "create-symlinks",
            "--link", f"../card1::/dev/dri/by-path/pci-{one.bus}-card",
            "--link", f"../renderD128::/dev/dri/by-path/pci-{one.bus}-render",
        )
    ]  # fmt: skip


def test_links_to_what_is_not_there(node: Node) -> None:
    """Or to a card of another GPU, are none."""
    one = FakeGpu(0)
    node.set(one)
    (node.root / "dev/dri/card1").unlink()
    link = node.root / f"dev/dri/by-path/pci-{one.bus}-render"
    link.unlink()
    link.symlink_to("../renderD129")
    data, _ = node.generate()
    assert paths(data, "0") == ["/dev/nvidia0", "/dev/dri/renderD128"]
    assert "hooks" not in edits(data, "0")


def test_mig_device_as_in_the_peer_s_test(node: Node) -> None:
    """GPU of minor 3, GPU instance 1 with capability 31, compute instance 2 with 312."""
    node.set(FakeGpu(0, minor=3, mig=1, parts=(FakePart(0, 1, 2),)))
    (node.host / "proc/driver/nvidia-caps/mig-minors").write_text(
        "config 1\nmonitor 2\ngpu3/gi1/access 31\ngpu3/gi1/ci2/access 312\n", encoding="ascii"
    )
    for minor in (31, 312):
        make_node(node.root / f"dev/nvidia-caps/nvidia-cap{minor}", 234, minor, 0o444)
    data, warnings = node.generate(device_name_strategies="index")
    assert names(data) == ["0:0", "all"]
    assert paths(data, "0:0") == [
        "/dev/nvidia3", "/dev/nvidia-caps/nvidia-cap31", "/dev/nvidia-caps/nvidia-cap312",
    ]  # fmt: skip
    assert warnings == []


def test_two_compute_instances_of_one_gpu_instance(node: Node) -> None:
    """They share its capability and have one of their own each."""
    node.set(FakeGpu(0, mig=1, parts=(FakePart(0, 1, 0), FakePart(1, 1, 1))))
    data, _ = node.generate()
    one, other = set(paths(data, "0:0")), set(paths(data, "0:1"))
    assert one & other == {"/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap10"}
    assert (len(one), len(other)) == (3, 3)


def test_mig_device_for_graphics_has_nodes_for_it(node: Node) -> None:
    """Another one has not."""
    parts = (FakePart(0, 3, profile=47), FakePart(1, 4, profile=14))
    data, _ = node.set(FakeGpu(0, mig=1, parts=parts), extra=("profile 10 47",)).generate()
    assert "/dev/dri/renderD128" in paths(data, "0:0")
    assert len(edits(data, "0:0")["hooks"]) == 1
    assert "/dev/dri/renderD128" not in paths(data, "0:1")
    assert "hooks" not in edits(data, "0:1")


def test_gpu_that_is_to_be_split_is_no_device(node: Node) -> None:
    """With none beside it, there is no spec: it would be empty."""
    node.set(FakeGpu(0, mig=1), FakeGpu(1))
    assert names(node.generate(device_name_strategies="index")[0]) == ["1", "all"]
    node.set(FakeGpu(0, mig=1))
    with pytest.raises(NoDevices, match=r"^cannot make a CDI spec for nvidia.com/gpu: there is no"):
        node.generate()


# What is left out. NVIDIA's generator fails as a whole in each of these cases, or writes a device
# with which no program can do anything.


def test_gpu_that_fell_off(node: Node) -> None:
    """The others stay; `all` is all that are left."""
    node.set(FakeGpu(0), FakeGpu(1, code=LOST), FakeGpu(2))
    data, (warning,) = node.generate(device_name_strategies="index")
    assert names(data) == ["0", "2", "all"]
    assert warning == "GPU 1 is not in the CDI spec: GPU is lost"


def test_gpu_without_its_node(node: Node) -> None:
    """Nothing in a container could open it."""
    node.set(FakeGpu(0), FakeGpu(1))
    (node.root / "dev/nvidia1").unlink()
    data, (warning,) = node.generate(device_name_strategies="index")
    assert names(data) == ["0", "all"]
    assert warning.startswith("GPU 1 is not in the CDI spec: there is no device node /dev/nvidia1")


@pytest.mark.parametrize("what", ["capability", "node", "list"])
def test_mig_device_without_its_capability(node: Node, what: str) -> None:
    """Not listed by the kernel, or without a node."""
    node.set(FakeGpu(0, mig=1, parts=(FakePart(0, 1), FakePart(1, 2))), FakeGpu(1))
    minors = node.host / "proc/driver/nvidia-caps/mig-minors"
    if what == "capability":
        text = minors.read_text("ascii")
        minors.write_text(text.replace("gpu0/gi1/ci0/access", "other"), encoding="ascii")
    elif what == "node":
        (node.root / "dev/nvidia-caps/nvidia-cap10").unlink()
    else:
        minors.unlink()
    data, warnings = node.generate(device_name_strategies="index")
    assert names(data) == (["1", "all"] if what == "list" else ["0:1", "1", "all"])
    assert warnings[0].startswith("MIG device 0:0 is not in the CDI spec: ")


def test_gpu_without_a_uuid(node: Node) -> None:
    """It has a name still, unless that was the only one asked for."""
    node.set(FakeGpu(0, uuid="???"), FakeGpu(1))
    assert names(node.generate()[0])[:2] == ["0", "1"]
    data, (warning,) = node.generate(device_name_strategies="uuid")
    assert names(data) == [FakeGpu(1).name, "all"]
    assert warning == "GPU 0 is not in the CDI spec: it has no UUID"


# Without NVML.


def test_kernel_s_list_where_nvml_does_not_answer(node: Node) -> None:
    """The same spec, with a warning that says why."""
    gpus = [FakeGpu(index, minor=7 - index) for index in range(8)]
    best, _ = node.set(*gpus).generate()
    node.set(*gpus, extra=(f"fail nvmlInitWithFlags {NOT_LOADED}",))
    data, (warning,) = node.generate()
    assert data == best
    assert warning.endswith("NVML does not tell them: Driver Not Loaded")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"GPU_Excluded": "Yes"}, None),
        ({"Model": "DGX Display"}, None),
        ({"Device_Minor": "none"}, "does not describe it"),
        ({"Bus_Location": "???"}, "does not describe it"),
        ({"Bus_Location": "0000:ff:00.0"}, "is not on the PCI bus"),
    ],
)
def test_entries_of_the_kernel_s_list(node: Node, changed: dict[str, str], why: str | None) -> None:
    """What is no GPU for us, and what makes no sense."""
    node.set(FakeGpu(0), FakeGpu(1), extra=(f"fail nvmlInitWithFlags {NOT_LOADED}",))
    information(node.host, FakeGpu(1), **changed)
    data, warnings = node.generate(device_name_strategies="index")
    assert names(data)[0] in ("0", "1")
    assert len(names(data)) == 2
    assert [why in text for text in warnings[1:] if why] == ([True] if why else [])


def test_numbers_of_the_kernel_s_list_are_nvml_s(node: Node) -> None:
    """In the order of addresses, without what was excluded at boot."""
    gpus = [FakeGpu(index, minor=index) for index in range(3)]
    node.set(*gpus, extra=(f"fail nvmlInitWithFlags {NOT_LOADED}",))
    information(node.host, gpus[0], GPU_Excluded="Yes")
    data, _ = node.generate(device_name_strategies="index")
    assert (paths(data, "0")[0], paths(data, "1")[0]) == ("/dev/nvidia1", "/dev/nvidia2")


def test_uuid_that_the_kernel_does_not_know(node: Node) -> None:
    """A GPU that nobody has used yet."""
    node.set(FakeGpu(0), extra=(f"fail nvmlInitWithFlags {NOT_LOADED}",))
    information(node.host, FakeGpu(0), GPU_UUID="GPU-????????-????-????-????-????????????")
    assert names(node.generate()[0]) == ["0", "all"]


def test_mig_needs_nvml(node: Node) -> None:
    """A GPU that is split is left out: it is no device itself, and its parts have no names."""
    node.set(FakeGpu(0), FakeGpu(1), extra=(f"fail nvmlInitWithFlags {NOT_LOADED}",))
    caps = node.host / "proc/driver/nvidia/capabilities"
    (caps / "gpu0/mig").mkdir(parents=True)
    (caps / "gpu1/mig/gi1/ci0").mkdir(parents=True)
    data, (_, warning) = node.generate(device_name_strategies="index")
    assert names(data) == ["0", "all"]
    assert warning.startswith("GPU 1 is not in the CDI spec: it is split")


# Failures.


def test_crash_and_hang_are_errors(node: Node) -> None:
    """Of another kind than a driver that is not there; and no other spec suffers."""
    node.set(FakeGpu(0), extra=("abort nvmlDeviceGetUUID",))
    with pytest.raises(DriverFailed, match=r"^cannot ask the NVIDIA driver: .* crashed") as found:
        node.generate()
    assert f"{LIB}/libnvidia-ml.so.{VERSION}" in found.value.message
    asked = resolve({}, {}, "toolkit-agent")
    management, broken = generate.wanted(asked, HostRoot(str(node.host)))
    assert (management.kind, management.problem) == ("management.nvidia.com/gpu", None)
    assert (broken.kind, broken.text) == ("nvidia.com/gpu", None)
    assert isinstance(broken.problem, DriverFailed)
    node.set(FakeGpu(0), extra=("hang nvmlInitWithFlags",))
    with pytest.raises(DriverFailed, match=r"no answer in 0\.5 s"):
        generate.gpu(asked, HostRoot(str(node.host)), timeout=0.5)


def test_nobody_tells_the_gpus(node: Node) -> None:
    """Both reasons are said."""
    node.set(extra=(f"fail nvmlInitWithFlags {NOT_LOADED}",))
    with pytest.raises(NoDevices, match=r"Driver Not Loaded; and .*lists no GPU"):
        node.generate()


def test_no_driver(tmp_path: Path) -> None:
    """As for the management spec; `wanted` says so for both."""
    asked = resolve({}, {}, "toolkit-agent")
    with pytest.raises(NoDriver):
        generate.gpu(asked, HostRoot(str(tmp_path)))
    found = generate.wanted(asked, HostRoot(str(tmp_path)))
    assert [type(one.problem) for one in found] == [NoDriver, NoDriver]


# Graphics.


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


def test_none(node: Node) -> None:
    """A driver for computing only."""
    assert graphics(node) == ([], [])


@pytest.mark.parametrize("found", [("gbm",), ("gbm", "wayland", "wayland2", "xcb", "xlib")])
def test_platforms_of_egl(node: Node, found: tuple[str, ...]) -> None:
    """They have versions of their own."""
    made = [library(node, f"libnvidia-egl-{name}.so.1.1.{n}") for n, name in enumerate(found)]
    links, mounts = graphics(node)
    assert links == []
    assert mounts == [mounted(path) for path in sorted(made)]


def test_links_for_graphics(node: Node) -> None:
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
def test_modules_of_the_x_server(node: Node, directory: str) -> None:
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
def test_configuration_for_graphics(node: Node, there: str, in_container: str) -> None:
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


def test_icd_of_this_machine(node: Node) -> None:
    """Some packages name the machine in it."""
    machine = os.uname().machine
    for name in (machine, "riscv64"):
        path = node.root / f"usr/share/vulkan/icd.d/nvidia_icd.{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    own = f"vulkan/icd.d/nvidia_icd.{machine}.json"
    assert graphics(node) == ([], [mounted(f"/etc/{own}", f"/usr/share/{own}")])


# Any number of GPUs.

_parts = st.lists(
    st.builds(Mig, st.integers(0, 6), st.uuids().map(lambda u: f"MIG-{u}"), st.integers(0, 13),
              st.integers(0, 7), st.booleans()),
    max_size=3, unique_by=(lambda p: p.index, lambda p: p.uuid),
)  # fmt: skip
_gpus = st.lists(
    st.builds(
        Gpu, st.integers(0, 15), st.just("") | st.uuids().map(lambda u: f"GPU-{u}"),
        st.integers(0, 9), st.sampled_from(["0000:1a:00.0", "0000:2a:00.0", "0000:3a:00.0"]),
        st.booleans(), _parts.map(tuple),
    ),
    min_size=1, max_size=4, unique_by=lambda gpu: gpu.index,
)  # fmt: skip
_chosen = st.lists(st.sampled_from(["index", "uuid", "type-index"]), min_size=1, unique=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A driver with ten GPUs' nodes, and some capabilities."""
    host = tmp_path_factory.mktemp("tree")
    gpus = [FakeGpu(n, mig=1, parts=(FakePart(0, n % 3),)) for n in range(10)]
    make_driver(host)
    make_kernel(host, host, gpus)
    return driver.find(HostRoot(str(host)), driver.Places())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_gpus, _chosen, st.booleans(), st.dictionaries(st.integers(0, 13), st.integers(0, 22)))
def test_any_gpus_make_a_valid_spec(
    tree: Driver, gpus: list[Gpu], chosen: list[str], hooks: bool, minors: dict[int, int]
) -> None:
    """It survives a round trip; nothing in it is without a node, and nothing goes without a word.
    Where nothing is left, there is none."""
    around = Surroundings(Hooks(HOOK if hooks else None), "6.1.0")
    known = gpu.Kernel(
        {one.bus: ("card1", "renderD128") for one in gpus},
        {
            name: minor
            for one in gpus
            for gi, minor in minors.items()
            for name in (
                f"gpu{one.minor}/gi{gi}/access",
                *(f"gpu{one.minor}/gi{gi}/ci{ci}/access" for ci in range(8)),
            )
        },
    )
    try:
        made, missing = gpu.spec(tree, around, gpus, known, chosen)
    except NoDevices:
        return
    assert rules.problems(made) == []
    assert pipeline.finish(made) == made
    assert yaml.safe_load(emit.text(made)) == json.loads(emit.text(made, "json"))
    for device in made.devices:
        first = device.container_edits.device_nodes[0].path
        assert first in {f"/dev/nvidia{one.minor}" for one in gpus}
    wanted = sum(len(one.instances) if one.mig else 1 for one in gpus)
    if len(chosen) == 1:
        assert len(made.devices) - 1 + len(missing) == wanted


# Where things are.


def test_driver_of_the_host_itself(tmp_path: Path) -> None:
    """Host and container paths are one, and nothing has a second one."""
    make_driver(tmp_path)
    place(tmp_path, [FakeGpu(0)])
    make_kernel(tmp_path, tmp_path, [FakeGpu(0)])
    asked = resolve({}, {}, "toolkit-agent")
    text, _ = generate.gpu(asked, HostRoot(str(tmp_path)))
    data = yaml.safe_load(text)
    assert paths(data, "0") == ["/dev/nvidia0", "/dev/dri/card1", "/dev/dri/renderD128"]
    assert "hostPath" not in edits(data, "0")["deviceNodes"][0]
    assert data["cdiVersion"] == "0.7.0"


def test_device_root_of_its_own(node: Node) -> None:
    """Nodes from there, also those for graphics; everything else from the driver root."""
    make_nodes(node.host / "other")
    place(node.root, [FakeGpu(0)])
    make_kernel(node.host, node.host / "other", [FakeGpu(0)])
    data, warnings = node.generate(dev_root="/other")
    assert [one["hostPath"] for one in edits(data, "0")["deviceNodes"]] == [
        "/other/dev/nvidia0", "/other/dev/dri/card1", "/other/dev/dri/renderD128",
    ]  # fmt: skip
    assert {m["hostPath"].startswith(ROOT) for m in data["containerEdits"]["mounts"]} == {True}
    assert warnings == []
