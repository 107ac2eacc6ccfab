"""The node around the runtime: driver, kubelet, device plugin, other installers.

Invariant: reads only. Of the environment of foreign processes only the device plugin's settings are
kept, whose values are no secrets.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent.cdi.driver import driver as drivers
from agent.cdi.driver import kernel, platform
from agent.cdi.specs import read
from agent.cri import process
from agent.errors import AgentError, Refused
from agent.host import files
from agent.host.paths import HostRoot
from agent.options.settings import Settings
from agent.toolkit import device_nodes

KUBELET_CONFIG = "/var/lib/kubelet/config.yaml"
_INSTALLERS = ("nvidia-ctk-installer", "nvidia-toolkit")
_PLUGIN = "nvidia-device-plugin"
_PCI = "/sys/bus/pci/devices"


def text(host: HostRoot, name: str, limit: int = 1 << 16) -> str:
    """The first `limit` bytes of a file of the host, as text; "" if it cannot be read."""
    try:
        with open(host.resolve(name).agent, encoding="ascii", errors="replace") as file:
            return file.read(limit).strip()
    except (OSError, Refused):
        return ""


def names(path: str) -> list[str]:
    """The sorted names in a directory (agent path); [] if it cannot be read."""
    try:
        return sorted(files.names(path))
    except (OSError, ValueError):
        return []


@dataclass(frozen=True)
class Kubelet:
    """The kubelet's cgroup driver and CRI socket, "" if neither flag nor file sets them. `source`
    is the place of the cgroup driver's setting, for messages."""

    cgroups: str = ""
    source: str = ""
    socket: str = ""


def kubelet(host: HostRoot) -> Kubelet:
    """The settings of the running kubelet, from its command line and its configuration file."""
    words = next(_kubelets(host), ())
    name = _flag(words, "config") or KUBELET_CONFIG
    config = _kubelet_file(host, name)
    flag = _flag(words, "cgroup-driver")
    endpoint = _flag(words, "container-runtime-endpoint") or config.get("containerRuntimeEndpoint")
    return Kubelet(
        flag or str(config.get("cgroupDriver") or ""),
        "the kubelet's command line" if flag else name,
        str(endpoint or "").removeprefix("unix://"),
    )


def _kubelets(host: HostRoot) -> Iterator[Sequence[str]]:
    """Command lines of kubelets that are services of the host. Other processes of that name do not
    count, because any user can start one and so change doctor's advice."""
    for pid, words in process.command_lines(host):
        if os.path.basename(words[0]) == "kubelet":
            found = process.inspect(pid, host.proc)
            if found and found.unit and process.is_trusted(found):
                yield words


def _kubelet_file(host: HostRoot, name: str) -> dict[str, object]:
    try:
        path = host.resolve(name)
        found = files.read(path.agent, path.host)
        data = read.document(found.data).data if found else {}
    except (Refused, read.Broken):
        return {}
    return {str(key): value for key, value in data.items()} if isinstance(data, dict) else {}


def _flag(words: Sequence[str], name: str) -> str:
    """The value of a flag on a command line, "" without it; the last one counts."""
    found = ""
    for word, after in zip(words[1:], (*words[2:], ""), strict=False):
        key, equals, value = word.partition("=")
        if key in (f"--{name}", f"-{name}"):
            found = value if equals else after
    return found


@dataclass(frozen=True)
class Plugin:
    """A process of NVIDIA's device plugin with the settings that must fit the node. `driver_root`
    is its setting for the driver's root on the host."""

    pid: int
    strategy: tuple[str, ...] = ()
    prefix: str = ""
    hook: str = ""
    driver_root: str = "/"


def plugins(host: HostRoot) -> tuple[Plugin, ...]:
    """The running device plugins."""
    return tuple(
        _plugin(pid, words, environment(host, pid))
        for pid, words in process.command_lines(host)
        if os.path.basename(words[0]) == _PLUGIN
    )


def _plugin(pid: int, words: Sequence[str], env: dict[str, str]) -> Plugin:
    def setting(flag: str, variable: str) -> str:
        return _flag(words, flag) or env.get(variable, "")

    strategy = setting("device-list-strategy", "DEVICE_LIST_STRATEGY")
    return Plugin(
        pid,
        tuple(item for item in strategy.split(",") if item),
        setting("cdi-annotation-prefix", "CDI_ANNOTATION_PREFIX"),
        setting("nvidia-cdi-hook-path", "NVIDIA_CDI_HOOK_PATH"),
        setting("driver-root", "NVIDIA_DRIVER_ROOT") or "/",
    )


def environment(host: HostRoot, pid: int) -> dict[str, str]:
    """The environment of a process; {} if it cannot be read."""
    running = process.inspect(pid, host.proc)
    return (process.environment(running) if running else None) or {}


def installers(host: HostRoot) -> dict[int, str]:
    """Running installers of other toolkits: a description by pid."""
    found = {pid: os.path.basename(words[0]) for pid, words in process.command_lines(host)}
    return {pid: f"{name} (process {pid})" for pid, name in found.items() if name in _INSTALLERS}


@dataclass(frozen=True)
class Driver:
    """The driver's state. `gpus` is the number of NVIDIA GPUs on the PCI bus; `module` and
    `library` are versions, "" if missing; `missing_nodes` are host paths.

    `problem` says why no driver is found. `other` names other drivers that hold GPUs. `platform` is
    WSL2, Tegra or "". `root` is the host path of the driver root.
    """

    gpus: int = 0
    module: str = ""
    library: str = ""
    missing_nodes: tuple[str, ...] = ()
    problem: str = ""
    other: str = ""
    platform: str = ""
    root: str = ""


def driver(settings: Settings, host: HostRoot) -> Driver:
    """The driver's state, as the kernel and the files show it."""
    gpus = [*_gpus(host)]
    problem = library = above = ""
    missing: tuple[str, ...] = ()
    try:
        library = drivers.find(host, settings).version
    except AgentError as error:
        problem = error.message
    with contextlib.suppress(AgentError, OSError):
        root = drivers.likely_root(host, settings)
        above = root.host_path if root and library else ""
        missing = tuple(map(str, device_nodes.missing(settings, host, root)))
    return Driver(
        gpus=len(gpus),
        module=kernel.version(host) or "",
        library=library,
        missing_nodes=missing,
        problem=problem,
        other=", ".join(sorted({*gpus} - {"", "nvidia"})),
        platform="WSL2" if platform.wsl(host) else "Tegra" if platform.tegra(host) else "",
        root=above,
    )


def _gpus(host: HostRoot) -> Iterator[str]:
    """For each NVIDIA GPU on the PCI bus the driver that holds it; "" for none."""
    for base in (f"{_PCI}/{name}" for name in names(host.agent_path(_PCI))):
        is_display = text(host, f"{base}/class").startswith("0x03")
        if is_display and text(host, f"{base}/vendor") == "0x10de":
            try:
                yield os.path.basename(os.readlink(host.agent_path(f"{base}/driver")))
            except OSError:
                yield ""
