"""Which driver of the kernel a device node belongs to.

A device node is a name for two numbers, and the process that makes the node chooses both:
/dev/nvidia9 can be the memory of the machine.

Invariant: reads only. A node whose numbers the kernel has given to another driver is never taken
for one of NVIDIA's. If the kernel does not list the driver (it is not loaded yet, or registers
another name), a number counts under two conditions: no other driver has it, and the kernel gives
such numbers to that driver or to any driver (Documentation/admin-guide/devices.txt).
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from agent.host.paths import HostRoot
from agent.options.device_classes import DEVICE_CLASSES, ClassNodes

_LIMIT = 1 << 16  # bytes
_LINE = re.compile(r" *([0-9]{1,4}) +(\S+) *")  # the kernel has 12 bits for a major number
# For drivers that have no major number of their own.
_DYNAMIC = frozenset((*range(234, 255), *range(384, 512)))
_MISC = 10  # shared by many small drivers, which the minor number tells apart

# Nodes of the driver itself, how the names of their drivers start in /proc/devices, and a major
# number that is always theirs. The NVIDIA driver called itself nvidia-frontend there before 550,
# and has more names since.
_DRIVER_NODES = (
    ClassNodes("/dev", "nvidia-uvm*", "nvidia-uvm"),
    ClassNodes("/dev/nvidia-caps", "*", "nvidia-caps"),
    ClassNodes("/dev", "nvidia*", "nvidia", 195),
    ClassNodes("/dev/dri", "*", "drm", 226),
)
_NODES = (*(nodes for one in DEVICE_CLASSES for nodes in one.nodes), *_DRIVER_NODES)


@dataclass(frozen=True)
class Majors:
    """Names of the drivers of character devices, by major number; of those that share a major
    number (`misc`), by minor number."""

    names: Mapping[int, tuple[str, ...]]
    misc: Mapping[int, tuple[str, ...]]

    def listed(self, start: str) -> str | None:
        """The name of a driver in the kernel's list that starts so; None if there is none."""
        every = (name for numbers in (self.names, self.misc) for names in numbers.values()
                 for name in names)  # fmt: skip
        return next((name for name in every if name.startswith(start)), None)

    def mismatch(self, node: str, major: int, minor: int) -> str | None:
        """Why a node, by its path in a container, belongs to another driver than its name says;
        None if it may belong to it."""
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
    """The drivers that the kernel lists now."""
    return parsed(_text(host, "devices"), _text(host, "misc"))


def parsed(devices: str, misc: str = "") -> Majors:
    """The drivers in the texts of /proc/devices and /proc/misc."""
    return Majors(_listed(devices.partition("Block devices:")[0]), _listed(misc))


def _listed(text: str) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            number = int(match[1])
            found[number] = (*found.get(number, ()), match[2])
    return found


def _text(host: HostRoot, name: str) -> str:
    """A file of the host's /proc, else of our own, whose kernel is the same."""
    shown = host.agent_path(f"/proc/{name}")
    path = shown if os.path.exists(shown) else os.path.join(host.proc, name)
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(_LIMIT)
    except OSError:
        return ""
