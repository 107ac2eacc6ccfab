"""Specs of machines that are not driven by the Linux driver of data centers: WSL2 and Tegra.

Invariant: NVML is asked on a Tegra only, because its GPUs tell one kind of Tegra from another.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from agent.cdi.driver import driver, kernel, platform
from agent.cdi.driver.driver import Places
from agent.cdi.driver.gpus import INTEGRATED, UNLOADABLE, Answer
from agent.cdi.driver.root import DriverRoot
from agent.cdi.make import csv, wsl
from agent.cdi.make.choice import Choice
from agent.cdi.make.csv import Options, Tegra
from agent.cdi.make.driver_edits import Surroundings
from agent.cdi.make.gpu import Kernel
from agent.cdi.model import Spec
from agent.errors import NoDriver, Refused, reason
from agent.host import trust
from agent.host.paths import HostRoot
from agent.options.settings import Settings

NVML = "libnvidia-ml.so.1"

# What tells the GPUs, given a driver root and the path of NVML in it. May raise DriverFailed.
Ask = Callable[[DriverRoot, str], Answer]


@dataclass(frozen=True, slots=True)
class Found:
    """A spec, warnings, and the roots that were looked through."""

    spec: Spec
    warnings: tuple[str, ...]
    roots: tuple[DriverRoot, ...]


def mode(host: HostRoot, places: Places, ask: Ask) -> str:
    """The mode that fits the machine: wsl, csv or nvml. May raise DriverFailed.

    A Tegra with GPUs on the PCI bus only is a machine like any other. WSL2 is one where a GPU was
    handed to Linux's own driver.
    """
    if platform.wsl(host):
        roots = driver.roots(host, places)
        nodes = any(driver.device_nodes(driver.dev_roots(host, places, one)) for one in roots)
        return "nvml" if nodes else "wsl"
    if not platform.tegra(host):
        return "nvml"
    told = _told(_root(host, places), ask)
    if UNLOADABLE in told.error or any(w in g.model for g in told.gpus for w in INTEGRATED):
        return "csv"
    return "nvml"


def made(
    which: str, settings: Settings, host: HostRoot, places: Places, around: Surroundings, ask: Ask,
    choice: Choice,
) -> Found:  # fmt: skip
    """The spec of mode csv or wsl. Raises NoDriver, NoDevices or DriverFailed."""
    if which == "csv":
        return _csv(settings, host, places, around, ask, choice)
    return _wsl(host, places, around)


def _csv(
    settings: Settings, host: HostRoot, places: Places, around: Surroundings, ask: Ask,
    choice: Choice,
) -> Found:  # fmt: skip
    listed = csv.read(host, settings.csv_files)
    missing = tuple(f"there is no {name}" for name in listed.missing)
    if not listed.paths:
        why = "; ".join((*listed.warnings, *missing)) or "they are empty"
        raise NoDriver(
            f"cannot make a CDI spec: CSV files list nothing: {why}; install NVIDIA's packages for "
            "containers (nvidia-l4t-init), or give --csv.file"
        )
    if settings.origins["csv_files"] == "default":
        missing = ()
    root = _root(host, places)
    driver.refuse_distrusted((root,))
    told = _told(root, ask)
    buses = (gpu.bus for gpu in told.gpus if gpu.bus)
    seen = Kernel({bus: kernel.drm_names(host, bus) for bus in buses}, {})
    tegra = Tegra(root, _own(host), driver.dev_roots(host, places, root), seen)
    options = Options(
        settings.library_search_paths, settings.csv_ignore_patterns,
        settings.csv_compat_container_root, settings.device_name_strategies, choice.ids,
        choice.several, choice.merged,
    )  # fmt: skip
    spec, warnings = csv.spec(tegra, around, listed, told, options)
    unsure = told.error and UNLOADABLE not in told.error
    text = f"the CDI spec has no hook for a newer CUDA of an image: NVML says nothing: {told.error}"
    warnings = (*missing, *warnings, *told.warnings, *((text,) if unsure else ()))
    return Found(spec, warnings, (root, tegra.own, *tegra.devs))


def _wsl(host: HostRoot, places: Places, around: Surroundings) -> Found:
    own = _own(host)
    devs = driver.dev_roots(host, places, _root(host, places))
    nodes = driver.nodes_at(devs, (os.path.split(wsl.DXG),))
    told, warnings = _stores(host, own)
    return Found(wsl.spec(own, nodes, around, told), warnings, (own, *devs))


def _stores(host: HostRoot, own: DriverRoot) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Directories of drivers in use, and warnings. Windows tells them; where it does not, there is
    no doubt about the only one that is there. Raises NoDriver."""
    from agent.cdi.driver import dxcore

    error = f"there is no {wsl.DXCORE} in {wsl.LIBRARIES}"
    for path in own.glob(wsl.LIBRARIES, wsl.DXCORE):
        try:
            with trust.open_path(host, path, os.O_RDONLY) as library:
                answer = (
                    dxcore.Stores(error=f"others than root can change it: {library.distrust}")
                    if library.distrust else dxcore.ask(library.fd)
                )  # fmt: skip
        except (OSError, Refused) as problem:
            answer = dxcore.Stores(
                error=reason(problem) if isinstance(problem, OSError) else problem.message
            )
        if not answer.error:
            return answer.paths, ()
        error = answer.error
    there = wsl.stores(own)
    if len(there) > 1:
        raise NoDriver(
            f"cannot make a CDI spec: {wsl.STORES} has {len(there)} drivers, and {wsl.DXCORE} does "
            f"not tell which of them Windows uses: {error}; run this where {wsl.DXG} is, or remove "
            "the other drivers in Windows (pnputil /delete-driver)"
        )
    warning = (
        f"the driver is the only one in {wsl.STORES}, because {wsl.DXCORE} names none: {error}"
    )
    return there, (warning,) if there else ()


def _told(root: DriverRoot, ask: Ask) -> Answer:
    """What NVML says of GPUs; an error where there is none."""
    library = next(iter(driver.libraries(root, NVML)), None)
    return ask(root, library) if library else Answer(error=f"{UNLOADABLE}: it is not there")


def _root(host: HostRoot, places: Places) -> DriverRoot:
    """The driver root that was asked for, else the host's own: there is no driver container."""
    asked = places.driver_root or places.driver_root_seen
    found = driver.roots(host, places) if asked else ()
    return found[0] if found else _own(host)


def _own(host: HostRoot) -> DriverRoot:
    return driver.roots(host, Places(driver_root=driver.HOST_DRIVER))[0]


def watched(host: HostRoot, settings: Settings) -> list[str]:
    """Agent paths that change when such a spec would be another one."""
    found = [f"dxg*{host.agent_path('/dev')}"]
    if platform.wsl(host):
        found += (host.agent_path(path) for path in (wsl.LIBRARIES, wsl.STORES))
    if platform.tegra(host):
        listed = csv.read(host, settings.csv_files)
        above = {os.path.dirname(path) for kind in ("lib", "sym") for path in listed.of(kind)}
        found += map(host.agent_path, (*settings.csv_files, csv.RELEASE, *sorted(above)))
        found += (f"{name}*{host.agent_path('/dev')}" for name in ("nvhost", "nvmap", "nvgpu"))
    return found
