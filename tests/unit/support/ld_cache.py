"""An `ld.so.cache` as glibc writes it, for tests."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_HEADER, _ENTRY = 48, 24


def make_cache(paths: Sequence[str], flags: int = 0x0303) -> bytes:
    """The cache that names these libraries."""
    strings, entries = b"", b""
    start = _HEADER + _ENTRY * len(paths)
    for path in paths:
        key = start + len(strings)
        name = path.rpartition("/")[2]
        strings += name.encode() + b"\0"
        value = start + len(strings)
        strings += path.encode() + b"\0"
        entries += struct.pack("<iIIIQ", flags, key, value, 0, 0)
    head = b"glibc-ld.so.cache1.1" + struct.pack("<II", len(paths), len(strings)) + bytes(20)
    return head + entries + strings
