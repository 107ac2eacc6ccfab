"""Specs of what comes with GPUs: GPUDirect (gdrcopy, gds, mofed), NVSwitch and IMEX channels.

Invariant: pure in what was found, and none where its devices are not there. Entries are those of
NVIDIA's generator (pkg/nvcdi v1.20, modes of these names).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.cdi.driver.driver import Node
from agent.cdi.driver.root import DriverRoot
from agent.cdi.make import driver_edits, transform
from agent.cdi.make.choice import EVERYTHING, Choice
from agent.cdi.model import ContainerEdits, Device, DeviceNode, Mount, Spec
from agent.errors import NoDevices

_CHANNEL = re.compile(r"/dev/nvidia-caps-imex-channels/channel(0|[1-9][0-9]{0,6})")
_CHANNELS = 1 << 20
_IMEX = "nvidia-caps-imex-channels"  # in /proc/devices


@dataclass(frozen=True, slots=True)
class Class:
    """A class of devices: its kind, where its nodes are, as (directory, pattern), and what else a
    container needs with them."""

    kind: str
    nodes: tuple[tuple[str, str], ...]
    mounts: tuple[str, ...] = ()


# By the mode of `cdi generate` that makes the spec.
CLASSES: Mapping[str, Class] = {
    "gdrcopy": Class("nvidia.com/gdrcopy", (("/dev", "gdrdrv"),)),
    "gds": Class("nvidia.com/gds", (("/dev", "nvidia-fs*"),), ("/run/udev", "/etc/cufile.json")),
    "mofed": Class(
        "nvidia.com/mofed", (("/dev/infiniband", "uverbs*"), ("/dev/infiniband", "rdma_cm"))
    ),
    "nvswitch": Class("nvidia.com/nvswitch", (("/dev", "nvidia-nvswitch*"),)),
    "imex": Class("nvidia.com/imex-channel", (("/dev/nvidia-caps-imex-channels", "channel*"),)),
}


def watched(dev: DriverRoot) -> Iterator[str]:
    """Agent paths of all nodes below a device root, as entries `PREFIX*DIRECTORY`. Of channels,
    of which there can be thousands, the directory: its time changes with its names."""
    for which in CLASSES.values():
        for directory, pattern in which.nodes:
            path = dev.agent_path(directory)
            yield path if pattern == "channel*" else f"{pattern.removesuffix('*')}*{path}"


def spec(
    mode: str, nodes: Sequence[Node], roots: Sequence[DriverRoot], choice: Choice = EVERYTHING
) -> Spec | None:
    """The spec of a class that has these nodes, None for none; what else it needs is looked for in
    `roots`, in this order. Raises NoDevices where a channel of the choice is not there."""
    which = CLASSES[mode]
    devices = _channels(nodes) if mode == "imex" else _one(which, nodes, roots)
    if not nodes or not devices:
        return None
    if mode == "imex":
        devices = _chosen(devices, choice.ids)
    common = ContainerEdits(env=(driver_edits.VOID,))
    return transform.finish(Spec(which.kind, devices, common), merged=choice.merged)


def no_channel(devs: Sequence[DriverRoot]) -> str | None:
    """Why there is no IMEX channel where the driver could have some; None where it could not."""
    [(directory, pattern)] = CLASSES["imex"].nodes
    remedy = "make one (NVreg_CreateImexChannel0=1, or mknod) where containers need it"
    for dev in devs:
        if dev.take(directory, stat.S_ISDIR):
            return f"there is no {pattern} in {dev.host_path.rstrip('/')}{directory}; {remedy}"
    for dev in devs:
        if dev.majors.has(_IMEX):
            return (
                f"there is no {directory}/{pattern}, although the kernel has a driver "
                f"{_IMEX}; {remedy}"
            )
    return None


def _chosen(channels: tuple[Device, ...], ids: Sequence[str]) -> tuple[Device, ...]:
    if transform.ALL in ids:
        return channels
    there = {channel.name: channel for channel in channels}
    numbers = dict.fromkeys(wanted.removeprefix("channel") for wanted in ids)
    for number in numbers:
        if number not in there:
            raise NoDevices(
                f"cannot make a CDI spec for {CLASSES['imex'].kind}: there is no channel {number} "
                "in /dev/nvidia-caps-imex-channels; give the number of one that is there, or all"
            )
    return tuple(there[number] for number in numbers)


def _one(which: Class, nodes: Sequence[Node], roots: Sequence[DriverRoot]) -> tuple[Device, ...]:
    mounts = tuple(mount for path in which.mounts for mount in _mounts(path, roots)[:1])
    edits = transform.joined(driver_edits.node_edits(nodes), ContainerEdits(mounts=mounts))
    return (Device(transform.ALL, edits),)


def _mounts(path: str, roots: Sequence[DriverRoot]) -> tuple[Mount, ...]:
    """A file, or the directory of udev's data, from the first root that has it."""
    directory = not os.path.splitext(path)[1]
    return tuple(
        driver_edits.mount(root, path)
        for root in roots
        if root.take(path, lambda mode: stat.S_ISDIR(mode) == directory)
    )


def _channels(nodes: Sequence[Node]) -> tuple[Device, ...]:
    """A device for each channel, by its number. They come and go, with numbers of their own, so
    the runtime looks at the node itself."""
    return tuple(
        Device(match[1], ContainerEdits(device_nodes=(_plain(node),)))
        for node in nodes
        if (match := _CHANNEL.fullmatch(node.inside)) and int(match[1]) < _CHANNELS
    )


def _plain(node: Node) -> DeviceNode:
    return DeviceNode(node.inside, "" if node.host_path == node.inside else node.host_path)
