"""The NVIDIA driver of a node, as files: its version, libraries, programs and device nodes.

Invariant: nothing of the driver is loaded or run, so a broken libnvidia-ml is only a file here.
Files are searched in the order of NVIDIA's generator v1.20 (pkg/nvcdi, mode management), because
the order decides the arguments of hooks.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from agent.cdi.driver import loader, platform
from agent.cdi.driver.root import DriverRoot
from agent.errors import DriverDistrusted, NoDriver, Refused
from agent.host import budget, files
from agent.host.paths import HostRoot, is_below
from agent.options.device_classes import DEVICE_CLASSES
from agent.options.settings import Settings

HOST_DRIVER, DRIVER_CONTAINER = "/", "/run/nvidia/driver"
NOWHERE = "/dev/null"  # stands for a directory without entries

_MACHINES = ("x86_64-linux-gnu", "aarch64-linux-gnu")
_LIBRARY_DIRECTORIES = (
    "/",
    "/usr/lib64",
    *(f"/usr/lib/{machine}" for machine in _MACHINES),
    *(f"/usr/lib/{machine}/nvidia/current" for machine in _MACHINES),
    "/lib64",
    *(f"/lib/{machine}" for machine in _MACHINES),
    *(f"/lib/{machine}/nvidia/current" for machine in _MACHINES),
)
_PROGRAM_DIRECTORIES = (
    "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin",
)  # fmt: skip
_VERSION = re.compile(r"\d+(\.\d+){1,3}")

_NODES = (
    ("/dev", "nvidia*"),
    ("/dev/nvidia-caps", "nvidia-cap*"),
    ("/dev/nvidia-caps-imex-channels", "channel*"),
)
# Prefixes of nodes in /dev that belong to other specs: those of the device classes.
_OTHER_NODES = ("nvidia-nvlink", *(
    nodes.pattern.removesuffix("*")
    for device_class in DEVICE_CLASSES for nodes in device_class.nodes if nodes.directory == "/dev"
))  # fmt: skip

_SEARCHED_BY_DEFAULT = (
    f"searched there: /, /lib64, /usr/lib64, /lib and /usr/lib with {' or '.join(_MACHINES)} (and "
    "nvidia/current below), and what /etc/ld.so.cache lists"
)


@dataclass(frozen=True)
class Node:
    """A character device of the driver. `inside` is its path in the device root."""

    inside: str
    host_path: str
    major: int
    minor: int
    mode: int
    gid: int

    @property
    def host_path_if_other(self) -> str:
        """The value of `hostPath` in a spec: "" if it equals the path in the container."""
        return "" if self.host_path == self.inside else self.host_path


@dataclass(frozen=True)
class Driver:
    """A driver on the node. Paths are inside `root`.

    `directories` have the libraries of its version. `search` and `configs` are the directories of
    the options --library-search-path and --config-search-path; () means the usual directories.
    `devs` are the device roots in the order of search. Each of `nodes` comes from the first device
    root that has it: the /dev of a driver container may lack nodes that were made later, or on the
    host only (dra-driver-nvidia-gpu#787).
    """

    root: DriverRoot
    version: str
    directories: tuple[str, ...]
    nodes: tuple[Node, ...]
    devs: tuple[DriverRoot, ...]
    search: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()

    def libraries(self) -> tuple[str, ...]:
        """Paths of the libraries of the driver's version, and of the NVVM compiler, which has its
        own version."""
        places = (*self.directories, *(f"{path}/vdpau" for path in self.directories))
        versioned = self.root.real_files(places, f"*.so.{self.version}")
        nvvm = self.root.real_files(self.directories, "libnvidia-nvvm70.so.*")
        return tuple(dict.fromkeys((*versioned, *nvvm)))

    def find_libraries(self, pattern: str) -> tuple[str, ...]:
        """Paths of the libraries whose names match `pattern`, of any version, wherever the loader
        would find them."""
        return libraries(self.root, pattern, self.search)

    def node(self, path: str) -> Node | None:
        """The character device at a path; None if there is none."""
        return next(iter(nodes_at(self.devs, [os.path.split(path)])), None)

    def read_link(self, path: str) -> str | None:
        """The target of the link at `path` in the first device root that has it; None if no root
        has."""
        return next((found for dev in self.devs if (found := dev.read_link(path))), None)

    def searched_directories(self, path: str) -> str:
        """The host directories in which the device node `path` is searched, joined by "or" for a
        message."""
        above = os.path.dirname(path)
        return " or ".join(dev.host_path.rstrip("/") + above for dev in self.devs)

    def program(self, name: str) -> str | None:
        """The path of an executable on the usual PATH; None if there is none. Links in the path are
        kept."""
        for directory in _PROGRAM_DIRECTORIES:
            path = os.path.join(directory, name)
            if self.root.trusted_file(path, lambda mode: stat.S_ISREG(mode) and bool(mode & 0o111)):
                return path
        return None


def host_root(host: HostRoot) -> DriverRoot:
    """A driver root for a driver that is installed on the host itself."""
    return DriverRoot(host.locate(HOST_DRIVER).agent, HOST_DRIVER, host)


def roots(host: HostRoot, settings: Settings) -> tuple[DriverRoot, ...]:
    """The driver roots to try, in order: the root of the options alone, or a driver container's,
    then the host."""
    option, ctr_path = _root_option(host, settings), settings.driver_root_ctr_path
    names = (option,) if option else (DRIVER_CONTAINER, HOST_DRIVER)
    return tuple(root for name in names if (root := _open(host, name, ctr_path)))


def _root_option(host: HostRoot, settings: Settings) -> str | None:
    """The host path of the driver root that options give; None without such an option."""
    ctr_path = settings.driver_root_ctr_path
    return settings.driver_root or (host.name(ctr_path) if ctr_path else None)


def _open(host: HostRoot, name: str, ctr_path: str | None) -> DriverRoot | None:
    """The driver root at the host path `name`; None if there is no such directory. `ctr_path`: the
    agent path of the same directory, which options may give."""
    try:
        agent = ctr_path if ctr_path and os.path.isdir(ctr_path) else host.locate(name).agent
    except Refused:
        return None
    return DriverRoot(agent, host.name(name), host) if os.path.isdir(agent) else None


def root_option_or_host(host: HostRoot, settings: Settings) -> DriverRoot:
    """The driver root of the options, else the host. Tegra and WSL2, which use it, have no driver
    containers."""
    found = roots(host, settings) if _root_option(host, settings) else ()
    return found[0] if found else host_root(host)


def dev_roots(host: HostRoot, settings: Settings, root: DriverRoot) -> tuple[DriverRoot, ...]:
    """The roots to search for device nodes, in order: the root of the options alone, or the driver
    root, then the host.

    gpu-operator always gives --dev-root: the driver root, if that has nvidiactl. An option that
    names the driver root therefore counts as no option, and the host is searched, too.
    """
    ctr_path = settings.dev_root_ctr_path
    option = settings.dev_root or (host.name(ctr_path) if ctr_path else None)
    found = _open(host, option, ctr_path) if option else None
    if option and option != root.host_path:
        return (found,) if found else ()
    first = found or root
    return (first,) if first.host_path == HOST_DRIVER else (first, host_root(host))


def find(host: HostRoot, settings: Settings) -> Driver:
    """The first driver that is found. Raises NoDriver, with what is missing and the searched
    directories, or DriverDistrusted if another user than root can change a driver root."""
    tried = roots(host, settings)
    for root in tried:
        if root.distrust:
            continue
        search = _inside(root, settings.library_search_paths)
        version = _version(host, root, search)
        if version is None:
            continue
        devs = dev_roots(host, settings, root)
        if nodes := device_nodes(devs):
            for other in tried[: tried.index(root)]:
                if other.distrust:
                    root.left_out[other.host_path] = other.distrust
            directories = map(os.path.dirname, libraries(root, f"lib*.so.{version}", search))
            configs = _inside(root, settings.config_search_paths)
            return Driver(
                root, version, tuple(dict.fromkeys(directories)), nodes, devs, search, configs
            )
        refuse_distrusted(devs)
        platform.refuse_other(host)
        raise NoDriver(
            f"cannot make a CDI spec: driver {version} is in {root.host_path}, but there are no "
            f"NVIDIA device nodes; {first_left_out(devs, '/dev/') or 'load its kernel module'}"
        )
    refuse_distrusted(tried)
    platform.refuse_other(host)
    searched = settings.library_search_paths
    names = " or ".join(searched or (root.host_path for root in tried))
    names = names or settings.driver_root or HOST_DRIVER
    raise NoDriver(
        f"cannot make a CDI spec: there is no NVIDIA driver (libcuda or libnvidia-ml) in {names}; "
        + (first_left_out(tried) or "install one, or give --driver-root")
        + ("" if searched else f"; {_SEARCHED_BY_DEFAULT}")
    )


def published_roots(driver: Driver) -> tuple[str, str]:
    """Host paths of the driver root and of the root of its device nodes, for a device plugin.

    NVIDIA's plugin (0.17 to 0.20) supports one root of device nodes. The root of the first node is
    published; that is nvidiactl's root wherever all nodes are in one place.
    """
    first = driver.nodes[0]
    dev = next(dev for dev in driver.devs if is_below(first.host_path, dev.host_path))
    return driver.root.host_path, dev.host_path


def refuse_distrusted(tried: Iterable[DriverRoot]) -> None:
    """Raise DriverDistrusted if another user than root can change one of these roots."""
    for root in tried:
        if root.distrust:
            raise DriverDistrusted(
                f"cannot make a CDI spec: {root.host_path}, where the driver is looked for, can "
                f"be changed by others than root: {root.distrust}"
            )


def first_left_out(tried: Iterable[DriverRoot], below: str = "") -> str:
    """The first path in these roots that was left out, with the reason; "" if there is none.
    `below`: a path in the root, such as `/dev/`; other paths are not considered."""
    found = ((path, why) for root in tried for path, why in root.left_out.items()
             if path.startswith(root.host_path.rstrip("/") + below))  # fmt: skip
    return next((f"{path} does not count: {why}" for path, why in found), "")


def likely_root(host: HostRoot, settings: Settings) -> DriverRoot | None:
    """The first driver root that has a driver's libraries, else the first root of all; None if no
    root exists."""
    tried, search = roots(host, settings), settings.library_search_paths
    found = (root for root in tried if _versions(root, _inside(root, search)))
    return next(found, tried[0] if tried else None)


def _inside(root: DriverRoot, directories: Iterable[str]) -> tuple[str, ...]:
    """Paths inside a root of directories of the host; NOWHERE for a directory outside the root."""
    above = root.host_path.rstrip("/")
    return tuple(path.removeprefix(above) if is_below(path, root.host_path) else NOWHERE
                 for path in directories)  # fmt: skip


def watch_paths(host: HostRoot, settings: Settings) -> Iterator[str]:
    """Agent paths that change when the driver comes, goes or is exchanged. `PREFIX*DIRECTORY`
    stands for all names with that prefix in a directory, `=PATH` for a path of which only the owner
    counts. A directory of libraries changes with its entries."""
    name = _root_option(host, settings) or DRIVER_CONTAINER
    yield settings.driver_root_ctr_path or host.agent_path(host.name(name))
    for root in roots(host, settings):
        yield from (f"={path}" for path in root.judged_paths)
        yield root.agent_path("/")
        names = _inside(root, settings.library_search_paths) or _LIBRARY_DIRECTORIES[1:]
        for path in dict.fromkeys(root.resolve(name) for name in names):
            if path is not None:
                yield root.agent_path(path)
        for dev in dev_roots(host, settings, root):
            yield f"nvidia*{dev.agent_path('/dev')}"
            for directory, _ in _NODES[1:]:  # a directory's time changes with its names
                yield dev.agent_path(directory)
            for directory in ("/dev/dri", "/dev/dri/by-path"):
                yield f"*{dev.agent_path(directory)}"


def _version(host: HostRoot, root: DriverRoot, search: Sequence[str]) -> str | None:
    """The driver's version; None without a driver. An upgrade may leave libraries of several
    versions. Then the version of the loaded kernel module counts, because only its libraries work
    with it. (NVIDIA's generator asks NVML.)"""
    found = _versions(root, search)
    if len(found) > 1:
        from agent.cdi.driver import kernel  # few nodes need it here

        if (loaded := kernel.version(host)) in found:
            return loaded
    return next(iter(found), None)


def _versions(root: DriverRoot, search: Sequence[str]) -> tuple[str, ...]:
    found = (
        os.path.basename(path).removeprefix(library)
        for library in ("libcuda.so.", "libnvidia-ml.so.")
        for path in libraries(root, f"{library}*.*", search)
    )
    return tuple(dict.fromkeys(version for version in found if _VERSION.fullmatch(version)))


def libraries(root: DriverRoot, pattern: str, search: Sequence[str] = ()) -> tuple[str, ...]:
    """Paths of the libraries in a root whose names match `pattern`: in the directories of `search`,
    else in the usual directories, else in the loader's cache."""
    if search:
        return root.real_files(search, pattern)
    found = root.real_files(_LIBRARY_DIRECTORIES, pattern)
    return found or _cached(root, pattern)


def _cached(root: DriverRoot, pattern: str) -> tuple[str, ...]:
    cache = root.trusted_file("/etc/ld.so.cache", stat.S_ISREG)
    try:
        limit = budget.LD_CACHE.size
        state = files.read(root.agent_path(cache.path), limit=limit) if cache else None
    except Refused:
        return ()
    real = (root.resolve(path) for path in (loader.cached_paths(state.data) if state else ()))
    return tuple(dict.fromkeys(
        path for path in real
        if path and fnmatch.fnmatchcase(os.path.basename(path), pattern) and root.trusted_file(path)
    ))  # fmt: skip


def device_nodes(devs: Sequence[DriverRoot]) -> tuple[Node, ...]:
    """The driver's character devices in device roots. Links do not count."""
    return tuple(
        node for node in nodes_at(devs, _NODES)
        if not node.inside.removeprefix("/dev/").startswith(_OTHER_NODES)
    )  # fmt: skip


def nodes_at(devs: Sequence[DriverRoot], places: Iterable[tuple[str, str]]) -> tuple[Node, ...]:
    """The character devices at these (directory, pattern) pairs, each from the first root that has
    it."""
    found: list[Node] = []
    for directory, pattern in places:
        nodes = {
            node.inside: node for dev in reversed(devs) for node in _nodes(dev, directory, pattern)
        }
        found += (nodes[path] for path in sorted(nodes))
    return tuple(found)


def _nodes(dev: DriverRoot, directory: str, pattern: str) -> Iterator[Node]:
    """The nodes of one root. A node whose numbers belong to another driver is left out."""
    devices = dev.devices(directory, pattern)
    above = dev.mount_source(directory) if devices else ""
    for name, status in devices:
        inside = os.path.join(directory, name)
        major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        if why := dev.majors.mismatch(inside, major, minor):
            dev.leave_out(inside, why)
            continue
        mode = stat.S_IMODE(status.st_mode)
        yield Node(inside, os.path.join(above, name), major, minor, mode, status.st_gid)
