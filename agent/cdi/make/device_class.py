"""Specs of the device classes other than GPUs (`agent.options.device_classes`).

Invariant: depends on the arguments only; there is no spec if there are no devices. Entries are
those of NVIDIA's generator (pkg/nvcdi v1.20, the modes of these names).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence

from agent.cdi.driver.driver import Node
from agent.cdi.driver.root import DriverRoot
from agent.cdi.make import driver_files, transform
from agent.cdi.make.request import EVERYTHING, Choice
from agent.cdi.model import ContainerEdits, Device, DeviceNode, Mount, Spec
from agent.errors import NoDevices
from agent.options.device_classes import DEVICE_CLASSES, DeviceClass

_NUMBERED = re.compile(r"(?:0|[1-9][0-9]{0,6})")
_NUMBERS = 1 << 20  # IMEX channels at most


def watch_paths(dev: DriverRoot) -> Iterator[str]:
    """Agent paths that change with the nodes of all classes below a device root. `PREFIX*DIRECTORY`
    stands for all names with that prefix in a directory. There can be thousands of numbered nodes,
    so only their directory is watched: its time changes with its names."""
    for device_class in DEVICE_CLASSES:
        for nodes in device_class.nodes:
            directory, prefix = dev.agent_path(nodes.directory), nodes.pattern.removesuffix("*")
            yield directory if device_class.numbered else f"{prefix}*{directory}"


def spec(
    device_class: DeviceClass, nodes: Sequence[Node], roots: Sequence[DriverRoot],
    choice: Choice = EVERYTHING,
) -> Spec | None:  # fmt: skip
    """The spec of a class with these nodes; None if no node is a device of the class. Its other
    files come from the first of `roots` that has them. Raises NoDevices if `choice` has a number
    that does not exist."""
    devices: tuple[Device, ...] = ()
    if device_class.numbered:
        devices = _chosen(device_class, _numbered(device_class, nodes), choice.ids)
    elif nodes:
        mounts = tuple(mount for path in device_class.mounts for mount in _mounts(path, roots)[:1])
        edits = transform.joined(driver_files.node_edits(nodes), ContainerEdits(mounts=mounts))
        devices = (Device(transform.ALL, edits),)
    if not devices:
        return None
    common = ContainerEdits(env=(driver_files.VOID,))
    return transform.finish(Spec(device_class.kind, devices, common), with_all=choice.with_all)


def missing_numbers(device_class: DeviceClass, devs: Sequence[DriverRoot]) -> str | None:
    """Why there is no numbered node although the kernel has its driver; None if the driver is
    missing, too. For a class without numbers: None."""
    remedy = "make one (NVreg_CreateImexChannel0=1, or mknod) where containers need it"
    for nodes in device_class.nodes if device_class.numbered else ():
        for dev in devs:
            if dev.trusted_file(nodes.directory, stat.S_ISDIR):
                where = f"{dev.host_path.rstrip('/')}{nodes.directory}"
                return f"there is no {nodes.pattern} in {where}; {remedy}"
        listed = (dev.majors.listed(nodes.driver) for dev in devs)
        if driver := next((name for name in listed if name), None):
            return f"there is no {nodes.path}, although the kernel has a driver {driver}; {remedy}"
    return None


def _chosen(
    device_class: DeviceClass, devices: tuple[Device, ...], ids: Sequence[str]
) -> tuple[Device, ...]:
    if transform.ALL in ids or not devices:
        return devices
    by_number = {device.name: device for device in devices}
    name = device_class.nodes[0].pattern.removesuffix("*")
    numbers = tuple(dict.fromkeys(item.removeprefix(name) for item in ids))
    for number in numbers:
        if number not in by_number:
            raise NoDevices(
                f"cannot make a CDI spec for {device_class.kind}: there is no {name} {number} in "
                f"{device_class.nodes[0].directory}; give the number of one that is there, or all"
            )
    return tuple(by_number[number] for number in numbers)


def _mounts(path: str, roots: Sequence[DriverRoot]) -> list[Mount]:
    """The mount of a file, or of the directory of udev's data, from each root that has it."""
    is_directory = not os.path.splitext(path)[1]
    return [
        driver_files.mount(root, path)
        for root in roots
        if root.trusted_file(path, lambda mode: stat.S_ISDIR(mode) == is_directory)
    ]


def _numbered(device_class: DeviceClass, nodes: Sequence[Node]) -> tuple[Device, ...]:
    """A device for each node, with the node's number as its name. Nodes can be made again with
    another major number, so the numbers are left out and the runtime reads them from the node."""
    prefix = device_class.nodes[0].path.removesuffix("*")
    devices = []
    for node in nodes:
        number = node.inside.removeprefix(prefix)
        if _NUMBERED.fullmatch(number) and int(number) < _NUMBERS:
            device_node = DeviceNode(node.inside, node.host_path_if_other)
            devices.append(Device(number, ContainerEdits(device_nodes=(device_node,))))
    return tuple(devices)
