"""Which driver of the kernel a device node belongs to.

A node is a name for two numbers, and whoever may make nodes chooses both: /dev/nvidia9 can be the
memory of the machine.

Invariant: reads only. A node whose numbers the kernel has given to another driver is never taken
for one of NVIDIA's. Where the kernel lists none of that driver (it is not loaded yet, or registers
another name), a number counts only where no other driver has it, and where the kernel gives such
numbers to it, or to anybody (Documentation/admin-guide/devices.txt).
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from agent.host.paths import HostRoot

_LIMIT = 1 << 16  # bytes
_LINE = re.compile(r" *([0-9]{1,4}) +(\S+) *")  # the kernel has 12 bits for a major number
# For drivers that have no number of their own.
_DYNAMIC = frozenset((*range(234, 255), *range(384, 512)))
_MISC = 10  # one driver for many small ones, told apart by the minor number

# Nodes, how the names of their drivers start in /proc/devices, and a number that is theirs for
# good. The NVIDIA driver called itself nvidia-frontend there before 550, and has more names since.
_OWN = (
    ("/dev/nvidia-uvm*", "nvidia-uvm", None),
    ("/dev/nvidia-caps/*", "nvidia-caps", None),
    ("/dev/nvidia-caps-imex-channels/*", "nvidia-caps-imex", None),
    ("/dev/nvidia-fs*", "nvidia-fs", None),
    ("/dev/nvidia-nvswitch*", "nvidia-nvswitch", None),
    ("/dev/nvidia*", "nvidia", 195),
    ("/dev/gdrdrv", "gdrdrv", None),
    ("/dev/dri/*", "drm", 226),
    ("/dev/infiniband/uverbs*", "infiniband", 231),
    ("/dev/infiniband/rdma_cm", "rdma_cm", None),
)


@dataclass(frozen=True, slots=True)
class Majors:
    """Drivers of character devices: names by major number, and of the small ones by minor."""

    names: Mapping[int, tuple[str, ...]]
    misc: Mapping[int, tuple[str, ...]]

    def has(self, name: str) -> bool:
        """Does the kernel list a driver of that name?"""
        return any(name in names for names in self.names.values())

    def foreign(self, node: str, major: int, minor: int) -> str | None:
        """Why a node, by its name in a container, is not of the driver that it is named after;
        None where it may be."""
        own = next(((start, fixed) for pattern, start, fixed in _OWN
                    if fnmatch.fnmatchcase(node, pattern)), None)  # fmt: skip
        if own is None:
            return None
        start, fixed = own
        names = self.misc.get(minor, ()) if major == _MISC else self.names.get(major, ())
        if any(name.startswith(start) for name in names):
            return None
        there = any(name.startswith(start) for found in (self.names, self.misc)
                    for listed in found.values() for name in listed)  # fmt: skip
        if not names and (major == fixed or (major in _DYNAMIC and not there)):
            return None
        whose = f"those of {names[0]}" if names else "those of no loaded driver"
        return (
            f"its numbers {major}:{minor} are {whose}, and not of {start}; remove it, and let the "
            "driver's own tools (nvidia-modprobe, udev) make it"
        )


def read(host: HostRoot) -> Majors:
    """What the kernel says now."""
    text = _text(host, "devices").partition("Block devices:")[0]
    return Majors(_listed(text), _listed(_text(host, "misc")))


def _listed(text: str) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            number = int(match[1])
            found[number] = (*found.get(number, ()), match[2])
    return found


def _text(host: HostRoot, name: str) -> str:
    """A file of the host's /proc, else of our own, whose kernel is the same."""
    there = host.agent_path(f"/proc/{name}")
    path = there if os.path.exists(there) else os.path.join(host.proc, name)
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(_LIMIT)
    except OSError:
        return ""
