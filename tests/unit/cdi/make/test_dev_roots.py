"""Each device node is taken from the driver container's dev or the host's, where it exists."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from agent.cdi.driver import kernel
from agent.cdi.make import generate
from agent.errors import NoDevices
from agent.host.paths import HostRoot
from agent.options.settings import resolve
from tests.doubles.nvml.nvml import FakeGpu, FakePart
from tests.tools.kernel import make_node
from tests.unit.support.gpu_node import MARKS, ROOT, Node, edits, names

pytestmark = MARKS

SPLIT = FakeGpu(0, mig=1, parts=(FakePart(0, 7, 0),))
CAPS = ("nvidia-caps/nvidia-cap66", "nvidia-caps/nvidia-cap67")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A driver container whose dev has only what its own scripts made; the host's has all
    (dra-driver-nvidia-gpu#787, gpu-operator#2685)."""
    found = Node(tmp_path).set(SPLIT)
    shutil.rmtree(found.root / "dev/nvidia-caps")
    (found.root / "dev/nvidia-uvm-tools").unlink()
    shutil.rmtree(tmp_path / "proc/driver/nvidia-caps")
    for name, major, minor in (
        ("nvidia0", 195, 0), ("nvidiactl", 195, 255), ("nvidia-modeset", 195, 254),
        ("nvidia-uvm", 508, 0), ("nvidia-uvm-tools", 508, 1),
        ("nvidia-caps/nvidia-cap1", 511, 1), ("nvidia-caps/nvidia-cap2", 511, 2),
        (CAPS[0], 511, 66), (CAPS[1], 511, 67),
    ):  # fmt: skip
        make_node(tmp_path / "dev" / name, major, minor)
    for name, minor in (("mig/gi7/access", 66), ("mig/gi7/ci0/access", 67)):
        path = tmp_path / "proc/driver/nvidia/capabilities/gpu0" / name
        path.parent.mkdir(parents=True)
        path.write_text(f"DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n")
    return found


def sources(part: dict[str, object]) -> dict[str, str]:
    """Host paths by the paths in a container."""
    nodes = part["deviceNodes"]
    assert isinstance(nodes, list)
    return {item["path"]: item.get("hostPath", item["path"]) for item in nodes}


# As a person has it, and as gpu-operator's validator says it.
OPTIONS = pytest.mark.parametrize(
    "options",
    [{}, {"driver_root": ROOT, "dev_root": ROOT}],
    ids=["found", "told"],
)


@OPTIONS
def test_mig_device_has_its_capabilities(options: dict[str, str], node: Node) -> None:
    """From the host's dev, and its number from the capability itself."""
    data, warnings = node.generate(**options)
    assert warnings == []
    assert sources(edits(data, "0:0")) == {
        "/dev/nvidia0": f"{ROOT}/dev/nvidia0",
        f"/dev/{CAPS[0]}": f"/dev/{CAPS[0]}",
        f"/dev/{CAPS[1]}": f"/dev/{CAPS[1]}",
    }
    common = sources(data["containerEdits"])
    assert common["/dev/nvidia-uvm-tools"] == "/dev/nvidia-uvm-tools"
    assert common["/dev/nvidiactl"] == f"{ROOT}/dev/nvidiactl"


@OPTIONS
def test_management_has_every_node(options: dict[str, str], node: Node) -> None:
    """Those to configure and to watch MIG devices too (nvidia-container-toolkit#1740), and none
    twice."""
    data, _ = node.generate("management", **options)
    found = sources(edits(data, "all"))
    assert found["/dev/nvidia-caps/nvidia-cap1"] == "/dev/nvidia-caps/nvidia-cap1"
    assert found["/dev/nvidia-caps/nvidia-cap2"] == "/dev/nvidia-caps/nvidia-cap2"
    assert found["/dev/nvidia0"] == f"{ROOT}/dev/nvidia0"
    nodes = edits(data, "all")["deviceNodes"]
    assert len({item["path"] for item in nodes}) == len(nodes) == 9


def test_missing_capability_is_told(node: Node) -> None:
    """A MIG device is never there with the node of its GPU alone."""
    (node.host / "dev" / CAPS[1]).unlink()
    with pytest.raises(NoDevices) as caught:
        node.generate()
    place = f"/dev/{os.path.dirname(CAPS[1])}"
    assert f"there is no device node /dev/{CAPS[1]} in {ROOT}{place} or {place}" in (
        caught.value.message
    )
    node.set(SPLIT, FakeGpu(1))
    shutil.rmtree(node.root / "dev/nvidia-caps")
    shutil.rmtree(node.host / "proc/driver/nvidia-caps")
    data, warnings = node.generate()
    assert names(data) == ["1", FakeGpu(1).name, "all"]
    assert warnings[0].startswith("MIG device 0:0 is not in the CDI spec: there is no device node")


def test_chosen_dev_root_counts_alone(node: Node) -> None:
    """Another one than the driver root counts alone: somebody chose it."""
    data, _ = node.generate("management", driver_root=ROOT, dev_root="/")
    assert set(sources(edits(data, "all")).values()) <= {
        f"/dev/{path.relative_to(node.host / 'dev')}" for path in (node.host / "dev").rglob("*")
    }
    shutil.rmtree(node.root / "dev")
    data, _ = node.generate("management")
    assert not any(ROOT in path for path in sources(edits(data, "all")).values())


def test_nodes_of_gpudirect_are_taken_from_both_places(node: Node) -> None:
    """GPUDirect's nodes, of which some are here and some there."""
    make_node(node.root / "dev/nvidia-fs0", 240, 0)
    make_node(node.host / "dev/nvidia-fs0", 240, 0)
    make_node(node.host / "dev/nvidia-fs1", 240, 1)
    data, _ = node.generate("gds")
    assert sources(edits(data, "all")) == {
        "/dev/nvidia-fs0": f"{ROOT}/dev/nvidia-fs0",
        "/dev/nvidia-fs1": "/dev/nvidia-fs1",
    }


def test_list_of_capabilities_comes_first(node: Node) -> None:
    """Where the kernel has one, it has all."""
    host = HostRoot(str(node.host))
    assert kernel.mig_minors(host) == {"gpu0/gi7/access": 66, "gpu0/gi7/ci0/access": 67}
    path = node.host / "proc/driver/nvidia-caps/mig-minors"
    path.parent.mkdir()
    path.write_text("config 1\nmonitor 2\ngpu0/gi7/access 70\n")
    assert kernel.mig_minors(host)["gpu0/gi7/access"] == 70


def test_both_are_watched(node: Node) -> None:
    """What comes later, in either place, makes another spec."""
    settings = resolve({}, {}, "toolkit-agent")
    found = set(generate.watch_paths(settings, HostRoot(str(node.host))))
    for root in (node.root, node.host):
        assert {f"nvidia*{root}/dev", f"{root}/dev/nvidia-caps"} <= found


def without(warnings: list[str], *names: str) -> list[str]:
    """The warnings that the spec lacks something of these names."""
    return [text for text in warnings if text.startswith("CDI specs are without")
            and all(name in text for name in names)]  # fmt: skip


def test_nodes_of_the_other_root_are_told(node: Node) -> None:
    """Another device root counts alone, and what it lacks may be of use to somebody."""
    make_node(node.root / "dev/nvidia7", 195, 7)
    _, warnings = node.generate("management", driver_root=ROOT, dev_root="/")
    assert len(without(warnings, f"{ROOT}/dev/nvidia7", "--dev-root")) == 1
    (node.root / "dev/nvidia7").unlink()
    _, warnings = node.generate("management", driver_root=ROOT, dev_root="/")
    assert without(warnings) == []
    other = node.host / "other"
    make_node(other / "dev/nvidia0", 195, 0)
    _, warnings = node.generate("management", driver_root=ROOT, dev_root="/other")
    assert len(without(warnings, "/dev/nvidia-caps/nvidia-cap1")) == 0  # four are named
    assert len(without(warnings, "/dev/nvidia-modeset", " and ", " more, ")) == 0
    assert len(without(warnings, " more", "--dev-root")) == 1


@pytest.mark.parametrize("above", ["dev", ROOT[1:] + "/dev"])
def test_nodes_that_are_left_out_are_told(node: Node, above: str) -> None:
    """All of one cause together: numbers of another driver, an owner who is not root, links."""
    dev = node.host / above
    devices = node.host / "proc/devices"
    devices.write_text("Character devices:\n  1 mem\n195 nvidia\n\nBlock devices:\n")
    make_node(dev / "nvidia5", 1, 5)
    for number in (6, 7):
        make_node(dev / f"nvidia{number}", 195, number)
        os.chown(dev / f"nvidia{number}", 1234, 0)
        (dev / f"nvidia{number + 2}").symlink_to("nvidia0")
    data, warnings = node.generate("management")
    found = set(sources(edits(data, "all")))
    assert not {f"/dev/nvidia{number}" for number in range(5, 10)} & found
    assert len(without(warnings, f"/{above}/nvidia5", "1:5")) == 1
    assert without(warnings, f"/{above}/nvidia6")
    assert without(warnings, f"/{above}/nvidia7")
    assert len(without(warnings, f"/{above}/nvidia8, /{above}/nvidia9: it is a link")) == 1
