"""The kernel's driver behind a device node.

The process that makes a device node chooses its name and its two numbers freely: /dev/nvidia9 can
be the memory of the machine.

Invariant: reads only. A node whose numbers belong to another driver of the kernel is never taken
for one of NVIDIA's. If the kernel does not list the driver (it is not loaded yet, or registers
another name), a major number is accepted under two conditions: no other driver has it, and the
kernel reserves it for that driver or assigns it dynamically
(Documentation/admin-guide/devices.txt).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass

from agent.host import budget
from agent.host.paths import HostRoot
from agent.options.device_classes import DEVICE_CLASSES, ClassNodes

_LINE = re.compile(r" *([0-9]{1,4}) +(\S+) *")  # the kernel has 12 bits for a major number
# Major numbers that the kernel assigns dynamically.
_DYNAMIC = frozenset((*range(234, 255), *range(384, 512)))
_MISC = 10  # shared by many small drivers; the minor number selects one

# Nodes of the driver itself: the prefix of the name in /proc/devices, and the reserved major
# number. The NVIDIA driver was called nvidia-frontend there before 550, and has more names since.
_DRIVER_NODES = (
    ClassNodes("/dev", "nvidia-uvm*", "nvidia-uvm"),
    ClassNodes("/dev/nvidia-caps", "*", "nvidia-caps"),
    ClassNodes("/dev", "nvidia*", "nvidia", 195),
    ClassNodes("/dev/dri", "*", "drm", 226),
)
_NODES = (
    *(nodes for device_class in DEVICE_CLASSES for nodes in device_class.nodes),
    *_DRIVER_NODES,
)


@dataclass(frozen=True)
class Majors:
    """Names of the drivers of character devices by major number; `misc` has those that share the
    major number 10 by minor number."""

    names: Mapping[int, tuple[str, ...]]
    misc: Mapping[int, tuple[str, ...]]

    def listed(self, prefix: str) -> str | None:
        """The first driver in the kernel's list whose name has the prefix; None if there is
        none."""
        drivers = (name for numbers in (self.names, self.misc) for names in numbers.values()
                 for name in names)  # fmt: skip
        return next((name for name in drivers if name.startswith(prefix)), None)

    def mismatch(self, node: str, major: int, minor: int) -> str | None:
        """Why the numbers of a node do not fit its path in a container; None if they may fit, or if
        the path is not one of NVIDIA's."""
        own = next((nodes for nodes in _NODES if fnmatch.fnmatchcase(node, nodes.path)), None)
        if own is None:
            return None
        names = self.misc.get(minor, ()) if major == _MISC else self.names.get(major, ())
        if any(name.startswith(own.driver) for name in names):
            return None
        may_be_dynamic = major in _DYNAMIC and self.listed(own.driver) is None
        if not names and (major == own.major or may_be_dynamic):
            return None
        owner = f"those of {names[0]}" if names else "those of no loaded driver"
        return (
            f"its numbers {major}:{minor} are {owner}, and not of {own.driver}; remove it, and "
            "let the driver's own tools (nvidia-modprobe, udev) make it"
        )


def read(host: HostRoot) -> Majors:
    """The drivers in the host's /proc/devices and /proc/misc."""
    paths = (host.proc_path("devices"), host.proc_path("misc"))
    # A name of a module can have any bytes. In ASCII none of them is a blank or a line end.
    return parsed(*(budget.text(path, encoding="ascii", errors="replace") for path in paths))


def parsed(devices: str, misc: str = "") -> Majors:
    """The drivers in the content of /proc/devices and /proc/misc."""
    return Majors(_listed(devices.partition("Block devices:")[0]), _listed(misc))


def _listed(text: str) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            number = int(match[1])
            found[number] = (*found.get(number, ()), match[2])
    return found
