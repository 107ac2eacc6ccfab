"""The soname of a shared library, read from its dynamic section (ELF gABI, chapter 5).

Invariant: any bytes may come, and no more than the few parts that are needed is read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from agent.host import budget

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_STRTAB, _DT_SONAME = 5, 14
_LARGEST_HEADER = 256  # bytes of a program header: 32 or 56


def soname(path: str) -> str | None:
    """DT_SONAME of the file at an agent path, "" where it has none; None for what is no ELF."""
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
    entries = _whole(read(min(dynamic[1], budget.ELF.size), dynamic[0]), word)
    for tag, value in word.iter_unpack(entries):
        if tag == 0:
            break
        found.setdefault(tag, value)
    if _DT_SONAME not in found or _DT_STRTAB not in found:
        return ""
    strings = _in_file(found[_DT_STRTAB], loads)
    name, zero, _ = read(256, strings + found[_DT_SONAME]).partition(b"\0")
    return name.decode("ascii") if zero and name and b"/" not in name else None


def _whole(data: bytes, word: struct.Struct) -> bytes:
    return data[: len(data) - len(data) % word.size]


def _headers(head: bytes, order: str, *, wide: bool) -> tuple[int, int, int]:
    """Where the program headers are, how large one is, how many there are."""
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
