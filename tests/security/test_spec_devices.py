"""A device node under a false name does not enter a CDI spec.

The attacker is root in a driver container, or could make a node on the host once. He calls the
machine's memory (1:1), a terminal or another driver's device by a name of NVIDIA's. In a spec it
would be given, with all rights, to every container that asks for a GPU.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agent.cdi.driver import majors
from agent.cdi.driver.majors import Majors
from agent.cdi.make import generate
from agent.errors import NoDevices, NoDriver
from agent.host.paths import HostRoot
from agent.options.settings import resolve
from tests.doubles.nvml.nvml import FakeGpu
from tests.tools.driver import make_driver
from tests.tools.kernel import make_kernel, make_node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make device nodes")

# A node with driver 550, and what every kernel has.
DEVICES = """Character devices:
  1 mem
  4 /dev/vc/0
  4 tty
  5 /dev/tty
 10 misc
 13 input
195 nvidia
195 nvidia-modeset
195 nvidiactl
226 drm
231 infiniband_verbs
234 nvidia-caps
235 nvidia-caps-imex-channels
236 nvidia-nvswitch
237 nvidia-nvlink
238 nvidia-fs
239 gdrdrv
240 watchdog
508 nvidia-uvm

Block devices:
  8 sd
253 device-mapper
"""
MISC = " 57 rdma_cm\n232 kvm\n"
MEMORY, TERMINAL, KVM, WATCHDOG, NOBODYS = (1, 1), (5, 1), (10, 232), (240, 0), (241, 0)
RIGHT = {
    "nvidia0": (195, 0), "nvidia-uvm": (508, 0), "nvidia-caps/nvidia-cap1": (234, 1),
    "dri/card1": (226, 0), "gdrdrv": (239, 0), "nvidia-fs0": (238, 0),
    "infiniband/uverbs0": (231, 192), "infiniband/rdma_cm": (10, 57),
    "nvidia-nvswitch0": (236, 0), "nvidia-caps-imex-channels/channel0": (235, 0),
}  # fmt: skip
MODES = {
    "dri/card1": "gpu", "gdrdrv": "gdrcopy", "nvidia-fs0": "gds", "infiniband/uverbs0": "mofed",
    "infiniband/rdma_cm": "mofed", "nvidia-nvswitch0": "nvswitch",
    "nvidia-caps-imex-channels/channel0": "imex",
}  # fmt: skip


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host on which all of NVIDIA's drivers are loaded."""
    make_driver(tmp_path)
    make_kernel(tmp_path, tmp_path, [FakeGpu(0)])
    (tmp_path / "proc/devices").write_text(DEVICES)
    (tmp_path / "proc/misc").write_text(MISC)
    for name, numbers in RIGHT.items():
        make_node(tmp_path / "dev" / name, *numbers)
    return tmp_path


def nodes(host: Path, mode: str) -> tuple[dict[str, tuple[int, int]], str]:
    """Device nodes of a spec with their numbers, and warnings."""
    settings = resolve({}, {}, "toolkit-agent")
    try:
        text, warnings = generate.spec_text(mode, settings, HostRoot(str(host)), "json", hook=None)
    except (NoDriver, NoDevices) as error:
        return {}, error.message
    data = json.loads(text)
    edits = [data["containerEdits"], *(one["containerEdits"] for one in data["devices"])]
    found = {
        node["path"]: (node.get("major", 0), node.get("minor", 0))
        for one in edits
        for node in one.get("deviceNodes", ())
    }
    return found, "\n".join(warnings)


@pytest.mark.parametrize("numbers", [MEMORY, TERMINAL, KVM, WATCHDOG, NOBODYS])
@pytest.mark.parametrize("name", RIGHT)
def test_false_device_node_is_left_out_with_a_warning(
    host: Path, name: str, numbers: tuple[int, int]
) -> None:
    """Under the name of each of NVIDIA's drivers; the warning says whose it is and what to do."""
    mode = MODES.get(name, "management")
    assert f"/dev/{name}" in nodes(host, mode)[0]
    make_node(host / "dev" / name, *numbers)
    found, warnings = nodes(host, mode)
    assert f"/dev/{name}" not in found
    assert numbers not in found.values()
    assert f"its numbers {numbers[0]}:{numbers[1]} are those of " in warnings
    assert f"/dev/{name}" in warnings


@pytest.mark.parametrize("name", ["nvidia9", "nvidia-x", "nvidia", "nvidia-uvm-x"])
@pytest.mark.parametrize("where", ["", "run/nvidia/driver"])
def test_additional_device_node_is_left_out(host: Path, name: str, where: str) -> None:
    """A name that NVIDIA's pattern takes along, in the host's /dev or in a driver container's."""
    if where:
        make_driver(host / where)
    make_node(host / where / "dev" / name, *MEMORY)
    found, warnings = nodes(host, "management")
    assert "/dev/nvidia0" in found
    assert f"/dev/{name}" not in found
    assert "are those of mem, and not of nvidia" in warnings


def test_false_node_does_not_hide_the_true_one(host: Path) -> None:
    """The driver container's comes first, and is not the driver's: the host's is taken."""
    make_driver(host / "run/nvidia/driver")
    make_node(host / "run/nvidia/driver/dev/nvidia0", *MEMORY)
    assert nodes(host, "management")[0]["/dev/nvidia0"] == (195, 0)


def test_node_of_a_module_that_is_not_loaded_is_left_out(host: Path) -> None:
    """nvidia-uvm is loaded late: until then its node has a number that nobody has."""
    text = DEVICES.replace("508 nvidia-uvm\n", "")
    (host / "proc/devices").write_text(text)
    assert nodes(host, "management")[0]["/dev/nvidia-uvm"] == (508, 0)
    (host / "proc/devices").write_text(text.replace("240 watchdog", "508 watchdog"))
    assert "/dev/nvidia-uvm" not in nodes(host, "management")[0]


def test_older_name_of_the_driver_is_accepted_alone(host: Path) -> None:
    """Before 550 it called itself nvidia-frontend, and was alone with that."""
    text = DEVICES.replace("195 nvidia\n", "195 nvidia-frontend\n")
    (host / "proc/devices").write_text(text.replace("195 nvidia-modeset\n195 nvidiactl\n", ""))
    assert {"/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-modeset"} <= set(
        nodes(host, "management")[0]
    )


def test_nothing_is_listed() -> None:
    """Without /proc/devices: numbers that the kernel gives to somebody for good are not NVIDIA's,
    but for the driver's own."""
    fixed = {*range(1, 234), *range(255, 384), 512, 4095}
    for node, own in (("nvidia0", {195}), ("dri/card0", {226}), ("gdrdrv", set())):
        taken = {major for major in fixed if not Majors({}, {}).mismatch(f"/dev/{node}", major, 0)}
        assert taken == own, node


@pytest.mark.parametrize("text", ["", "x", "1 \n2", "99999 mem", "Block devices:\n 195 nvidia\n"])
def test_senseless_device_list_has_no_entries(tmp_path: Path, text: str) -> None:
    """It lists nothing."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/devices").write_text(text)
    assert majors.read(HostRoot(str(tmp_path))) == Majors({}, {})
