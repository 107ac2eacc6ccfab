"""The classes of devices besides GPUs: GPUDirect, NVSwitch and IMEX channels.

Invariant: data only. One entry is all that a class needs: it gives a mode of `cdi generate`, a spec
that `apply` writes if the devices exist, and device nodes whose major numbers are checked. The
table is among the options because the modes are choices of an option.
"""

from __future__ import annotations

from dataclasses import dataclass

GPU_KIND = "nvidia.com/gpu"  # the kind of the GPUs themselves


@dataclass(frozen=True)
class ClassNodes:
    """Device nodes: their directory and the pattern of their names. `driver` is the prefix of their
    kernel driver's name in /proc/devices; `major` is that driver's reserved major number, None if
    it has none."""

    directory: str
    pattern: str
    driver: str
    major: int | None = None

    @property
    def path(self) -> str:
        """The pattern of the nodes' paths."""
        return f"{self.directory}/{self.pattern}"


@dataclass(frozen=True)
class DeviceClass:
    """A class of devices. `mode` is the mode of `cdi generate` for its spec; `mounts` are files
    that a container needs with the devices. `numbered`: each node `NAME<number>` is a device with
    that number as its name; otherwise all nodes together are the device `all`."""

    mode: str
    kind: str
    nodes: tuple[ClassNodes, ...]
    mounts: tuple[str, ...] = ()
    numbered: bool = False


# Modes, kinds, nodes and order are those of NVIDIA's generator (pkg/nvcdi v1.20) for its classes.
# `imex` is the last.
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
