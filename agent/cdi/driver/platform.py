"""WSL2 and Tegra, whose GPUs have another driver than the Linux driver of data centers.

Invariant: reads only.
"""

from __future__ import annotations

import os
import stat

from agent.errors import NoDriver
from agent.host import budget
from agent.host.paths import HostRoot

_DXG = "/dev/dxg"
# The files by which NVIDIA's own libraries recognize a Tegra (go-nvlib, pkg/nvlib/info).
_TEGRA_RELEASE, _FAMILY = "/etc/nv_tegra_release", "/sys/devices/soc0/family"


def refuse_other(host: HostRoot) -> None:
    """Raise NoDriver on WSL2 and on a Tegra, which have no kernel module to load. The message names
    the mode to use."""
    for name, mode, evidence in (
        ("WSL2", "wsl", wsl(host)),
        ("a Tegra system", "csv", tegra(host)),
    ):
        if evidence:
            raise NoDriver(
                f"cannot make a CDI spec: this is {name} ({evidence}), which has no driver of that "
                f"kind; give --mode={mode}, which makes nvidia.com/gpu"
            )


def wsl(host: HostRoot) -> str:
    """The file that shows that this is WSL2; "" on other machines. On WSL2 Windows has the driver,
    and provides its libraries in /usr/lib/wsl. A Linux driver that is installed, too, has no
    effect."""
    try:
        found = stat.S_ISCHR(os.lstat(host.agent_path(_DXG)).st_mode)
    except OSError:
        return ""
    return _DXG if found else ""


def tegra(host: HostRoot) -> str:
    """The file that shows that this is a Tegra; "" on other machines."""
    if os.path.lexists(host.agent_path(_TEGRA_RELEASE)):
        return _TEGRA_RELEASE
    family = budget.text(host.agent_path(_FAMILY), 256)
    return _FAMILY if family.lower().startswith("tegra") else ""
