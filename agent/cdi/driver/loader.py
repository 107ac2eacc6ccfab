"""What the dynamic loader reads: sonames of libraries, and the paths that a root's
`etc/ld.so.cache` names, for layouts that no list of directories covers.

Invariant: any bytes may come; what cannot be read gives nothing, and only the parts that are needed
are read. Formats: ELF gABI, chapter 5; glibc's `glibc-ld.so.cache1.1` (sysdeps/generic/dl-cache.h),
alone or behind the old `ld.so-1.7.0` one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from agent.host import budget

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_STRTAB, _DT_SONAME = 5, 14
_LARGEST_HEADER = 256  # bytes of a program header: 32 or 56

_OLD_CACHE, _NEW_CACHE = b"ld.so-1.7.0\0", b"glibc-ld.so.cache1.1"
_OLD_ENTRY, _HEADER, _ENTRY = 12, 48, struct.Struct("<iIIIQ")
# ELF libraries of glibc 2 for x86-64, AArch64 and POWER; 32-bit ones are not for the driver.
_FLAGS = frozenset((0x0303, 0x0A03, 0x0503))
_LONGEST = 4096  # bytes of a path, as the kernel


def soname(path: str) -> str | None:
    """DT_SONAME of the file at an agent path, "" if it has none; None for what is no ELF."""
    try:
        with open(path, "rb", opener=_open) as file:
            return _soname(lambda size, at: os.pread(file.fileno(), size, at))
    except (OSError, struct.error, IndexError, ValueError, OverflowError):
        return None


def _open(path: str, _: int) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _soname(read: Callable[[int, int], bytes]) -> str | None:
    head = read(64, 0)
    if head[:4] != b"\x7fELF":
        return None
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    table, size, count = _headers(head, order, wide=wide)
    loads, dynamic = [], None
    if size > _LARGEST_HEADER:
        return None
    for index in range(min(count, budget.ELF.values)):
        raw = read(size, table + index * size)
        kind, offset, address, length = _segment(raw, order, wide=wide)
        if kind == _PT_LOAD:
            loads.append((address, offset, length))
        elif kind == _PT_DYNAMIC:
            dynamic = offset, length
    if dynamic is None:
        return ""
    word = struct.Struct(order + ("QQ" if wide else "II"))
    found: dict[int, int] = {}
    entries = read(min(dynamic[1], budget.ELF.size), dynamic[0])
    entries = entries[: len(entries) - len(entries) % word.size]
    for tag, value in word.iter_unpack(entries):
        if tag == 0:
            break
        found.setdefault(tag, value)
    if _DT_SONAME not in found or _DT_STRTAB not in found:
        return ""
    strings = _in_file(found[_DT_STRTAB], loads)
    name, zero, _ = read(256, strings + found[_DT_SONAME]).partition(b"\0")
    return name.decode("ascii") if zero and name and b"/" not in name else None


def _headers(head: bytes, order: str, *, wide: bool) -> tuple[int, int, int]:
    """The offset of the program headers, the size of one, and their number."""
    table = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)[0]
    size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
    return table, size, count


def _segment(raw: bytes, order: str, *, wide: bool) -> tuple[int, int, int, int]:
    """Kind, offset in the file, address and length in the file of one program header."""
    if wide:
        kind, _, offset, address, _, length = struct.unpack_from(order + "IIQQQQ", raw)
    else:
        kind, offset, address, _, length = struct.unpack_from(order + "IIIII", raw)
    return kind, offset, address, length


def _in_file(address: int, loads: list[tuple[int, int, int]]) -> int:
    for start, offset, length in loads:
        if start <= address < start + length:
            return address - start + offset
    return address


def cached_paths(data: bytes) -> tuple[str, ...]:
    """Paths of 64-bit libraries in a loader's cache, in its order."""
    try:
        return _cache_entries(data[_start(data) :])
    except (struct.error, ValueError):
        return ()


def _start(data: bytes) -> int:
    if not data.startswith(_OLD_CACHE):
        return 0
    count = struct.unpack_from("<I", data, 12)[0]
    end = 16 + count * _OLD_ENTRY
    return int(-(-end // 8) * 8)  # the new format is aligned behind the old one


def _cache_entries(data: bytes) -> tuple[str, ...]:
    if not data.startswith(_NEW_CACHE):
        return ()
    count = min(struct.unpack_from("<I", data, 20)[0], budget.LD_CACHE.values)
    found: dict[str, None] = {}
    left = len(data)  # each path has bytes of its own: entries that share them are no cache
    for index in range(count):
        flags, _, value, _, _ = _ENTRY.unpack_from(data, _HEADER + index * _ENTRY.size)
        end = data.find(b"\0", value, value + _LONGEST)
        if flags in _FLAGS and end > value and left >= end - value:
            left -= end - value
            path = data[value:end].decode("utf-8", "surrogateescape")
            if path.startswith("/"):
                found[path] = None
    return tuple(found)
