"""The classes of devices that come with GPUs: GPUDirect, NVSwitch and IMEX channels.

Invariant: data only. One entry is all that a class needs: it is a mode of `cdi generate`, a spec
that `apply` writes where the devices exist, and device nodes whose major numbers are checked. It
lies with the options because a mode is a choice of one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassNodes:
    """Device nodes: their directory, a pattern of their names, how the name of their kernel driver
    starts in /proc/devices, and a major number that is that driver's for good."""

    directory: str
    pattern: str
    driver: str
    major: int | None = None

    @property
    def path(self) -> str:
        """The pattern of whole paths."""
        return f"{self.directory}/{self.pattern}"


@dataclass(frozen=True)
class DeviceClass:
    """A class of devices: the mode of `cdi generate` that makes its spec, its kind, its device
    nodes and the files that a container needs with them. `numbered`: each node `NAME<number>` is a
    device of that number; otherwise all nodes together are the device `all`."""

    mode: str
    kind: str
    nodes: tuple[ClassNodes, ...]
    mounts: tuple[str, ...] = ()
    numbered: bool = False


# Modes, kinds and nodes are those of NVIDIA's generator (pkg/nvcdi v1.20),
# if it has the class. Its order is kept: `imex` is the last.
DEVICE_CLASSES = (
    DeviceClass("gdrcopy", "nvidia.com/gdrcopy", (ClassNodes("/dev", "gdrdrv", "gdrdrv"),)),
    DeviceClass(
        "gds", "nvidia.com/gds", (ClassNodes("/dev", "nvidia-fs*", "nvidia-fs"),),
        ("/run/udev", "/etc/cufile.json"),
    ),
    DeviceClass(
        "mofed", "nvidia.com/mofed",
        (ClassNodes("/dev/infiniband", "uverbs*", "infiniband", 231),
         ClassNodes("/dev/infiniband", "rdma_cm", "rdma_cm")),
    ),
    DeviceClass(
        "nvswitch", "nvidia.com/nvswitch",
        (ClassNodes("/dev", "nvidia-nvswitch*", "nvidia-nvswitch"),),
    ),
    DeviceClass(
        "imex", "nvidia.com/imex-channel",
        (ClassNodes("/dev/nvidia-caps-imex-channels", "channel*", "nvidia-caps-imex"),),
        numbered=True,
    ),
)  # fmt: skip
