"""What NVIDIA's device plugin makes of its variables, written down from its sources.

    plugin_rules.py FILE     as a program: append one JSON line of what the plugin would do to FILE

Read in every release from k8s-device-plugin v0.17.0 to v0.20.0: cmd/nvidia-device-plugin/
{main,root,plugin-manager}.go, internal/cdi/cdi.go, api/config/v1/{consts,strategy}.go, and
go-nvlib's pkg/nvlib/info/root.go. On systems with NVML the releases differ in two of these rules.
v0.17.4 and v0.20.0, built and run on made-up drivers with a stand-in for the kubelet, keep to them.
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
# Before it the plugin loads NVML by name alone, so that the container runtime has to inject it.
SEARCHES_ROOT_SINCE = (0, 18, 1)
# Before it the plugin ends where a GPU has no device node. Since then it writes no spec at all, and
# registers the GPUs nevertheless: a pod that gets one is never created.
IGNORES_EMPTY_SPEC_SINCE = (0, 18, 0)
NEWEST = (0, 20, 0)
_LIBRARY_DIRECTORIES = (
    *("usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu"),
    *("lib64", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu"),
)


class Invalid(Exception):
    """The plugin ends with this error, or would serve nothing."""


@dataclass(frozen=True)
class Served:
    """What a plugin that runs hands out: host paths as they are in its own spec (None without a
    spec), and how containers are told of their devices."""

    strategies: tuple[str, ...]
    prefix: str
    hook: str
    library: str | None
    node: str | None


def start(
    env: Mapping[str, str], version: tuple[int, ...] = NEWEST, injected: Path | None = None
) -> Served:
    """Start with these variables. `injected` is the NVML that the container runtime put into the
    plugin's container, where the loader finds it by name. Raises Invalid."""
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
        own = _library(seen) if version >= SEARCHES_ROOT_SINCE else None
        if not own and not injected:
            raise Invalid(
                "CDI --device-list-strategy options are only supported on NVML-based systems"
            )
        library, node = _spec(seen, value["driver_root"], value["dev_root"])
        if node is None and version < IGNORES_EMPTY_SPEC_SINCE:
            raise Invalid("unable to create cdi spec file: invalid device, empty device edits")
    return Served(strategies, value["prefix"], value["hook"], library, node)


def _spec(seen: Path, driver_root: str, dev_root: str) -> tuple[str | None, str | None]:
    """A library's and a node's host path in the plugin's own spec; None and None for no spec."""
    dev = str(seen) if (seen / "dev").is_dir() else "/"
    files = (seen / directory for directory in _LIBRARY_DIRECTORIES)
    found = [file for path in files for file in sorted(path.glob("libnvidia-ml.so.*.*"))]
    if not found or not Path(dev, "dev/nvidia0").exists():
        return None, None
    target = driver_root if dev == str(seen) or not dev_root else dev_root
    library = _on_host(os.path.realpath(found[0]), str(seen), driver_root)
    return library, _on_host(os.path.join(dev, "dev/nvidia0"), dev, target)


def _library(root: Path) -> str | None:
    """NVML below the root; links in it are followed in the container: an absolute one leads out."""
    found = (root / directory / "libnvidia-ml.so.1" for directory in _LIBRARY_DIRECTORIES)
    return next((os.path.realpath(path) for path in found if path.exists()), None)


def _on_host(path: str, root: str, target: str) -> str:
    """The path in the spec: `target` in the place of `root`."""
    return os.path.join(target, os.path.relpath(path, root))


def main() -> None:
    """Say what is served and wait for the end; or say the error and end with it, as the plugin does
    whatever FAIL_ON_INIT_ERROR says."""
    error = None
    try:
        said: object = asdict(start(os.environ))
    except Invalid as invalid:
        said = error = str(invalid)
    with Path(sys.argv[1]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(said) + "\n")
    if error:
        sys.exit(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
