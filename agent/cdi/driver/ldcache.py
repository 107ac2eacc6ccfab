"""Libraries that a root's `etc/ld.so.cache` names, for layouts that no list of directories knows.

Invariant: any bytes may come; what cannot be read names nothing. Format: glibc's
`glibc-ld.so.cache1.1` (sysdeps/generic/dl-cache.h), alone or behind the old `ld.so-1.7.0` one.
"""

from __future__ import annotations

import struct

from agent.host import budget

_OLD, _NEW = b"ld.so-1.7.0\0", b"glibc-ld.so.cache1.1"
_OLD_ENTRY, _HEADER, _ENTRY = 12, 48, struct.Struct("<iIIIQ")
# ELF libraries of glibc 2 for x86-64, AArch64 and POWER; 32-bit ones are not for the driver.
_FLAGS = frozenset((0x0303, 0x0A03, 0x0503))
_LONGEST = 4096  # bytes of a path, as the kernel


def paths(data: bytes) -> tuple[str, ...]:
    """Paths of 64-bit libraries in the order of the cache."""
    try:
        return _paths(data[_start(data) :])
    except (struct.error, ValueError):
        return ()


def _start(data: bytes) -> int:
    if not data.startswith(_OLD):
        return 0
    count = struct.unpack_from("<I", data, 12)[0]
    end = 16 + count * _OLD_ENTRY
    return int(-(-end // 8) * 8)  # the new format is aligned behind the old one


def _paths(data: bytes) -> tuple[str, ...]:
    if not data.startswith(_NEW):
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
