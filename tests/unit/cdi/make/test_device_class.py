"""Devices beside the GPUs have specs of their own. Figures are NVIDIA's own tests' (v1.20)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.cdi.make import generate
from agent.errors import DevicesLost, NoDevices
from agent.host.paths import HostRoot
from agent.options.device_classes import DEVICE_CLASSES
from agent.options.settings import resolve
from tests.tools.kernel import list_no_driver, make_node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root: run as root")

VOID = {"env": ["NVIDIA_VISIBLE_DEVICES=void"]}
# Mode: (kind, nodes that belong to it)
CASES = {
    "gdrcopy": ("nvidia.com/gdrcopy", ["gdrdrv"]),
    "gds": ("nvidia.com/gds", ["nvidia-fs0", "nvidia-fs1"]),
    "mofed": ("nvidia.com/mofed", ["infiniband/rdma_cm", "infiniband/uverbs0"]),
    "nvswitch": ("nvidia.com/nvswitch", ["nvidia-nvswitch0", "nvidia-nvswitchctl"]),
}
ODD = ("nvidia0", "infiniband/umad0")


def make(root: Path, *names: str) -> None:
    list_no_driver(root)
    for number, name in enumerate(names):
        make_node(root / "dev" / name, 240, number)


def spec(mode: str, host: Path, **options: str) -> dict[str, Any]:
    settings = resolve(options, {}, "toolkit-agent")
    text, warnings = generate.spec_text(mode, settings, HostRoot(str(host)), hook=None)
    assert warnings == ()
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def node(name: str, number: int, root: str = "") -> dict[str, Any]:
    found = {"path": f"/dev/{name}", "hostPath": f"{root}/dev/{name}", "major": 240,
             "minor": number, "fileMode": 0o666, "permissions": "rwm"}  # fmt: skip
    return {
        key: value for key, value in found.items() if value != 0 and (root or key != "hostPath")
    }


@pytest.mark.parametrize("mode", CASES)
def test_one_device_has_every_node(tmp_path: Path, mode: str) -> None:
    """And the variable that all specs have. The peer's CLI calls the class `gpu` unless it is told
    otherwise; its library, its installer and everybody's pods call it as here."""
    kind, names = CASES[mode]
    make(tmp_path, *names, *ODD)
    assert spec(mode, tmp_path) == {
        "cdiVersion": "0.3.0",
        "kind": kind,
        "devices": [{
            "name": "all",
            "containerEdits": {"deviceNodes": [node(n, i) for i, n in enumerate(names)]},
        }],
        "containerEdits": VOID,
    }  # fmt: skip


@pytest.mark.parametrize("mode", [*CASES, "imex"])
def test_no_devices_make_no_spec(tmp_path: Path, mode: str) -> None:
    """NVIDIA's generator fails when it writes the empty device; desired specs lack it."""
    make(tmp_path, *ODD)
    with pytest.raises(NoDevices, match=r"^cannot make a CDI spec for nvidia.com/.*: there is no"):
        spec(mode, tmp_path)
    found = generate.desired_specs(
        "nvml", resolve({}, {}, "toolkit-agent"), HostRoot(str(tmp_path)), None
    )
    assert [one.kind for one in found] == ["management.nvidia.com/gpu", "nvidia.com/gpu"]


IMEX = "nvidia-caps-imex-channels"


@pytest.mark.parametrize(
    ("major", "node", "says"),
    [(f"234 {IMEX}\n", "", f"/dev/{IMEX}/channel*, although the kernel has a driver {IMEX};"),
     ("", f"{IMEX}/channelx", f"channel* in /dev/{IMEX};")],
)  # fmt: skip
def test_imex_without_a_channel_is_a_problem_of_its_kind(
    tmp_path: Path, major: str, node: str, says: str
) -> None:
    """The kernel has a major number for channels and nobody made one, or their directory is there
    with none in it: told as a problem of that kind alone."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/devices").write_text(f"Character devices:\n{major}\nBlock devices:\n")
    make(tmp_path, *ODD, *([node] if node else []))
    found = generate.desired_specs(
        "nvml", resolve({}, {}, "toolkit-agent"), HostRoot(str(tmp_path)), None
    )
    assert [one.kind for one in found][2:] == ["nvidia.com/imex-channel"]
    assert isinstance(found[2].problem, DevicesLost)
    assert f"there is no {says}" in found[2].problem.message


def test_gds_brings_its_files_along(tmp_path: Path) -> None:
    """udev's data as a directory, and the configuration; what is of another kind is not it."""
    make(tmp_path, "nvidia-fs0")
    (tmp_path / "run/udev").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/cufile.json").touch()
    mounts = spec("gds", tmp_path)["devices"][0]["containerEdits"]["mounts"]
    options = ["ro", "nosuid", "nodev", "rbind", "rprivate"]
    assert mounts == [
        {"hostPath": path, "containerPath": path, "options": options}
        for path in ("/etc/cufile.json", "/run/udev")
    ]
    (tmp_path / "run/udev").rmdir()
    (tmp_path / "run/udev").touch()
    mounts = spec("gds", tmp_path)["devices"][0]["containerEdits"]["mounts"]
    assert [mount["containerPath"] for mount in mounts] == ["/etc/cufile.json"]


def test_gds_takes_configuration_and_udev_from_their_roots(tmp_path: Path) -> None:
    """Its own configuration counts, and udev is the host's: the peer looks for both in the driver
    root only, where no udev runs."""
    root = tmp_path / "run/nvidia/driver"
    make(root, "nvidia-fs0")
    (tmp_path / "run/udev").mkdir(parents=True)
    for above in (root, tmp_path):
        (above / "etc").mkdir(parents=True)
        (above / "etc/cufile.json").touch()
    device = spec("gds", tmp_path)["devices"][0]["containerEdits"]
    assert device["deviceNodes"] == [node("nvidia-fs0", 0, "/run/nvidia/driver")]
    assert [mount["hostPath"] for mount in device["mounts"]] == [
        "/run/nvidia/driver/etc/cufile.json",
        "/run/udev",
    ]


def test_nodes_of_the_host_are_found_beside_a_driver_container(tmp_path: Path) -> None:
    """Most driver containers know nothing of a network's nodes."""
    make(tmp_path / "run/nvidia/driver", "nvidia0")
    make(tmp_path, "infiniband/uverbs0")
    device = spec("mofed", tmp_path)["devices"][0]["containerEdits"]
    assert device["deviceNodes"] == [node("infiniband/uverbs0", 0)]


def test_each_imex_channel_is_a_device(tmp_path: Path) -> None:
    """A device each, by its number, and `all`; without numbers, as the peer has them."""
    root = tmp_path / "driver"
    names = [f"nvidia-caps-imex-channels/channel{n}" for n in (0, 1, 2047)]
    bad = [f"nvidia-caps-imex-channels/channel{n}" for n in ("01", "1048576", "x", "")]
    make(root, *names, *bad)
    found = spec("imex", tmp_path, driver_root="/driver")
    nodes = [{"path": f"/dev/{n}", "hostPath": f"/driver/dev/{n}"} for n in names]
    devices = [
        {"name": name, "containerEdits": {"deviceNodes": [one]}}
        for name, one in zip(("0", "1", "2047"), nodes, strict=True)
    ]
    every = {"name": "all", "containerEdits": {"deviceNodes": nodes}}
    assert found == {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/imex-channel",
        "devices": [*devices, every],
        "containerEdits": VOID,
    }


def test_wanted_specs_are_those_with_devices(tmp_path: Path) -> None:
    """Those whose devices are there."""
    make(tmp_path, *(name for _, names in CASES.values() for name in names))
    found = generate.desired_specs(
        "nvml", resolve({}, {}, "toolkit-agent"), HostRoot(str(tmp_path)), None
    )
    assert [one.kind for one in found][2:] == [kind for kind, _ in CASES.values()]
    assert all(one.text and one.problem is None and one.warnings == () for one in found[2:])
    assert [*CASES, "imex"] == [one.mode for one in DEVICE_CLASSES]


_MADE_UP = """
import sys
from agent.options import device_classes
from agent.options.device_classes import ClassNodes, DeviceClass
device_classes.DEVICE_CLASSES += (
    DeviceClass("fpga", "example.com/fpga", (ClassNodes("/dev/fpga", "port*", "fpga"),)),
)
from agent.cdi.driver import driver, majors
from agent.cdi.make import generate
from agent.host.paths import HostRoot
from agent.options.cdi import MODES
from agent.options.settings import resolve
host, settings = HostRoot(sys.argv[1]), resolve({}, {}, "toolkit-agent")
assert "fpga" in MODES
print(generate.spec_text("fpga", settings, host, hook=None)[0])
kinds = [one.kind for one in generate.desired_specs("nvml", settings, host, None)]
assert kinds[-1] == "example.com/fpga", kinds
assert f"port*{host.agent_path('/dev/fpga')}" in set(generate.watch_paths(settings, host))
assert majors.Majors({240: ("other",)}, {}).mismatch("/dev/fpga/port0", 240, 0)
"""


def test_new_class_is_one_entry(tmp_path: Path) -> None:
    """A class that is added to the table is a mode, a spec of the node, watched and judged."""
    make(tmp_path, "fpga/port0", "fpga/other")
    done = subprocess.run(
        [sys.executable, "-c", _MADE_UP, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)
    assert found["kind"] == "example.com/fpga"
    (device,) = found["devices"]
    assert [node["path"] for node in device["containerEdits"]["deviceNodes"]] == ["/dev/fpga/port0"]
