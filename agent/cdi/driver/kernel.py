"""GPUs as the kernel lists them, in the host's /proc and /sys.

Invariant: reads only, and through the host root, because the /proc of a container may differ. Files
may have any content; an entry that does not describe a GPU is left out.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping

from agent.cdi.driver.nvml import NO_GPUS, Answer, Gpu
from agent.host import budget
from agent.host.paths import HostRoot

_PCI = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]")
_UUID = re.compile(r"GPU-[0-9A-Fa-f-]+[0-9A-Fa-f]")
_VERSION = re.compile(r"NVRM version:.*?\s(\d+(?:\.\d+){1,3})\s")
_CAPABILITY = re.compile(r"(\S+) (\d{1,7})")
_CAPABILITIES = "nvidia/capabilities"


def gpus(host: HostRoot) -> Answer:
    """The GPUs in the driver's list in /proc, for use if NVML does not answer. MIG devices are not
    in the list, because only NVML knows their names."""
    directory, capabilities = _driver(host, "nvidia/gpus"), _driver(host, _CAPABILITIES)
    infos = [_information(f"{directory}/{name}/information") for name in _names(directory)]
    if not infos:
        return Answer(error=f"{directory} lists no GPU")
    found, warnings = [], []
    # NVML numbers GPUs by PCI address, and leaves out GPUs that were excluded at boot.
    usable = [info for info in infos if info.get("GPU Excluded", "No") != "Yes"]
    for index, info in enumerate(sorted(usable, key=lambda info: info.get("Bus Location", ""))):
        bus, minor = info.get("Bus Location", "").lower(), info.get("Device Minor", "")
        if info.get("Model") in NO_GPUS:
            continue
        if not (_PCI.fullmatch(bus) and minor.isascii() and minor.isdigit()):
            warnings.append(f"GPU {index} is not in the CDI spec: {directory} does not describe it")
        elif any(name.startswith("gi") for name in _names(f"{capabilities}/gpu{minor}/mig")):
            warnings.append(
                f"GPU {index} is not in the CDI spec: it is split into MIG devices, whose names "
                "only NVML knows"
            )
        elif _is_gone(host, bus):
            warnings.append(f"GPU {index} is not in the CDI spec: {bus} is not on the PCI bus")
        else:
            uuid = info.get("GPU UUID", "")
            found.append(Gpu(index, uuid if _UUID.fullmatch(uuid) else "", int(minor), bus))
    return Answer(tuple(found), tuple(warnings))


def drm_names(host: HostRoot, bus: str) -> tuple[str, ...]:
    """The names in /dev/dri of the GPU at the PCI address `bus`."""
    return tuple(_names(host.agent_path(f"/sys/bus/pci/devices/{bus}/drm")))


def mig_minors(host: HostRoot) -> Mapping[str, int]:
    """Minor numbers of MIG capabilities by name, such as `gpu0/gi1/ci0/access`. They come from the
    kernel's list of all possible ones, else from the capabilities that exist."""
    text = budget.text(_driver(host, "nvidia-caps/mig-minors"))
    found = (_CAPABILITY.fullmatch(line.strip()) for line in text.splitlines())
    if listed := {match[1]: int(match[2]) for match in found if match}:
        return listed
    existing = {}
    for directory, start in _capabilities(host):
        for name in _names(directory) if start != "gpu" else ():
            minor = _information(f"{directory}/{name}/access").get("DeviceFileMinor", "")
            if name.startswith(start) and minor.isascii() and minor.isdigit():
                inside = os.path.relpath(f"{directory}/{name}", _driver(host, _CAPABILITIES))
                existing[f"{inside.replace('/mig/', '/')}/access"] = int(minor)
    return existing


def version(host: HostRoot) -> str | None:
    """The version of the loaded driver module; None if the kernel does not show it."""
    found = _VERSION.search(budget.text(_driver(host, "nvidia/version")))
    return found[1] if found else None


def is_loaded(host: HostRoot) -> bool:
    """Is the driver's kernel module loaded? If not, NVML must not be asked: it would load the
    module, and make device nodes in the /dev that it sees."""
    return os.path.isdir(_driver(host, "nvidia"))


def trace(host: HostRoot) -> tuple[str, ...]:
    """A fingerprint of the GPUs and MIG instances that the kernel shows. While it stays the same,
    NVML lists no new GPU. (NVML may list fewer: a GPU that fell off the bus stays in the kernel's
    list.)

    UUIDs are not part of it, because the kernel learns a UUID only when the GPU is used. Inodes and
    times are part of it, because they distinguish an instance from an earlier one of the same name.
    """
    found = [budget.text(_driver(host, "nvidia/version"))]
    listed = _driver(host, "nvidia/gpus")
    for name in _names(listed):
        info = _information(f"{listed}/{name}/information")
        facts = (info.get("Device Minor"), info.get("GPU Excluded"), _is_gone(host, name))
        found.append(f"{name} {facts} {_identity(f'{listed}/{name}')}")
    for directory, start in _capabilities(host):
        names = (name for name in _names(directory) if name.startswith(start))
        found += (f"{directory}/{name} {_identity(f'{directory}/{name}')}" for name in names)
    return (*found, *(f"{name} {minor}" for name, minor in mig_minors(host).items()))


def watch_paths(host: HostRoot) -> Iterator[str]:
    """Agent paths that change when a module is loaded, a GPU comes or goes, or MIG devices are made
    anew. (New MIG devices may change neither the device nodes nor the list of minor numbers, which
    has every possible instance.) `PREFIX*DIRECTORY` stands for all names with that prefix in a
    directory."""
    yield _driver(host, "nvidia/version")
    for module in ("nvidia", "nvidia_uvm"):  # the second may be loaded later, with its own nodes
        yield host.agent_path(f"/sys/module/{module}")
    yield _driver(host, "nvidia-caps/mig-minors")
    yield f"*{_driver(host, 'nvidia/gpus')}"
    yield from (f"{start}*{directory}" for directory, start in _capabilities(host))


def _capabilities(host: HostRoot) -> Iterator[tuple[str, str]]:
    """Directories of GPU and compute instances, each with the prefix of its relevant names."""
    top = _driver(host, _CAPABILITIES)
    yield top, "gpu"
    for gpu in _names(top):
        if gpu.startswith("gpu"):
            above = f"{top}/{gpu}/mig"
            yield above, "gi"
            yield from ((f"{above}/{name}", "ci") for name in _names(above) if name[:2] == "gi")


def _identity(path: str) -> str:
    """Inode and time of a directory, which differ from those of an earlier one of the same name."""
    try:
        found = os.lstat(path)
    except OSError:
        return ""
    return f"{found.st_ino} {found.st_ctime_ns}" if stat.S_ISDIR(found.st_mode) else ""


def _driver(host: HostRoot, name: str) -> str:
    """The agent path of `name` in /proc/driver."""
    return f"{host.proc_path('driver')}/{name}"


def _information(path: str) -> dict[str, str]:
    lines = (line.partition(":") for line in budget.text(path).splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _is_gone(host: HostRoot, bus: str) -> bool:
    devices = host.agent_path("/sys/bus/pci/devices")
    return os.path.isdir(devices) and not os.path.exists(f"{devices}/{bus}")


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
