"""The OCI hook that stands in for handlers where CDI is not wanted on a CRI-O.

Invariant: what is written is byte for byte what NVIDIA's installer writes, and only where CRI-O
looks for hooks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from agent.cdi import foreign
from agent.engine.crio.node import CrioNode
from agent.errors import NoToolkit, Refused
from agent.host.paths import HostPath, HostRoot
from agent.observe.config import Overlay

_BINARY = "nvidia-container-runtime-hook"
_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def content(path: str | None) -> bytes:
    """The hook's file, for its program's host path. Raises NoToolkit where there is none."""
    if path is None:
        raise NoToolkit(
            f"cannot write the OCI hook: there is no {_BINARY} in the toolkit; install the whole "
            "of it, or give --toolkit-source-root or --toolkit-install-dir"
        )
    directory = os.path.dirname(path)
    search = _PATH if directory in _PATH else (*_PATH, directory)
    data = {
        "version": "1.0.0",
        "hook": {
            "path": path,
            "args": [_BINARY, "prestart"],
            "env": [f"PATH={':'.join(search)}"],
        },
        "when": {"always": True, "commands": [".*"]},
        "stages": ["prestart"],
    }
    return (json.dumps(data, indent=2) + "\n").encode()


def program(data: bytes) -> str | None:
    """The program that a hook's file names; None where CRI-O takes none from it either."""
    try:
        found = json.loads(data)["hook"]["path"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def programs(node: CrioNode, host: HostRoot, overlay: Overlay) -> Iterator[tuple[HostPath, str]]:
    """Files in which CRI-O will find OCI hooks, whoever wrote them, each with the program that it
    names; `overlay` are files as they will be."""
    for name in dict.fromkeys((*node.hooks_read, *node.hooks_later)):
        try:
            directory = host.resolve(os.path.normpath(name))
        except Refused:
            continue
        for path, data in foreign.entries(host, directory):
            if path.host in overlay:
                state = overlay[path.host]
                data = state.data if state else b""
            found = program(data)
            if path.host.endswith(".json") and found:
                yield path, found


def warning(node: CrioNode, host: HostRoot) -> str | None:
    """What has to be known of the directory. Raises Refused where CRI-O does not look there."""
    directory = os.path.dirname(node.hook.host)
    now, later = (
        [host.resolve(os.path.normpath(name)).host for name in names]
        for names in (node.hooks_read, node.hooks_later)
    )
    if directory in now:
        return None
    if directory in later:
        return f"CRI-O looks into {directory} for hooks only after its next restart; restart it"
    raise Refused(
        f"cannot use the hooks directory {directory}: CRI-O reads "
        f"{', '.join(node.hooks_read) or 'none'} (hooks_dir); give one of these with --hooks-dir"
    )
