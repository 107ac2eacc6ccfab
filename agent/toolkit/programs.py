"""The toolkit's programs and their paths on the host.

Invariant: reads only. A program is an executable regular file; links to it are followed on the
host.
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


@dataclass(frozen=True)
class Binary:
    """A handler's name, and the host path of its binary."""

    handler: str
    path: str


def directory(settings: Settings, host: HostRoot) -> HostPath:
    """The directory of an installed toolkit, which may not exist yet. Raises Refused."""
    return host.locate(directory_name(settings, host))


def directory_name(settings: Settings, host: HostRoot) -> str:
    """The host path of `directory` as the option gives it, with links."""
    return os.path.join(host.name(settings.toolkit_install_dir), "toolkit")


def find(settings: Settings, host: HostRoot, base: str) -> str | None:
    """Host path of the toolkit's program `base`: in the install directory, else in /usr/bin; None
    if it is in neither. Raises Refused if another user than root can exchange it, because runtimes
    run it as root."""
    for above in (directory_name(settings, host), "/usr/bin"):
        candidate = os.path.join(above, base)
        if runs(host, candidate):
            trust.require(host, candidate, f"use {candidate}")
            return candidate
    return None


def runs(host: HostRoot, name: str) -> str | None:
    """Agent path of the program at a host path, links followed; None if there is no executable
    file."""
    try:
        agent = host.resolve(name).agent
        found = os.stat(agent, follow_symlinks=False)
    except (OSError, Refused):
        return None
    return agent if stat.S_ISREG(found.st_mode) and found.st_mode & 0o111 else None


def judged(host: HostRoot, path: str | None) -> tuple[str | None, tuple[str, ...]]:
    """Why the program at a host path is not used, because another user than root can change it;
    None if no such user can. Then the agent paths whose owners, modes and links decided. Of a
    program that is yet to be installed, the nearest directory that exists is judged."""
    above = path
    while above is not None:
        try:
            with trust.open_path(host, above) as found:
                distrust = found.distrust
                if above != path and not distrust and (lax := trust.distrust(found.status)):
                    distrust = f"{above} {lax}"
                why = f"{path} is not used, because {distrust}" if distrust else None
                return why, tuple(map(host.agent_path, found.route))
        except FileNotFoundError:
            above = os.path.dirname(above)
        except (OSError, Refused) as error:
            return f"{path} cannot be opened ({error})", ()
    return None, ()


def is_nvidia(path: str) -> bool:
    """Is this the path or name of NVIDIA's runtime? That runtime must not call itself."""
    return os.path.basename(path).startswith(RUNTIME)
