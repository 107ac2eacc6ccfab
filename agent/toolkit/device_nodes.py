"""The driver's control nodes, which nobody makes where nvidia-modprobe does not run.

Invariant: pure; numbers are those that the kernel gave the loaded modules (/proc/devices).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MODE = 0o666
_LINE = re.compile(r" *([0-9]{1,4}) +(\S+) *")  # the kernel has 12 bits for such a number


@dataclass(frozen=True, slots=True)
class ControlNode:
    """A character device in /dev that is wanted."""

    name: str
    major: int
    minor: int


# Name, the module's name in /proc/devices and minor number (nvidia-container-toolkit 1.20,
# pkg/system/nvdevices). Before 550 the driver called itself nvidia-frontend there.
_NODES = (
    ("nvidiactl", ("nvidia", "nvidia-frontend"), 255),
    ("nvidia-modeset", ("nvidia", "nvidia-frontend"), 254),
    ("nvidia-uvm", ("nvidia-uvm",), 0),
    ("nvidia-uvm-tools", ("nvidia-uvm",), 1),
)


def control_nodes(proc_devices: str) -> tuple[ControlNode, ...]:
    """The control nodes of the modules that are loaded."""
    majors = _majors(proc_devices)
    found = []
    for name, modules, minor in _NODES:
        major = next((majors[module] for module in modules if module in majors), None)
        if major is not None:
            found.append(ControlNode(name, major, minor))
    return tuple(found)


def _majors(text: str) -> dict[str, int]:
    """Major numbers of character devices by name; the block devices come after."""
    characters, _, _ = text.partition("Block devices:")
    found = (_LINE.fullmatch(line) for line in characters.splitlines())
    return {match[2]: int(match[1]) for match in found if match}
