"""Trees as the toolkit's packages make them, with scripted programs.

    make_sources(tmp_path / "source")                        # with deb and rpm
    make_tree(tmp_path / "next", version="1.19.0")           # one tree, another version

A program is one file: Python code in an archive that a plain interpreter, without any third-party
module, executes.
"""

from __future__ import annotations

import io
import os
import platform
import py_compile
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from tests.toolkit.programs import NAMES
from tests.tools.driver import elf

VERSION = "1.18.0"
LIBRARIES = ("libnvidia-container.so.1", "libnvidia-container-go.so.1")

_FOLDERS = {"deb": f"usr/lib/{platform.machine()}-linux-gnu", "rpm": "usr/lib64"}
_HERE = Path(__file__).parent
_MODULES = ("blocks", "cdi", "config", "programs", "runtime")


def make_sources(directory: Path, version: str = VERSION) -> Path:
    """What an image of NVIDIA's has: one tree of each kind of package; returns `directory`."""
    for package in _FOLDERS:
        make_tree(directory / package, version, package)
    return directory


def make_tree(directory: Path, version: str = VERSION, package: str = "deb") -> Path:
    """One tree with `usr`; returns `directory`. A second call with another version upgrades it."""
    programs, libraries = directory / "usr/bin", directory / _FOLDERS[package]
    for folder in (programs, libraries, directory / "usr/share/doc/nvidia-container-toolkit"):
        folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        _replace(programs / name, program(version), 0o755)
    for soname in LIBRARIES:
        whole = f"{soname.removesuffix('.1')}.{version}"
        for old in libraries.glob(f"{soname.removesuffix('.1')}.*"):
            old.unlink()
        _replace(libraries / whole, elf(soname) + version.encode(), 0o644)
        (libraries / soname).symlink_to(whole)
    notes = directory / "usr/share/doc/nvidia-container-toolkit/copyright"
    notes.write_text("nothing of this is needed on a node\n", encoding="ascii")
    return directory


@cache
def program(version: str) -> bytes:
    """The bytes that all programs of one version have."""
    # Not the virtual environment's link: it would bring everything in there along.
    interpreter = Path(sys.executable).resolve()
    main = "import sys\nfrom tests.toolkit import programs\n"
    main += f"sys.exit(programs.main({version!r}))\n"
    buffer = io.BytesIO(b"")
    with zipfile.ZipFile(buffer, "w") as archive, tempfile.TemporaryDirectory() as folder:
        for name in ("tests/__init__", "tests/toolkit/__init__"):
            _add(archive, f"{name}.py", b"")
        _add(archive, "__main__.py", main.encode())
        for name in _MODULES:
            # Compiled: it is started several times for each container.
            code = Path(folder) / f"{name}.pyc"
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            text = str(_HERE / f"{name}.py")
            py_compile.compile(text, str(code), f"{name}.py", doraise=True, invalidation_mode=mode)
            _add(archive, f"tests/toolkit/{name}.pyc", code.read_bytes())
    return f"#!{interpreter} -IS\n".encode() + buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name), data)  # without a time: equal input, equal bytes


def _replace(path: Path, data: bytes, mode: int) -> None:
    """As package managers do: whoever has the old file open keeps it."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(data)
    draft.chmod(mode)
    os.replace(draft, path)
