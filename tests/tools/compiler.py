"""Small libraries in C for the tests, made with the machine's compiler or with Debian's small one.

    compiled(Path("nvml.c"), "OLD", "-Wl,-soname,libnvidia-ml.so.1")

The small one, tcc, is unpacked with the headers of the C library beside it, and not with that
library: what a library uses of it is found in the program that loads it.
"""

from __future__ import annotations

import atexit
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.tools.host_tools import tool, unpacked

_SMALL = "tcc"
_HEADERS = ("libc6-dev", "linux-libc-dev")
# Of an ELF file for 64 bits: where its header says where the table of segments is, how many there
# are, and a segment that says of the stack that it holds no code.
_TABLE, _COUNT, _SEGMENT = 32, 56, 56
_PLAIN_STACK = struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)


@cache
def compiled(source: Path, variant: str = "", *options: str) -> Path:
    """A library, made once; `variant` is a name that is defined for it."""
    folder = Path(tempfile.mkdtemp(prefix=f"{source.stem}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    output = folder / f"{source.stem}.so"
    defines = [f"-D{variant}"] if variant else []
    make_library(source, output, ["-Wall", "-Wextra", "-Werror", *options, *defines])
    return output


def make_library(source: Path, output: Path, options: Sequence[str] = ()) -> None:
    """Compile `source`; CalledProcessError where the compiler does not like it."""
    compiler = tool("cc")
    assert compiler is not None
    small = compiler.name == _SMALL
    words = [str(compiler), "-shared", "-fPIC", "-O1", *options, "-o", str(output), str(source)]
    if small:
        words[1:1], words[len(words) :] = _small_options()
    subprocess.run(words, check=True)
    if small:
        _mark_stack(output)


def _small_options() -> tuple[list[str], list[str]]:
    """What comes before and after the others; the paths that are built in are the system's."""
    (own,) = unpacked("cc", _SMALL).glob("usr/lib/*/tcc")
    folders = [own / "include"]
    for package in _HEADERS:
        include = unpacked("cc", package) / "usr/include"
        folders += [*include.glob("*-linux-gnu*"), include]
    before = [f"-B{own}", "-nostdinc", "-nostdlib", *(f"-I{folder}" for folder in folders)]
    return before, [str(own / "libtcc1.a")]


def _mark_stack(library: Path) -> None:
    """Without a word on its stack, the C library from 2.41 on does not load it in a program that
    runs. The table of segments has to be in one piece: it moves to the end."""
    data = bytearray(library.read_bytes())
    (table,) = struct.unpack_from("<Q", data, _TABLE)
    (count,) = struct.unpack_from("<H", data, _COUNT)
    segments = data[table : table + count * _SEGMENT]
    data += bytes(-len(data) % 8)
    struct.pack_into("<Q", data, _TABLE, len(data))
    struct.pack_into("<H", data, _COUNT, count + 1)
    library.write_bytes(data + segments + _PLAIN_STACK)
