"""Details of pods and containers in verbose CRI answers, whose form each runtime chooses.

Invariant: pure. A value that is missing or has an unexpected type counts as not given. Seen on
containerd 1.6 to 2.3 and CRI-O 1.30 and 1.37.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from agent.toml.document import get

_VISIBLE = "NVIDIA_VISIBLE_DEVICES="


def asks_by_variable(info: Mapping[str, Any]) -> bool:
    """Does a container ask NVIDIA's runtime for devices by environment variable? One that got its
    devices from a CDI spec has the value "void", in CRI-O 1.30 before the value of its image."""
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
