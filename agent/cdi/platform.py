"""Machines with GPUs of NVIDIA's that are not driven by the Linux driver of data centers.

Invariant: reads only, and looks only where no device node of that driver is there.
"""

from __future__ import annotations

import os
import stat

from agent.errors import NoDriver
from agent.host.paths import HostRoot

_DXG = "/dev/dxg"
# What NVIDIA's own libraries look at (go-nvlib, pkg/nvlib/info).
_TEGRA_RELEASE, _FAMILY = "/etc/nv_tegra_release", "/sys/devices/soc0/family"
_WAY_OUT = 'where such a spec is there, give --cdi-output-dir="", so that none of ours is made'


def refuse_other(host: HostRoot) -> None:
    """Raise NoDriver where the machine is WSL2 or a Tegra: no kernel module will come, and specs
    are not ours to make."""
    for what, mode, found in (("WSL2", "wsl", _wsl(host)), ("a Tegra system", "csv", _tegra(host))):
        if found:
            raise NoDriver(
                f"cannot make a CDI spec: this is {what} ({found}), whose specs are made by "
                f"`nvidia-ctk cdi generate --mode={mode}`; {_WAY_OUT}"
            )


def _wsl(host: HostRoot) -> str:
    """Windows has the driver there, and gives its libraries in /usr/lib/wsl. A Linux driver that
    is installed beside it does nothing."""
    try:
        there = stat.S_ISCHR(os.lstat(host.agent_path(_DXG)).st_mode)
    except OSError:
        return ""
    return _DXG if there else ""


def _tegra(host: HostRoot) -> str:
    if os.path.lexists(host.agent_path(_TEGRA_RELEASE)):
        return _TEGRA_RELEASE
    try:
        with open(host.agent_path(_FAMILY), encoding="ascii", errors="replace") as file:
            return _FAMILY if "tegra" in file.read(256).lower() else ""
    except OSError:
        return ""
