"""A made-up NVIDIA driver: a driver root with libraries that have sonames, links, programs,
firmware and device nodes.

    make_driver(tmp_path / "driver")               # files and nodes; nodes need root
    make_driver(tmp_path / "driver", nodes=False)  # files only

Real numbers and names, empty content: nothing of it can be loaded, and nothing has to be.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path

VERSION = "550.54.15"
LIBRARIES = "usr/lib/x86_64-linux-gnu"


def _major(driver: str, usual: int) -> int:
    """A driver's number: that of this machine's own, else the usual one, else one that nobody has.
    A node with the number of another driver enters no spec."""
    characters = Path("/proc/devices").read_text("ascii").partition("Block devices:")[0]
    taken = {int(words[0]): words[1] for line in characters.splitlines()
             if len(words := line.split()) == 2 and words[0].isdigit()}  # fmt: skip
    own = next((number for number, name in taken.items() if name == driver), None)
    free = (number for number in (usual, *range(511, 383, -1)) if number not in taken)
    return own or next(free)


UVM, CAPABILITIES = _major("nvidia-uvm", 508), _major("nvidia-caps", 234)

# name in dev: (major, minor, mode)
NODES: Mapping[str, tuple[int, int, int]] = {
    "nvidia0": (195, 0, 0o666),
    "nvidiactl": (195, 255, 0o666),
    "nvidia-modeset": (195, 254, 0o660),
    "nvidia-uvm": (UVM, 0, 0o666),
    "nvidia-uvm-tools": (UVM, 1, 0o666),
    "nvidia-caps/nvidia-cap1": (CAPABILITIES, 1, 0o400),
    "nvidia-caps/nvidia-cap2": (CAPABILITIES, 2, 0o444),
}
# library: (version in the soname, None for none; whether the plain .so link is there)
_SONAMES: Mapping[str, tuple[str | None, bool]] = {
    "libcuda": ("1", True),
    "libnvidia-ml": ("1", True),
    "libnvidia-ptxjitcompiler": ("1", False),
    "libnvidia-opticalflow": ("1", False),
    "libGLX_nvidia": ("0", False),
    "libnvidia-glcore": (None, False),
}
_PROGRAMS = ("nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nvidia-cuda-mps-control")


def make_driver(root: Path, version: str = VERSION, *, nodes: bool = True) -> Path:
    """Make it and return `root`; a second call with another version is an upgrade."""
    library = root / LIBRARIES
    (library / "vdpau").mkdir(parents=True, exist_ok=True)
    for name, (number, plain) in _SONAMES.items():
        _library(library, name, version, number, plain=plain)
    _library(library / "vdpau", "libvdpau_nvidia", version, "1", plain=False)
    (library / "libnvidia-nvvm70.so.4").write_bytes(elf("libnvidia-nvvm70.so.4"))
    programs = root / "usr/bin"
    programs.mkdir(parents=True, exist_ok=True)
    for name in _PROGRAMS:
        (programs / name).write_text("#!/bin/sh\nexit 0\n", encoding="ascii")
        (programs / name).chmod(0o755)
    firmware = root / f"lib/firmware/nvidia/{version}"
    firmware.mkdir(parents=True, exist_ok=True)
    for name in ("gsp_ga10x.bin", "gsp_tu10x.bin"):
        (firmware / name).touch()
    if nodes:
        make_nodes(root)
    return root


def make_nodes(root: Path) -> None:
    """Device nodes of one GPU; the group of one that is not for everybody is 44."""
    for name, (major, minor, mode) in NODES.items():
        path = root / "dev" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.mknod(path, stat.S_IFCHR | mode, os.makedev(major, minor))
            path.chmod(mode)  # whatever the umask
        if name == "nvidia-modeset":
            os.chown(path, 0, 44)


def remove_driver(root: Path, version: str = VERSION) -> None:
    """Take the version's files away, as a package manager would."""
    for path in sorted(root.rglob(f"*{version}*")):
        if path.is_file() and not path.is_symlink():
            path.unlink()


def _library(directory: Path, name: str, version: str, number: str | None, *, plain: bool) -> None:
    file = directory / f"{name}.so.{version}"
    soname = f"{name}.so.{number}" if number else ""
    file.write_bytes(elf(soname))
    for link, target in ((soname, file.name), (f"{name}.so" if plain else "", soname)):
        if link:
            (directory / link).unlink(missing_ok=True)
            (directory / link).symlink_to(target)


def elf(soname: str, *, wide: bool = True, order: str = "<") -> bytes:
    """The smallest ELF library with a dynamic section and, unless it is empty, that soname.

    It is of no machine, so that a loader turns it down: in a real one it would crash.
    """
    strings = b"\0" + soname.encode() + b"\0"
    head, entry, word = (64, 56, "QQ") if wide else (52, 32, "II")
    at = head + 2 * entry
    tags = [(5, 0x1000 + at), *([(14, 1)] if soname else []), (0, 0)]
    dynamic = b"".join(struct.pack(order + word, *tag) for tag in tags)
    end = at + len(strings)

    def segment(kind: int, offset: int, address: int, size: int) -> bytes:
        if wide:
            return struct.pack(order + "IIQQQQQQ", kind, 4, offset, address, 0, size, size, 8)
        return struct.pack(order + "IIIIIIII", kind, offset, address, 0, size, size, 4, 4)

    size = end + len(dynamic)
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    pointers = struct.pack(order + ("QQQ" if wide else "III"), 0, head, 0)
    header = ident + struct.pack(order + "HHI", 3, 0, 1) + pointers
    header += struct.pack(order + "IHHHHHH", 0, head, entry, 2, 0, 0, 0)
    load = segment(1, 0, 0x1000, size)
    return header + load + segment(2, end, 0x1000 + end, len(dynamic)) + strings + dynamic
