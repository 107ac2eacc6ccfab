"""A libdxcore of our own for made-up WSL2 hosts: which drivers Windows uses.

place(host, [(3100, "/usr/lib/wsl/drivers/one")])
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.tools.compiler import compiled

SOURCE = Path(__file__).with_name("dxcore.c")
LIBRARY = "usr/lib/wsl/lib/libdxcore.so"


def place(host: Path, adapters: Sequence[tuple[int, str]], variant: str = "") -> Path:
    """Put the library into a host root; `adapters` are WDDM versions and directories of drivers,
    `variant` is OLD for one without the newer function."""
    path = host / LIBRARY
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(compiled(SOURCE, variant), path)
    lines = [f"{version} {store}\n" for version, store in adapters]
    Path(f"{path}.script").write_text("".join(lines), encoding="ascii")
    return path
