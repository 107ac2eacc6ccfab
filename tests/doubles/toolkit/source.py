"""Trees as the toolkit's packages make them, with scripted programs.

    make_sources(tmp_path / "source")                        # with deb and rpm
    make_tree(tmp_path / "next", version="1.19.0")           # one tree, another version

A program is one file that a plain interpreter, without any third-party module, opens once: an
archive is opened again for each module, and another one may have taken its name by then.
"""

from __future__ import annotations

import marshal
import os
import platform
import sys
from functools import cache
from pathlib import Path
from types import CodeType

from tests.doubles.toolkit.programs import NAMES
from tests.tools.driver import elf

VERSION = "1.18.0"
LIBRARIES = ("libnvidia-container.so.1", "libnvidia-container-go.so.1")

_FOLDERS = {"deb": f"usr/lib/{platform.machine()}-linux-gnu", "rpm": "usr/lib64"}
_HERE = Path(__file__).parent
_MODULES = ("blocks", "cdi", "config", "runtime", "programs")  # what is imported comes first
_PROGRAM = """\
#!{0} -IS
import marshal, sys, types

for name in ("tests", "tests.doubles", "tests.doubles.toolkit"):
    sys.modules[name] = types.ModuleType(name)
for name, code in marshal.loads({1!r}):
    module = sys.modules[name] = types.ModuleType(name)
    exec(code, module.__dict__)
sys.exit(module.main({2!r}))
"""


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
    # Compiled: it is started several times for each container.
    codes = [_code(name) for name in _MODULES]
    return _PROGRAM.format(interpreter, marshal.dumps(codes), version).encode("ascii")


def _code(name: str) -> tuple[str, CodeType]:
    text = (_HERE / f"{name}.py").read_text(encoding="utf-8")
    return f"tests.doubles.toolkit.{name}", compile(text, f"{name}.py", "exec", dont_inherit=True)


def _replace(path: Path, data: bytes, mode: int) -> None:
    """As package managers do: whoever has the old file open keeps it."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(data)
    draft.chmod(mode)
    os.replace(draft, path)
