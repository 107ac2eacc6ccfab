"""What is on the node besides the runtime: specs, driver, kubelet, device plugin, other tools.

Invariant: reads only. Of the environment of foreign processes only the settings of the device
plugin are kept, whose values are no secrets.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence

from agent.cdi.driver import driver, kernel, platform
from agent.cdi.specs import read
from agent.cri import process
from agent.decide import DEFAULT_DIRS
from agent.doctor.facts import (
    DriverFacts,
    KubeletFacts,
    MachineFacts,
    NotSeen,
    PluginFacts,
    SpecFacts,
    SpecProblem,
    UnitFacts,
)
from agent.errors import AgentError, Refused, Unreachable
from agent.host import files
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings
from agent.plan.context import Reach
from agent.reports import specs as reports
from agent.runtimes import find
from agent.runtimes.base import Runtime
from agent.systemd.units import SystemdError
from agent.toolkit import device_nodes, programs

_INSTALLERS = ("nvidia-ctk-installer", "nvidia-toolkit")
_PLUGIN = "nvidia-device-plugin"
_KUBELET_CONFIG = "/var/lib/kubelet/config.yaml"
_PCI = "/sys/bus/pci/devices"
_ENFORCE = "/sys/fs/selinux/enforce"
_PROFILES = "/sys/kernel/security/apparmor/profiles"
_NRI_SOCKET, _NRI_PLUGINS = "/var/run/nri/nri.sock", "/opt/nri/plugins"
_DRA = tuple(f"/var/lib/kubelet/plugins/{name}.nvidia.com" for name in ("gpu", "compute-domain"))
_FOR_ROOT = ("/var/lib/kubelet/config.yaml", _PROFILES)  # what often only root may read
_ENDINGS = (".json", ".yaml")


def machine(settings: Settings, host: HostRoot, runtime: Runtime | None) -> MachineFacts:
    """The node itself; `runtime` is the one that is looked at."""
    installers = {
        pid: f"{os.path.basename(words[0])} (process {pid})"
        for pid, words in process.command_lines(host)
        if os.path.basename(words[0]) in _INSTALLERS
    }
    running = runtime.process if runtime else None
    return MachineFacts(
        root=os.geteuid() == 0,
        enforcing=_line(host, _ENFORCE) == "1",
        installers=tuple(installers.values()),
        runtimes=tuple(_listening(settings, host, runtime)),
        unread=tuple(name for name in _FOR_ROOT if _is_denied(host, name)),
        profiles=tuple(_enforced(_text(host, _PROFILES).splitlines())),
        confined=next(iter(_enforced([_confinement(running)])), ""),
        nri=os.path.exists(host.agent_path(_NRI_SOCKET)),
        nri_asked=tuple(name for pid, name in installers.items() if _asks_for_nri(host, pid)),
        nri_plugins=_names(host, _NRI_PLUGINS),
        dra=next((name for name in _DRA if os.path.isdir(host.agent_path(name))), ""),
    )


def _asks_for_nri(host: HostRoot, pid: int) -> bool:
    running = process.inspect(pid, host.proc)
    env = (process.environment(running) if running else None) or {}
    return env.get("ENABLE_NRI_PLUGIN", "").lower() in ("1", "t", "true")


def _confinement(running: process.Process | None) -> str:
    """The AppArmor profile of a process, as the kernel writes it: `NAME (enforce)`."""
    if running is None:
        return ""
    try:
        path = f"{running.proc}/{running.pid}/attr/current"
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(256).strip("\0\n")
    except OSError:
        return ""


def _enforced(lines: Sequence[str]) -> Iterator[str]:
    """The names of AppArmor profiles that are in force; parts of profiles are left out."""
    for line in lines:
        name, _, mode = line.rpartition(" (")
        if mode.rstrip(")") in ("enforce", "kill") and "//" not in name:
            yield name


def units(host: HostRoot, reach: Reach, runtime: Runtime) -> tuple[UnitFacts, ...]:
    """The units that go down with the runtime's. Raises NotSeen."""
    name = runtime.process.unit if runtime.process else None
    if not name:
        raise NotSeen("no systemd unit runs the runtime")
    if os.geteuid() != 0:
        raise NotSeen("only root may ask systemd")
    try:
        systemd, unit = reach(host, name)
        bound = systemd.ties(name).bound
        found = [systemd.unit(other) for other in dict.fromkeys((*bound, *unit.carries))]
    except SystemdError as error:
        raise NotSeen(f"systemd cannot be asked: {error}") from error
    return tuple(
        UnitFacts(item.name, str(item), item.up, item.name in bound)
        for item in found if item.load == "loaded"
    )  # fmt: skip


def _listening(settings: Settings, host: HostRoot, runtime: Runtime | None) -> Iterator[str]:
    """Sockets of other runtimes behind which somebody listens."""
    for endpoint in find.sockets(settings, host):
        if runtime is not None and endpoint.socket.host == runtime.socket.host:
            continue
        with contextlib.suppress(Unreachable, OSError):
            process.peer(endpoint.socket.agent, endpoint.socket.host, 1.0)
            yield endpoint.socket.host


def _line(host: HostRoot, name: str) -> str:
    """The text of a small file of the kernel's; "" where it cannot be read."""
    return _text(host, name, 256).strip()


def _text(host: HostRoot, name: str, limit: int = 1 << 16) -> str:
    try:
        with open(host.resolve(name).agent, encoding="ascii", errors="replace") as file:
            return file.read(limit)
    except (OSError, Refused):
        return ""


def _is_denied(host: HostRoot, name: str) -> bool:
    """Is there such a file or directory that we may not read?"""
    path = host.agent_path(name)
    try:
        return os.path.exists(path) and not os.access(path, os.R_OK, effective_ids=True)
    except OSError:
        return False


def _names(host: HostRoot, name: str) -> tuple[str, ...]:
    try:
        return tuple(sorted(files.names(host.resolve(name).agent)))
    except (OSError, ValueError, AgentError):
        return ()


def specs(settings: Settings, host: HostRoot, runtime: Runtime | None) -> SpecFacts:
    """All specs as `runtime` sees them, and those in usual directories that it does not read."""
    found = reports.inventory(settings, host, runtime)
    writers = {file.name: file.writer for file in found.files}
    problems = tuple(
        SpecProblem(
            item.file, writers.get(item.file, ""), item.problem.what, item.problem.remedy,
            item.problem.where, item.problem.severity == "error",
        )
        for item in found.findings
    )  # fmt: skip
    devices = tuple((d.name, d.file, d.writer, str(d.state), d.why) for d in found.devices)
    known = {item.path.host for item in found.directories if item.path and not item.unread}
    unread = [
        (item.name, _specs_in(item.path.agent))
        for item in found.directories
        if item.unread and item.path
    ]
    for name in DEFAULT_DIRS:
        with contextlib.suppress(AgentError):
            path = host.resolve(name)
            if path.host not in known and name not in [known_name for known_name, _ in unread]:
                unread.append((name, _specs_in(path.agent)))
    return SpecFacts(
        tuple(item.name for item in found.directories if not item.unread),
        problems, devices, tuple((name, names) for name, names in unread if names),
        tuple(_misnamed(item.path for item in found.directories if item.path and not item.unread)),
        tuple(_open(host, [item.path for item in found.directories if item.path],
                    [file.name for file in found.files])),
    )  # fmt: skip


def _specs_in(directory: str) -> tuple[str, ...]:
    try:
        return tuple(n for n in sorted(files.names(directory)) if n.endswith(_ENDINGS))
    except (OSError, ValueError):
        return ()


def _open(host: HostRoot, directories: list[HostPath], names: list[str]) -> Iterator[str]:
    """Directories and specs that others than root can write, or that are another user's."""
    for name, path in [(item.host, item.agent) for item in directories] + [
        (name, host.agent_path(name)) for name in names
    ]:
        with contextlib.suppress(OSError):
            found = os.stat(path)
            if found.st_mode & 0o002 or found.st_uid not in (0, os.geteuid()):
                yield name


def _misnamed(directories: Iterable[HostPath]) -> Iterator[str]:
    """Files whose content is a spec of NVIDIA's, and whose names no runtime reads."""
    for directory in directories:
        try:
            names = sorted(files.names(directory.agent))
        except (OSError, ValueError):
            continue
        for path in (directory.child(name) for name in names if not name.endswith(_ENDINGS)):
            with contextlib.suppress(Refused):
                found = files.read(path.agent)
                if found and b"cdiVersion" in found.data and b"nvidia.com/" in found.data:
                    yield path.host


def kubelet(host: HostRoot) -> KubeletFacts:
    """The kubelet, by its command line and its file."""
    words = next(_kubelets(host), ())
    name = _flag(words, "config") or _KUBELET_CONFIG
    said = _kubelet_file(host, name)
    flag = _flag(words, "cgroup-driver")
    endpoint = _flag(words, "container-runtime-endpoint") or said.get("containerRuntimeEndpoint")
    return KubeletFacts(
        cgroups=flag or str(said.get("cgroupDriver") or ""),
        cgroups_source="the kubelet's command line" if flag else name,
        socket=str(endpoint or "").removeprefix("unix://"),
    )


def _kubelets(host: HostRoot) -> Iterator[Sequence[str]]:
    """Command lines of services of the host that are a kubelet. Anybody can call a process so, and
    what it is told decides about advice."""
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
    """The value of a flag on a command line; the last one counts."""
    found = ""
    for word, after in zip(words[1:], (*words[2:], ""), strict=False):
        key, equals, value = word.partition("=")
        if key in (f"--{name}", f"-{name}"):
            found = value if equals else after
    return found


def plugins(host: HostRoot) -> tuple[PluginFacts, ...]:
    """The running device plugins, with their settings: the command line beats the environment."""
    return tuple(
        _plugin(host, pid, words)
        for pid, words in process.command_lines(host)
        if os.path.basename(words[0]) == _PLUGIN
    )


def _plugin(host: HostRoot, pid: int, words: Sequence[str]) -> PluginFacts:
    running = process.inspect(pid, host.proc)
    env = (process.environment(running) if running else None) or {}

    def setting(flag: str, variable: str) -> str:
        return _flag(words, flag) or env.get(variable, "")

    strategy = setting("device-list-strategy", "DEVICE_LIST_STRATEGY")
    hook = setting("nvidia-cdi-hook-path", "NVIDIA_CDI_HOOK_PATH")
    return PluginFacts(
        pid,
        tuple(item for item in strategy.split(",") if item),
        setting("cdi-annotation-prefix", "CDI_ANNOTATION_PREFIX"),
        hook,
        bool(hook) and programs.runs(host, hook) is None,
        setting("driver-root", "NVIDIA_DRIVER_ROOT") or "/",
    )


def driver_facts(settings: Settings, host: HostRoot) -> DriverFacts:
    """The driver, in the kernel and in files."""
    gpus, others = _gpus(host)
    problem = library = above = ""
    missing: tuple[str, ...] = ()
    try:
        library = driver.find(host, settings).version
    except AgentError as error:
        problem = error.message
    with contextlib.suppress(AgentError, OSError):
        root = driver.root_of(host, settings)
        above = root.host_path if root and library else ""
        missing = tuple(map(str, device_nodes.missing(settings, host, root)))
    return DriverFacts(
        gpus=gpus,
        module=kernel.version(host) or "",
        library=library,
        missing_nodes=missing,
        problem=problem,
        other=", ".join(others),
        platform="WSL2" if platform.wsl(host) else "Tegra" if platform.tegra(host) else "",
        root=above,
    )


def _gpus(host: HostRoot) -> tuple[int, list[str]]:
    """The number of NVIDIA GPUs on the PCI bus, and the drivers that hold them but NVIDIA's."""
    try:
        names = files.names(host.agent_path(_PCI))
    except (OSError, ValueError):
        return 0, []
    found, others = 0, set()
    for name in names:
        base = f"{_PCI}/{name}"
        if _line(host, f"{base}/vendor") != "0x10de":
            continue
        if not _line(host, f"{base}/class").startswith("0x03"):
            continue
        found += 1
        with contextlib.suppress(OSError):
            used = os.path.basename(os.readlink(host.agent_path(f"{base}/driver")))
            others |= {used} - {"nvidia"}
    return found, sorted(others)
