"""config.toml of the scripted toolkit: where it is, what it says, what holds where it is silent.

The scripted programs start some ten times for each pod: they import no `dataclasses` and compile no
pattern that they do not use, which takes a third off their time.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from typing import Any, NamedTuple

VARIABLE = "NVIDIA_CTK_CONFIG_FILE_PATH"
MODES = ("auto", "cdi", "csv", "jit-cdi", "legacy")

DEFAULTS = """\
accept-nvidia-visible-devices-as-volume-mounts = false
accept-nvidia-visible-devices-envvar-when-unprivileged = true

[nvidia-container-cli]
ldconfig = "@/sbin/ldconfig"
root = ""

[nvidia-container-runtime]
mode = "auto"
runtimes = ["runc", "crun"]

[nvidia-container-runtime.modes.cdi]
annotation-prefixes = ["cdi.k8s.io/"]
default-kind = "nvidia.com/gpu"
spec-dirs = ["/etc/cdi", "/var/run/cdi"]

[nvidia-container-runtime-hook]
path = "nvidia-container-runtime-hook"
"""


class Config(NamedTuple):
    """What the runtime looks at; `path` is the file, empty where there is none."""

    path: str
    accepts_variable: bool
    accepts_mounts: bool
    mode: str
    runtimes: tuple[str, ...]
    prefixes: tuple[str, ...]
    default_kind: str
    spec_dirs: tuple[str, ...]
    hook: str


def place(environment: Mapping[str, str]) -> str:
    """The file that counts, whether or not it is there."""
    base = environment.get("XDG_CONFIG_HOME") or "/etc"
    usual = os.path.join(base, "nvidia-container-runtime/config.toml")
    return environment.get(VARIABLE) or usual


def text(path: str) -> str:
    """What is in the file; the defaults where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return DEFAULTS


def load(environment: Mapping[str, str]) -> Config:
    """Read it; a ValueError where it makes no sense."""
    path = place(environment)
    data = _merged(tomllib.loads(DEFAULTS), tomllib.loads(text(path)))
    runtime = data["nvidia-container-runtime"]
    cdi = runtime["modes"]["cdi"]
    if runtime["mode"] not in MODES:
        raise ValueError(f"invalid runtime mode: {runtime['mode']}")
    return Config(
        path=path if os.path.exists(path) else "",
        accepts_variable=data["accept-nvidia-visible-devices-envvar-when-unprivileged"],
        accepts_mounts=data["accept-nvidia-visible-devices-as-volume-mounts"],
        mode=runtime["mode"],
        runtimes=tuple(runtime["runtimes"]),
        prefixes=tuple(cdi["annotation-prefixes"]),
        default_kind=cdi["default-kind"],
        spec_dirs=tuple(cdi["spec-dirs"]),
        hook=data["nvidia-container-runtime-hook"]["path"],
    )


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {k: _merged(below[k], v) for k, v in above.items() if isinstance(below.get(k), dict)}
    return below | above | both
