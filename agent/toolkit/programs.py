"""The toolkit's programs, and where they are on the host.

Invariant: reads only; a program is a regular file that can be run, found by the host's own links.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from agent.errors import Refused
from agent.host import trust
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings

RUNTIME = "nvidia-container-runtime"
RUNTIMES = (RUNTIME, f"{RUNTIME}.cdi", f"{RUNTIME}.legacy")
RUNTIME_HOOK = f"{RUNTIME}-hook"
CLI, CTK = "nvidia-container-cli", "nvidia-ctk"
CDI_HOOK = "nvidia-cdi-hook"
WRAPPED = (*RUNTIMES, RUNTIME_HOOK, CLI, CTK)

DIRECTORIES = (
    "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Binary:
    """A handler's name and its binary on the host."""

    handler: str
    path: str


def directory(settings: Settings, host: HostRoot) -> HostPath:
    """The directory of an installed toolkit, there or not. Raises Refused."""
    return host.locate(spelled(settings, host))


def spelled(settings: Settings, host: HostRoot) -> str:
    """Its name on the host with links in it as they were given."""
    return os.path.join(host.name(settings.toolkit_install_dir), "toolkit")


def find(settings: Settings, host: HostRoot, base: str) -> str | None:
    """Host path of a toolkit binary: in the install directory, else the host's own. Specs name it,
    and runtimes run it as root. Raises Refused where somebody else could exchange it."""
    for above in (spelled(settings, host), "/usr/bin"):
        candidate = os.path.join(above, base)
        if runs(host, candidate):
            trust.require(host, candidate, f"use {candidate}")
            return candidate
    return None


def runs(host: HostRoot, name: str) -> str | None:
    """Agent path of a program at a host path, its links followed; None where there is none."""
    try:
        agent = host.resolve(name).agent
        found = os.stat(agent, follow_symlinks=False)
    except (OSError, Refused):
        return None
    return agent if stat.S_ISREG(found.st_mode) and found.st_mode & 0o111 else None


def is_nvidia(path: str) -> bool:
    """Is this a name of NVIDIA's runtime? Called by itself it would go on for ever."""
    return os.path.basename(path).startswith(RUNTIME)
