"""What the kernel and its driver show of GPUs, made up below a host root: /proc, /sys, /dev."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from tests.doubles.nvml.nvml import FakeGpu
from tests.tools.driver import CAPABILITIES


def make_kernel(host: Path, dev: Path, gpus: Sequence[FakeGpu]) -> None:
    """Everything for these GPUs; nodes are below `dev`, which may be a driver root."""
    entries = []
    for gpu in gpus:
        make_node(dev / f"dev/nvidia{gpu.number}", 195, gpu.number)
        information(host, gpu)
        _display(host, dev, gpu)
        for part in gpu.parts:
            instance = 100 * gpu.number + 10 * part.gi
            above = f"gpu{gpu.number}/gi{part.gi}"
            entries += [(f"{above}/access", instance),
                        (f"{above}/ci{part.ci}/access", instance + 1 + part.ci)]  # fmt: skip
    for _, minor in entries:
        make_node(dev / f"dev/nvidia-caps/nvidia-cap{minor}", CAPABILITIES, minor, 0o444)
    (host / "proc/driver/nvidia").mkdir(parents=True, exist_ok=True)  # the module is loaded
    list_no_driver(host)
    caps = host / "proc/driver/nvidia-caps"
    caps.mkdir(parents=True, exist_ok=True)
    lines = ["config 1", "monitor 2", *(f"{name} {minor}" for name, minor in entries)]
    (caps / "mig-minors").write_text("\n".join(lines) + "\n", encoding="ascii")


def list_no_driver(host: Path) -> None:
    """The kernel has given numbers to no driver of NVIDIA's, whatever this machine's has: so that
    those of made-up nodes count."""
    path = host / "proc/devices"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text("Character devices:\n  1 mem\n\nBlock devices:\n", encoding="ascii")


def information(host: Path, gpu: FakeGpu, **changed: str) -> None:
    """The driver's own file about a GPU; `changed` replaces or adds entries."""
    entries = {
        "Model": gpu.model, "IRQ": "123", "GPU UUID": gpu.name, "Video BIOS": "96.00.89.00.01",
        "Bus Type": "PCIe", "DMA Size": "52 bits", "Bus Location": gpu.bus,
        "Device Minor": str(gpu.number), "GPU Firmware": "550.54.15", "GPU Excluded": "No",
    } | {key.replace("_", " "): value for key, value in changed.items()}  # fmt: skip
    path = host / f"proc/driver/nvidia/gpus/{gpu.bus}/information"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{k + ':':<17} {v}\n" for k, v in entries.items()), encoding="ascii")


def _display(host: Path, dev: Path, gpu: FakeGpu) -> None:
    """Nodes for graphics, with links by address. The first card is the machine's own."""
    names = {"card": f"card{gpu.index + 1}", "render": f"renderD{gpu.index + 128}"}
    for number, (what, name) in enumerate(names.items()):
        (host / f"sys/bus/pci/devices/{gpu.bus}/drm/{name}").mkdir(parents=True, exist_ok=True)
        make_node(dev / f"dev/dri/{name}", 226, 128 * number + gpu.index, 0o660, 44)
        link = dev / f"dev/dri/by-path/pci-{gpu.bus}-{what}"
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(f"../{name}")


def make_node(path: Path, major: int, minor: int, mode: int = 0o666, gid: int = 0) -> None:
    """A character device."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mknod(path, stat.S_IFCHR | mode, os.makedev(major, minor))
    path.chmod(mode)
    os.chown(path, 0, gid)
