"""What NVIDIA's device plugin makes of its variables, written down from its sources.

    plugin_rules.py FILE     as a program: append one JSON line of what the plugin would do to FILE

Read in k8s-device-plugin v0.17.0, v0.17.4, v0.18.0, v0.19.0 and v0.20.0, which agree in all of it:
cmd/nvidia-device-plugin/{main,root,plugin-manager}.go, internal/cdi/cdi.go, and
api/config/v1/{consts,strategy}.go.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

STRATEGIES = frozenset({"envvar", "volume-mounts", "cdi-annotations", "cdi-cri"})
# A variable by its names: the first that is set counts (urfave/cli). And what it is without any.
VARIABLES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "strategies": (("DEVICE_LIST_STRATEGY",), "envvar"),
    "prefix": (("CDI_ANNOTATION_PREFIX",), "cdi.k8s.io/"),
    "hook": (("NVIDIA_CDI_HOOK_PATH", "NVIDIA_CTK_PATH"), "/usr/bin/nvidia-ctk"),
    "driver_root": (("NVIDIA_DRIVER_ROOT",), "/"),
    "dev_root": (("NVIDIA_DEV_ROOT",), ""),
    "seen": (("DRIVER_ROOT_CTR_PATH", "CONTAINER_DRIVER_ROOT"), "/driver-root"),
}
_LIBRARY_DIRECTORIES = (
    *("usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu"),
    *("lib64", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu"),
)


class Invalid(Exception):
    """The plugin ends with this error, or would serve nothing."""


@dataclass(frozen=True)
class Served:
    """What a plugin that runs hands out: host paths as they are in its own spec (None without a CDI
    strategy), and how containers are told of their devices."""

    strategies: tuple[str, ...]
    prefix: str
    hook: str
    library: str | None
    node: str | None


def start(env: Mapping[str, str]) -> Served:
    """Start with these variables. Raises Invalid."""
    value = {
        name: next((env[key] for key in keys if env.get(key)), default)
        for name, (keys, default) in VARIABLES.items()
    }
    strategies = tuple(value["strategies"].split(","))
    if wrong := set(strategies) - STRATEGIES:
        raise Invalid(f"invalid --device-list-strategy option: {sorted(wrong)}")
    library = node = None
    if any(name.startswith("cdi-") for name in strategies):
        seen = Path(value["seen"])
        library = _on_host(_library(seen), str(seen), value["driver_root"])
        dev = str(seen) if (seen / "dev").is_dir() else "/"
        if not Path(dev, "dev/nvidia0").exists():
            raise Invalid(f"no device node in {dev}/dev")
        same = dev == str(seen)
        target = value["driver_root"] if same or not value["dev_root"] else value["dev_root"]
        node = _on_host(os.path.join(dev, "dev/nvidia0"), dev, target)
    return Served(strategies, value["prefix"], value["hook"], library, node)


def _library(root: Path) -> str:
    found = (root / directory / "libnvidia-ml.so.1" for directory in _LIBRARY_DIRECTORIES)
    for path in found:
        if path.exists():
            return os.path.realpath(path)
    raise Invalid("CDI --device-list-strategy options are only supported on NVML-based systems")


def _on_host(path: str, root: str, target: str) -> str:
    """The path in the spec: `target` in the place of `root`."""
    return os.path.join(target, os.path.relpath(path, root))


def main() -> None:
    """Say what is served, or the error, and wait for the end, as the plugin does (with
    FAIL_ON_INIT_ERROR off it waits in either case)."""
    try:
        said: object = asdict(start(os.environ))
    except Invalid as error:
        said = str(error)
    with Path(sys.argv[1]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(said) + "\n")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
