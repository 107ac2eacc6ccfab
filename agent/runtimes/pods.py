"""What a runtime says of a pod and of a container in words of its own (verbose CRI answers).

Invariant: pure; what is missing or of another type than expected is as if it were not said. Seen on
containerd 1.6 to 2.3 and CRI-O 1.30 and 1.37.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Any

from agent.toml.edit import Data, get

_HANDLER = "io.kubernetes.cri-o.RuntimeHandler"
_VISIBLE = "NVIDIA_VISIBLE_DEVICES="
CRIO_ROOT = "/run/runc"  # where CRI-O has a low-level runtime keep its state if nothing is said


def handler(info: Mapping[str, Any]) -> str:
    """The handler of a CRI-O pod, "" for the default: its lists never say it. CRI-O does not
    resolve the default: such a pod is always that of the default of now."""
    found = get(info, ("runtimeSpec", "annotations", _HANDLER))
    return found if isinstance(found, str) else ""


def programs(info: Mapping[str, Any]) -> tuple[str, ...]:
    """The programs by which containerd runs a pod. They stay until the pod is gone, whatever its
    handler becomes, and are those of each container that starts again in it."""
    options = info.get("runtimeOptions")
    values = options.values() if isinstance(options, Mapping) else ()
    return tuple(value for value in values if isinstance(value, str))


def asks_by_variable(info: Mapping[str, Any]) -> bool:
    """Does a container ask NVIDIA's runtime for devices by environment variable? One that got its
    devices from a CDI spec is told "void", in CRI-O 1.30 before what its image says."""
    words = get(info, ("runtimeSpec", "process", "env"))
    said = [str(word) for word in words] if isinstance(words, list) else []
    given = [word.removeprefix(_VISIBLE) for word in said if word.startswith(_VISIBLE)]
    return bool(given) and "void" not in given and given[-1] not in ("", "none")


def monitored(words: tuple[str, ...]) -> tuple[str, str] | None:
    """Namespace and name of the pod of a container that this conmon watches. Its `-n` is
    `k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT`, and none of these has an underscore."""
    name = dict(itertools.pairwise(words)).get("-n", "")
    parts = name.split("_")
    return (parts[3], parts[2]) if len(parts) == 6 and parts[0] == "k8s" else None


def crio_state(name: str, runtimes: Mapping[str, Data], default: str, below: str | None) -> object:
    """By what CRI-O finds a pod of a handler again: low-level program, its state directory, and
    the type. A pod whose state changes is shown as ended while its processes live (observed).

    `below` is the low-level program that NVIDIA's runtime calls, None where that is not known.
    """
    table = runtimes[name]
    runs = runtimes.get(default, table) if table.get("inherit_default_runtime") else table
    path = str(runs.get("runtime_path") or name)
    program = os.path.basename(path)
    if program.startswith("nvidia-container-runtime"):
        program = os.path.basename(below or "")
    return (program, table.get("runtime_root") or CRIO_ROOT, runs.get("runtime_type") or "oci")
