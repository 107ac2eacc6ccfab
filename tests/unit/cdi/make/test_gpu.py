"""The spec `nvidia.com/gpu`: of GPUs that a scripted NVML tells of.

Figures are those of NVIDIA's own tests (v1.20) where they have some. Differences are said where
they are. One is everywhere: device nodes here are real ones, so they have their numbers.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from agent.cdi.make import generate
from agent.cdi.make.request import EVERYTHING, Choice
from agent.errors import DevicesLost, NoDevices
from agent.host.paths import HostRoot
from agent.options.settings import resolve
from tests.doubles.nvml.nvml import LOST, FakeGpu, FakePart, place
from tests.tools.driver import make_driver, make_nodes
from tests.tools.kernel import information, make_kernel, make_node
from tests.unit.support.gpu_node import (
    HOOK,
    LIB,
    MARKS,
    OPTIONS,
    ROOT,
    Node,
    edits,
    hook,
    names,
    paths,
)

pytestmark = MARKS


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


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
def test_spec_has_what_nvidias_test_expects(small: Node, disabled: str) -> None:
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
    assert warning.startswith("GPUs are read from /proc/driver/nvidia, without MIG devices")
    assert warning.endswith(f": there is no libnvidia-ml.so.{_V}")


def test_hooks_of_the_management_spec_are_switched_off_too(node: Node) -> None:
    """By the same option; it has neither of the last two anyway."""
    data, _ = node.generate("management", disabled_hooks="update-ldcache")
    hooks = [one["args"][1] for one in data["containerEdits"]["hooks"]]
    assert hooks == ["create-symlinks", "enable-cuda-compat"]


def test_spec_has_no_hooks_without_their_binary(node: Node) -> None:
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
def test_device_is_the_same_under_each_of_its_names(
    node: Node, strategies: str, expected: list[str]
) -> None:
    """Every device under each of its names, with the same things."""
    node.set(FakeGpu(0), FakeGpu(1, mig=1, parts=(FakePart(0, 1),)))
    data, warnings = node.generate(device_name_strategies=strategies)
    assert [name.split("-")[0] for name in names(data)] == expected
    assert warnings == []
    gpus = [n for n in names(data) if n.startswith(("0", "GPU", "gpu"))]
    assert len({json.dumps(edits(data, name)) for name in gpus}) == 1


def test_each_of_eight_gpus_has_its_own_nodes(node: Node) -> None:
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


def test_links_by_address_are_named_as_a_container_has_them(node: Node) -> None:
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


def test_dangling_and_foreign_links_are_left_out(node: Node) -> None:
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


def test_mig_device_has_what_nvidias_test_expects(node: Node) -> None:
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


def test_compute_instances_share_the_capability_of_their_gpu_instance(node: Node) -> None:
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


def test_gpu_that_fell_off_is_left_out(node: Node) -> None:
    """The others stay; `all` is all that are left."""
    node.set(FakeGpu(0), FakeGpu(1, code=LOST), FakeGpu(2))
    data, (warning,) = node.generate(device_name_strategies="index")
    assert names(data) == ["0", "2", "all"]
    assert warning == "GPU 1 is not in the CDI spec: GPU is lost"


def test_reason_of_each_lost_gpu_is_told(node: Node) -> None:
    """The reason of each is told, and so it is of one that was asked for."""
    node.set(FakeGpu(0, code=LOST), FakeGpu(1, code=LOST))
    for asked in ("", "1"):
        with pytest.raises(DevicesLost) as caught:
            generate.build("nvml",
                resolve({}, {}, "toolkit-agent"), HostRoot(str(node.host)), hook=None,
                choice=Choice(ids=(asked,)) if asked else EVERYTHING,
            )  # fmt: skip
        assert "GPU 1 is not in the CDI spec: GPU is lost" in caught.value.message
        assert ("GPU 0" in caught.value.message) == (not asked)


def test_gpu_without_its_node_is_left_out(node: Node) -> None:
    """Nothing in a container could open it."""
    node.set(FakeGpu(0), FakeGpu(1))
    (node.root / "dev/nvidia1").unlink()
    data, (warning,) = node.generate(device_name_strategies="index")
    assert names(data) == ["0", "all"]
    assert warning.startswith("GPU 1 is not in the CDI spec: there is no device node /dev/nvidia1")


@pytest.mark.parametrize("what", ["capability", "node", "list"])
def test_mig_device_without_its_capability_is_left_out(node: Node, what: str) -> None:
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


def test_gpu_without_a_uuid_has_its_index_as_name(node: Node) -> None:
    """It has a name still, unless that was the only one asked for."""
    node.set(FakeGpu(0, uuid="???"), FakeGpu(1))
    assert names(node.generate()[0])[:2] == ["0", "1"]
    data, (warning,) = node.generate(device_name_strategies="uuid")
    assert names(data) == [FakeGpu(1).name, "all"]
    assert warning == "GPU 0 is not in the CDI spec: it has no UUID"


# Where things are.


def test_paths_of_the_hosts_own_driver_are_equal(tmp_path: Path) -> None:
    """Host and container paths are one, and nothing has a second one."""
    make_driver(tmp_path)
    place(tmp_path, [FakeGpu(0)])
    make_kernel(tmp_path, tmp_path, [FakeGpu(0)])
    asked = resolve({}, {}, "toolkit-agent")
    text, _ = generate.spec_text("gpu", asked, HostRoot(str(tmp_path)), hook=None)
    data = yaml.safe_load(text)
    assert paths(data, "0") == ["/dev/nvidia0", "/dev/dri/card1", "/dev/dri/renderD128"]
    assert "hostPath" not in edits(data, "0")["deviceNodes"][0]
    assert data["cdiVersion"] == "0.7.0"


def test_nodes_are_taken_from_the_device_root(node: Node) -> None:
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
