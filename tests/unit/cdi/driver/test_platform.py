"""WSL2 and Tegra are told from data centers' machines, with the mode that fits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.cdi.driver import driver, platform
from agent.errors import NoDriver
from agent.host.paths import HostRoot
from agent.options.settings import resolve
from tests.tools.driver import make_driver, make_nodes
from tests.tools.kernel import make_node

_DEFAULTS = resolve({}, {}, "toolkit-agent")

needs_nodes = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root: run as root")


@needs_nodes
@pytest.mark.parametrize("linux", [False, True], ids=["alone", "beside a Linux driver"])
def test_wsl_is_named_with_its_mode(linux: bool, tmp_path: Path) -> None:
    """A Linux driver's package misleads nobody (nvidia-container-toolkit#1739, #452)."""
    make_node(tmp_path / "dev/dxg", 10, 125)
    if linux:
        make_driver(tmp_path, nodes=False)
    with pytest.raises(NoDriver) as caught:
        driver.find(HostRoot(str(tmp_path)), _DEFAULTS)
    said = caught.value.message
    assert said.startswith("cannot make a CDI spec: this is WSL2 (/dev/dxg), which has no driver")
    assert "give --mode=wsl, which makes nvidia.com/gpu" in said
    assert "kernel module" not in said
    assert "modprobe" not in said


@needs_nodes
def test_gpu_handed_through_to_wsl_is_a_usual_one(tmp_path: Path) -> None:
    """With device nodes of the Linux driver it is a node like any other."""
    make_node(tmp_path / "dev/dxg", 10, 125)
    make_driver(tmp_path)
    make_nodes(tmp_path)
    assert driver.find(HostRoot(str(tmp_path)), _DEFAULTS).nodes


@pytest.mark.parametrize(
    ("path", "text"),
    [("etc/nv_tegra_release", "# R36 (release), REVISION: 4.0"),
     ("sys/devices/soc0/family", "Tegra\n")],
)  # fmt: skip
def test_tegra_is_named_with_its_mode(path: str, text: str, tmp_path: Path) -> None:
    """Its devices are listed in files of its own."""
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    with pytest.raises(NoDriver, match=r"a Tegra system \(/.*; give --mode=csv"):
        driver.find(HostRoot(str(tmp_path)), _DEFAULTS)


def test_other_machines_are_neither_wsl_nor_tegra(tmp_path: Path) -> None:
    """A file is no device, and another machine has a family too."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/dxg").touch()
    (tmp_path / "sys/devices/soc0").mkdir(parents=True)
    (tmp_path / "sys/devices/soc0/family").write_text("Snapdragon")
    platform.refuse_other(HostRoot(str(tmp_path)))
    with pytest.raises(NoDriver, match="there is no NVIDIA driver"):
        driver.find(HostRoot(str(tmp_path)), _DEFAULTS)
