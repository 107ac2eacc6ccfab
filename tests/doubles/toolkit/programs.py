"""The scripted toolkit's programs, told apart by name. A name that ends in `.real` is that of a
program with a wrapper before it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from tests.doubles.toolkit import config, runtime
from tests.doubles.toolkit.runtime import note

_LIBRARIES = ("libnvidia-container.so.1", "libnvidia-container-go.so.1")

Environment = Mapping[str, str]
Program = Callable[[str, str, Sequence[str], Environment], int]


def main(version: str) -> int:
    """Be the program by whose name this one was started; the exit code."""
    path, *argv = sys.argv
    name = os.path.basename(path).removesuffix(".real")
    return _PROGRAMS[name](name, version, argv, os.environ)


def _hook(name: str, version: str, argv: Sequence[str], environment: Environment) -> int:
    """A hook that finds nothing to do."""
    note({"program": name, "version": version, "argv": list(argv)}, environment)
    return 0


def _ctk(name: str, version: str, argv: Sequence[str], environment: Environment) -> int:
    """`config` prints the configuration that counts; anything else, the version."""
    if "config" not in argv:
        print(f"NVIDIA Container Toolkit CLI version {version}")
        return 0
    given = [word.partition("=")[2] for word in argv if word.startswith("--config-file=")]
    print(config.text(given[-1] if given else config.place(environment)), end="")
    return 0


def _cli(name: str, version: str, argv: Sequence[str], environment: Environment) -> int:
    """The version, once its libraries are found where a loader looks because it was told to."""
    folders = [f for f in environment.get("LD_LIBRARY_PATH", "").split(":") if f]
    for library in _LIBRARIES:
        found = [f"{f}/{library}" for f in folders if os.path.exists(f"{f}/{library}")]
        if not found:
            print(
                f"{name}: error while loading shared libraries: {library}: "
                "cannot open shared object file: No such file or directory",
                file=sys.stderr,
            )
            return 127
        with open(found[0], "rb") as file:
            if file.read(4) != b"\x7fELF":
                print(f"{name}: {found[0]}: invalid ELF header", file=sys.stderr)
                return 127
    print(f"cli-version: {version}")
    return 0


_PROGRAMS: Mapping[str, Program] = {
    "nvidia-cdi-hook": _hook,
    "nvidia-container-cli": _cli,
    "nvidia-container-runtime": runtime.main,
    "nvidia-container-runtime.cdi": runtime.main,
    "nvidia-container-runtime.legacy": runtime.main,
    "nvidia-container-runtime-hook": _hook,
    "nvidia-container-toolkit": _hook,
    "nvidia-ctk": _ctk,
}
NAMES = tuple(name for name in _PROGRAMS if name != "nvidia-container-toolkit")
