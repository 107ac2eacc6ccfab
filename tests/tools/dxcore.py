"""A libdxcore of our own for made-up WSL2 hosts: which drivers Windows uses.

place(host, [(3100, "/usr/lib/wsl/drivers/one")])
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.tools.compiler import make_library

SOURCE = Path(__file__).with_name("dxcore.c")
LIBRARY = "usr/lib/wsl/lib/libdxcore.so"


def place(host: Path, adapters: Sequence[tuple[int, str]], variant: str = "") -> Path:
    """Put the library into a host root; `adapters` are WDDM versions and directories of drivers."""
    path = host / LIBRARY
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_compiled(variant), path)
    lines = [f"{version} {store}\n" for version, store in adapters]
    Path(f"{path}.script").write_text("".join(lines), encoding="ascii")
    return path


@cache
def _compiled(variant: str) -> Path:
    """The library; `variant` is OLD for one without the newer function."""
    folder = Path(tempfile.mkdtemp(prefix="dxcore-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    output = folder / "libdxcore.so"
    defines = [f"-D{variant}"] if variant else []
    make_library(SOURCE, output, ["-Wall", "-Wextra", "-Werror", *defines])
    return output
