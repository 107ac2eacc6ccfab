"""NVIDIA's container toolkit on the host: where its programs are.

Invariant: reads only; a program is a regular file that can be run, found by the host's own links.
"""

from __future__ import annotations

import os
import stat

from agent.errors import Refused
from agent.host.paths import HostRoot
from agent.settings import Settings


def find(settings: Settings, host: HostRoot, base: str) -> str | None:
    """Host path of a toolkit binary: in the install directory, else the host's own."""
    installed = os.path.join(host.name(settings.toolkit_install_dir), "toolkit")
    for directory in (installed, "/usr/bin"):
        candidate = os.path.join(directory, base)
        try:
            found = os.stat(host.resolve(candidate).agent)
        except (OSError, Refused):
            continue
        if stat.S_ISREG(found.st_mode) and found.st_mode & 0o111:
            return candidate
    return None
