"""The formats of the dynamic loader: the soname of a library, and the paths in a root's
`etc/ld.so.cache`, which find libraries in directories that no list has.

Invariant: files may have any content; bytes that cannot be parsed give an empty result, and only
the necessary parts are read. Formats: ELF gABI, chapter 5; glibc's `glibc-ld.so.cache1.1`
(sysdeps/generic/dl-cache.h), alone or behind the old `ld.so-1.7.0` format.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from agent.host import budget

_ELF = b"\x7fELF\x02\x01"  # 64 bits, little endian
_HEADER_OF_ELF = struct.Struct("<Q14xHH")  # program headers: offset, size of one, number
_SEGMENT = struct.Struct("<I4xQQ8xQ")  # kind, offset, address, length in the file
_DYNAMIC = struct.Struct("<QQ")
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_STRTAB, _DT_SONAME = 5, 14
_LARGEST_HEADER = 256  # bytes of a program header: 56
_FLAGS_TO_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK

_OLD_CACHE, _NEW_CACHE = b"ld.so-1.7.0\0", b"glibc-ld.so.cache1.1"
_OLD_ENTRY, _HEADER, _ENTRY = 12, 48, struct.Struct("<iIIIQ")
# 64-bit libraries of glibc 2 for x86-64, AArch64 and POWER; the driver needs no 32-bit ones.
_FLAGS = frozenset((0x0303, 0x0A03, 0x0503))
_LONGEST = 4096  # bytes of a path: PATH_MAX of Linux


def soname(path: str) -> str | None:
    """The DT_SONAME of the file at an agent path; "" if the file has none. None if the file is not
    a 64-bit little-endian ELF file, or cannot be read."""
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, _FLAGS_TO_OPEN)) as file:
            return _soname(lambda size, at: os.pread(file.fileno(), size, at))
    except (OSError, struct.error, ValueError, OverflowError):
        return None


def _soname(read: Callable[[int, int], bytes]) -> str | None:
    head = read(64, 0)
    if not head.startswith(_ELF):
        return None
    table, size, count = _HEADER_OF_ELF.unpack_from(head, 32)
    loads, dynamic = [], None
    if size > _LARGEST_HEADER:
        return None
    for index in range(min(count, budget.ELF.values)):
        kind, offset, address, length = _SEGMENT.unpack_from(read(size, table + index * size))
        if kind == _PT_LOAD:
            loads.append((address, offset, length))
        elif kind == _PT_DYNAMIC:
            dynamic = offset, length
    if dynamic is None:
        return ""
    found: dict[int, int] = {}
    entries = read(min(dynamic[1], budget.ELF.size), dynamic[0])
    entries = entries[: len(entries) - len(entries) % _DYNAMIC.size]
    for tag, value in _DYNAMIC.iter_unpack(entries):
        if tag == 0:
            break
        found.setdefault(tag, value)
    if _DT_SONAME not in found or _DT_STRTAB not in found:
        return ""
    strings = found[_DT_STRTAB]  # an address; its segment gives the offset in the file
    offsets = (at - start for start, at, size in loads if start <= strings < start + size)
    at = strings + next(offsets, 0) + found[_DT_SONAME]
    name, zero, _ = read(256, at).partition(b"\0")
    return name.decode("ascii") if zero and name and b"/" not in name else None


def cached_paths(data: bytes) -> tuple[str, ...]:
    """Paths of the 64-bit libraries in the content of a loader's cache, in its order."""
    try:
        start = 0
        if data.startswith(_OLD_CACHE):  # the new format follows the old one, aligned
            end = 16 + struct.unpack_from("<I", data, 12)[0] * _OLD_ENTRY
            start = -(-end // 8) * 8
        return _cache_entries(data[start:])
    except (struct.error, ValueError):
        return ()


def _cache_entries(data: bytes) -> tuple[str, ...]:
    if not data.startswith(_NEW_CACHE):
        return ()
    count = min(struct.unpack_from("<I", data, 20)[0], budget.LD_CACHE.values)
    found: dict[str, None] = {}
    left = len(data)  # in a real cache paths share no bytes, so their total is limited
    for index in range(count):
        flags, _, value, _, _ = _ENTRY.unpack_from(data, _HEADER + index * _ENTRY.size)
        end = data.find(b"\0", value, value + _LONGEST)
        if flags in _FLAGS and end > value and left >= end - value:
            left -= end - value
            path = data[value:end].decode("utf-8", "surrogateescape")
            if path.startswith("/"):
                found[path] = None
    return tuple(found)
