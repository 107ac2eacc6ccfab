"""The OCI hook that stands in for handlers where CDI is not wanted on a CRI-O.

Invariant: what is written is byte for byte what NVIDIA's installer writes, and only where CRI-O
looks for hooks.
"""

from __future__ import annotations

import json
import os

from agent import toolkit
from agent.engine.crio.node import CrioNode
from agent.errors import NoToolkit, Refused
from agent.host.paths import HostRoot
from agent.settings import Settings

_BINARY = "nvidia-container-runtime-hook"
_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def content(settings: Settings, host: HostRoot) -> bytes:
    """The hook's file. Raises NoToolkit where its program is not on the host."""
    path = toolkit.find(settings, host, _BINARY)
    if path is None:
        raise NoToolkit(
            f"cannot write the OCI hook: {_BINARY} is neither in "
            f"{settings.toolkit_install_dir}/toolkit nor in /usr/bin of the host; install the "
            "toolkit or give --toolkit-install-dir"
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
