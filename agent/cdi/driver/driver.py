"""The NVIDIA driver of a node, as files: its version, libraries, programs and device nodes.

Invariant: nothing of the driver is loaded or run, so a broken libnvidia-ml is only a file here.
What is looked for, and in which order, is what NVIDIA's generator v1.20 does for its management
spec (pkg/nvcdi), because the order decides the arguments of hooks.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from agent.cdi.driver import ldcache, platform
from agent.cdi.driver.root import DriverRoot
from agent.errors import AgentError, DriverDistrusted, NoDriver, Refused
from agent.host import budget, files
from agent.host.paths import HostRoot, is_below

HOST_DRIVER, DRIVER_CONTAINER = "/", "/run/nvidia/driver"
NOWHERE = "/dev/null"  # a directory in which nothing is

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
# These have specs of their own.
_OTHER_NODES = ("nvidia-fs", "nvidia-nvswitch", "nvidia-nvlink")

_SEARCHED = (
    f"searched there: /, /lib64, /usr/lib64, /lib and /usr/lib with {' or '.join(_MACHINES)} (and "
    "nvidia/current below), and what /etc/ld.so.cache lists"
)


@dataclass(frozen=True, slots=True)
class Node:
    """A character device of the driver: `inside` its device root, with what the kernel says."""

    inside: str
    host_path: str
    major: int
    minor: int
    mode: int
    gid: int


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver that is there. Paths are those inside `root`; `directories` are the ones that hold
    libraries of this version; `search` are the only ones with libraries and `configs` the only ones
    with configuration files, () for the usual ones; `nodes` are its device nodes, each from the
    first of the device roots `devs` that has it: a driver container's dev may lack those that came
    later, or that are made in the host's only (dra-driver-nvidia-gpu#787)."""

    root: DriverRoot
    version: str
    directories: tuple[str, ...]
    nodes: tuple[Node, ...]
    devs: tuple[DriverRoot, ...]
    search: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()

    def libraries(self) -> tuple[str, ...]:
        """Libraries of the driver's version, and the NVVM compiler that carries its own."""
        places = (*self.directories, *(f"{path}/vdpau" for path in self.directories))
        versioned = self.root.real_files(places, f"*.so.{self.version}")
        nvvm = self.root.real_files(self.directories, "libnvidia-nvvm70.so.*")
        return tuple(dict.fromkeys((*versioned, *nvvm)))

    def find_libraries(self, pattern: str) -> tuple[str, ...]:
        """Libraries by their names, of whatever version, wherever the loader would find them."""
        return libraries(self.root, pattern, self.search)

    def node(self, path: str) -> Node | None:
        """The character device at a path, if there is one."""
        return next(iter(nodes_at(self.devs, [os.path.split(path)])), None)

    def read_link(self, path: str) -> str | None:
        """Where a link in a device root points, as it is written."""
        return next((found for dev in self.devs if (found := dev.read_link(path))), None)

    def places(self, path: str) -> str:
        """The host's directories in which a device node is looked for, in words."""
        above = os.path.dirname(path)
        return " or ".join(dev.host_path.rstrip("/") + above for dev in self.devs)

    def program(self, name: str) -> str | None:
        """A program by its name, spelled as it is found on the usual path."""
        for directory in _PROGRAM_DIRECTORIES:
            path = os.path.join(directory, name)
            if self.root.take(path, lambda mode: stat.S_ISREG(mode) and bool(mode & 0o111)):
                return path
        return None


@dataclass(frozen=True, slots=True)
class Places:
    """Where to look: host names and agent paths as options gave them, None where nobody said;
    `libraries` and `configs` are directories on the host, below the driver root."""

    driver_root: str | None = None
    driver_root_seen: str | None = None
    dev_root: str | None = None
    dev_root_seen: str | None = None
    libraries: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()


def roots(host: HostRoot, places: Places) -> tuple[DriverRoot, ...]:
    """The driver roots to try: the one asked for, else a driver container's, then the host's."""
    asked = _asked(host, places.driver_root, places.driver_root_seen)
    names = (asked,) if asked else (DRIVER_CONTAINER, HOST_DRIVER)
    found = (_open(host, name, places.driver_root_seen) for name in names)
    return tuple(root for root in found if root)


def _asked(host: HostRoot, name: str | None, seen: str | None) -> str | None:
    """The host's name of a directory of which an option gives one name or both."""
    return name or (host.name(seen) if seen else None)


def _open(host: HostRoot, name: str, seen: str | None) -> DriverRoot | None:
    try:
        agent = seen if seen and os.path.isdir(seen) else host.locate(name).agent
    except Refused:
        return None
    return DriverRoot(agent, host.name(name), host) if os.path.isdir(agent) else None


def dev_roots(host: HostRoot, places: Places, root: DriverRoot) -> tuple[DriverRoot, ...]:
    """Where device nodes may be: as asked for, else below the driver root, then the host's.

    gpu-operator always asks, for the driver root where that has nvidiactl: what is not there is
    looked for in the host's then, too.
    """
    asked = _asked(host, places.dev_root, places.dev_root_seen)
    if asked and asked != root.host_path:
        found = _open(host, asked, places.dev_root_seen)
        return (found,) if found else ()
    first = (asked and _open(host, asked, places.dev_root_seen)) or root
    own = _open(host, HOST_DRIVER, None)
    return (first, own) if own and own.host_path != first.host_path else (first,)


def find(host: HostRoot, places: Places) -> Driver:
    """The driver. Raises NoDriver, saying what is missing and where it was looked for."""
    tried = roots(host, places)
    for root in tried:
        if root.distrust:
            continue
        search = _inside(root, places.libraries)
        version = _version(host, root, search)
        if version is None:
            continue
        devs = dev_roots(host, places, root)
        if nodes := device_nodes(devs):
            for other in tried[: tried.index(root)]:
                if other.distrust:
                    root.left_out[other.host_path] = other.distrust
            found = _directories(root, version, search)
            configs = _inside(root, places.configs)
            return Driver(root, version, found, nodes, devs, search, configs)
        refuse_distrusted(devs)
        platform.refuse_other(host)
        raise NoDriver(
            f"cannot make a CDI spec: driver {version} is in {root.host_path}, but there are no "
            f"NVIDIA device nodes; {left_out(devs, '/dev/') or 'load its kernel module'}"
        )
    refuse_distrusted(tried)
    platform.refuse_other(host)
    names = " or ".join(places.libraries or (root.host_path for root in tried))
    names = names or places.driver_root or HOST_DRIVER
    raise NoDriver(
        f"cannot make a CDI spec: there is no NVIDIA driver (libcuda or libnvidia-ml) in {names}; "
        + (left_out(tried) or "install one, or give --driver-root")
        + ("" if places.libraries else f"; {_SEARCHED}")
    )


def published(host: HostRoot, places: Places) -> tuple[str, str] | None:
    """Host paths of the driver's root and of the root of its device nodes, as a device plugin has
    to know them; None where there is no driver.

    NVIDIA's plugin (0.17 to 0.20) knows one root of device nodes: that of the first node counts,
    which is nvidiactl's wherever all nodes are in one place.
    """
    try:
        found = find(host, places)
    except AgentError:
        return None
    first = found.nodes[0]
    dev = next(dev for dev in found.devs if is_below(first.host_path, dev.host_path))
    return found.root.host_path, dev.host_path


def refuse_distrusted(tried: Iterable[DriverRoot]) -> None:
    """Raise DriverDistrusted where somebody else than root decides what is in a root."""
    for root in tried:
        if root.distrust:
            raise DriverDistrusted(
                f"cannot make a CDI spec: {root.host_path}, where the driver is looked for, can "
                f"be changed by others than root: {root.distrust}"
            )


def left_out(tried: Iterable[DriverRoot], below: str = "") -> str:
    """In words, the first of what was found and does not count; "" for nothing."""
    found = ((path, why) for root in tried for path, why in root.left_out.items()
             if path.startswith(root.host_path.rstrip("/") + below))  # fmt: skip
    return next((f"{path} does not count: {why}" for path, why in found), "")


def root_of(host: HostRoot, places: Places) -> DriverRoot | None:
    """Where the driver is, or would be looked for first; None where there is no such place."""
    tried = roots(host, places)
    found = (root for root in tried if _versions(root, _inside(root, places.libraries)))
    return next(found, tried[0] if tried else None)


def _inside(root: DriverRoot, directories: Iterable[str]) -> tuple[str, ...]:
    """Directories of the host by their names in a root; those that are elsewhere are not asked for
    here, and their names lead nowhere."""
    above = root.host_path.rstrip("/")
    return tuple(path.removeprefix(above) if is_below(path, root.host_path) else NOWHERE
                 for path in directories)  # fmt: skip


def watched(host: HostRoot, places: Places) -> Iterator[str]:
    """Agent paths that change when the driver comes, goes or is exchanged; `PREFIX*DIRECTORY` for
    names in a directory that start so, `=PATH` where only counts whose it is. Directories of
    libraries change with their entries."""
    name = _asked(host, places.driver_root, places.driver_root_seen)
    yield places.driver_root_seen or host.agent_path(host.name(name or DRIVER_CONTAINER))
    for root in roots(host, places):
        yield from (f"={path}" for path in root.way)
        yield root.agent_path("/")
        names = _inside(root, places.libraries) or _LIBRARY_DIRECTORIES[1:]
        for path in dict.fromkeys(root.resolve(name) for name in names):
            if path is not None:
                yield root.agent_path(path)
        for dev in dev_roots(host, places, root):
            yield f"nvidia*{dev.agent_path('/dev')}"
            for directory, _ in _NODES[1:]:  # a directory's time changes with its names
                yield dev.agent_path(directory)
            for directory in ("/dev/dri", "/dev/dri/by-path"):
                yield f"*{dev.agent_path(directory)}"


def _version(host: HostRoot, root: DriverRoot, search: Sequence[str]) -> str | None:
    """The driver's version. Of several, as an upgrade may leave them, the one of the module that
    is loaded, for no other one works with it: NVIDIA's generator asks NVML for it."""
    found = _versions(root, search)
    if len(found) > 1:
        from agent.cdi.driver import kernel  # which hardly any node needs for this

        loaded = kernel.version(host)
        return loaded if loaded in found else found[0]
    return found[0] if found else None


def _versions(root: DriverRoot, search: Sequence[str]) -> tuple[str, ...]:
    found = (
        os.path.basename(path).removeprefix(library)
        for library in ("libcuda.so.", "libnvidia-ml.so.")
        for path in libraries(root, f"{library}*.*", search)
    )
    return tuple(dict.fromkeys(version for version in found if _VERSION.fullmatch(version)))


def _directories(root: DriverRoot, version: str, search: Sequence[str]) -> tuple[str, ...]:
    found = libraries(root, f"lib*.so.{version}", search)
    return tuple(dict.fromkeys(os.path.dirname(path) for path in found))


def libraries(root: DriverRoot, pattern: str, search: Sequence[str] = ()) -> tuple[str, ...]:
    """Libraries in the usual directories, else those that the loader's cache knows; with `search`
    in those directories only."""
    if search:
        return root.real_files(search, pattern)
    found = root.real_files(_LIBRARY_DIRECTORIES, pattern)
    return found or _cached(root, pattern)


def _cached(root: DriverRoot, pattern: str) -> tuple[str, ...]:
    cache = root.take("/etc/ld.so.cache", stat.S_ISREG)
    try:
        limit = budget.LD_CACHE.size
        state = files.read(root.agent_path(cache.path), limit=limit) if cache else None
    except Refused:
        return ()
    real = (root.resolve(path) for path in (ldcache.paths(state.data) if state else ()))
    return tuple(dict.fromkeys(
        path for path in real
        if path and fnmatch.fnmatchcase(os.path.basename(path), pattern) and root.take(path)
    ))  # fmt: skip


def device_nodes(devs: Sequence[DriverRoot]) -> tuple[Node, ...]:
    """The driver's character devices below device roots; links are none."""
    return tuple(
        node for node in nodes_at(devs, _NODES)
        if not node.inside.removeprefix("/dev/").startswith(_OTHER_NODES)
    )  # fmt: skip


def nodes_at(devs: Sequence[DriverRoot], places: Iterable[tuple[str, str]]) -> tuple[Node, ...]:
    """Character devices by (directory, pattern), each from the first root that has it."""
    found = []
    for directory, pattern in places:
        there: dict[str, Node] = {}
        for dev in devs:
            for node in _nodes(dev, directory, pattern):
                there.setdefault(node.inside, node)
        found += [there[path] for path in sorted(there)]
    return tuple(found)


def _nodes(dev: DriverRoot, directory: str, pattern: str) -> Iterator[Node]:
    """Those of one root, without what is a device of another driver's."""
    found = dev.devices(directory, pattern)
    above = dev.mount_source(directory) if found else ""
    for name, seen in found:
        inside = os.path.join(directory, name)
        major, minor = os.major(seen.st_rdev), os.minor(seen.st_rdev)
        if why := dev.majors.foreign(inside, major, minor):
            dev.leave_out(inside, why)
            continue
        yield Node(
            inside=inside,
            host_path=os.path.join(above, name),
            major=major,
            minor=minor,
            mode=stat.S_IMODE(seen.st_mode),
            gid=seen.st_gid,
        )
