"""The driver's control nodes in /dev. They are missing if nothing runs nvidia-modprobe.

Invariant: a name shows a node with its final numbers and mode, or what was there before. A node
with the right numbers is not touched. Major numbers are those that the kernel gave the loaded
modules. If a node cannot be made there is only a warning, because the driver's own tools may make
it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agent.cdi.driver import driver, majors
from agent.cdi.driver.majors import Majors
from agent.cdi.driver.root import DriverRoot
from agent.errors import reason
from agent.host import files, nofollow
from agent.host.paths import HostRoot
from agent.log import Log
from agent.options.settings import Settings

_MODE = 0o666
_MKNOD = 27  # CAP_MKNOD, capabilities(7)
_NO_NODE = "it is no device node; move it away"

# (name, names of the module in /proc/devices, minor number), as in nvidia-container-toolkit 1.20,
# pkg/system/nvdevices. The module was called nvidia-frontend before 550.
_NODES = (
    ("nvidiactl", ("nvidia", "nvidia-frontend"), 255),
    ("nvidia-modeset", ("nvidia", "nvidia-frontend"), 254),
    ("nvidia-uvm", ("nvidia-uvm",), 0),
    ("nvidia-uvm-tools", ("nvidia-uvm",), 1),
)


@dataclass(frozen=True)
class MissingNode:
    """A node that does not exist or has wrong numbers. `agent` and `host` are its paths."""

    name: str
    major: int
    minor: int
    agent: str
    host: str

    def __str__(self) -> str:
        return f"{self.host} ({self.major}:{self.minor})"

    @property
    def exists(self) -> bool:
        """Does the node exist now, with the right numbers?"""
        try:
            found = os.stat(self.agent, follow_symlinks=False)
        except OSError:
            return False
        numbers = os.makedev(self.major, self.minor)
        return stat.S_ISCHR(found.st_mode) and found.st_rdev == numbers

    def failure(self, why: str) -> str:
        """The warning that the node cannot be made because of `why`."""
        return f"cannot make the device node {self}: {why}"


def control_nodes(kernel: Majors) -> Iterator[tuple[str, int, int]]:
    """(name, major number, minor number) of each control node whose module the kernel lists."""
    numbers = {name: major for major, names in kernel.names.items() for name in names}
    for name, modules, minor in _NODES:
        major = next((numbers[module] for module in modules if module in numbers), None)
        if major is not None:
            yield name, major, minor


def missing(settings: Settings, host: HostRoot, root: DriverRoot | None) -> tuple[MissingNode, ...]:
    """The nodes of --create-device-nodes that a driver in `root` lacks. () without CDI, as in
    NVIDIA's installer."""
    option = settings.create_device_nodes
    if not settings.cdi_enabled or "control" not in option or "none" in option:
        return ()
    needed = tuple(control_nodes(majors.read(host)))
    dev = _dev_root(settings, host, root) if root and needed else None
    directory = dev.resolve("/dev") if dev else None
    if dev is None or directory is None:
        return ()
    above, host_dir = dev.agent_path(directory), dev.host_path.rstrip("/") + "/dev"
    found = (MissingNode(*node, f"{above}/{node[0]}", f"{host_dir}/{node[0]}") for node in needed)
    return tuple(item for item in found if not item.exists)


def _dev_root(settings: Settings, host: HostRoot, root: DriverRoot) -> DriverRoot | None:
    """The first device root that has nodes of the driver, else the first one; None if there is no
    root."""
    searched = driver.dev_roots(host, settings, root)
    used = (dev for dev in searched if driver.device_nodes((dev,)))
    return next(used, searched[0] if searched else None)


def possible(needed: Iterable[MissingNode]) -> tuple[tuple[MissingNode, ...], tuple[str, ...]]:
    """The nodes that can be made, and a warning for each other node."""
    found = [(item, _obstacle(item.agent)) for item in needed]
    return (
        tuple(item for item, why in found if why is None),
        tuple(item.failure(why) for item, why in found if why is not None),
    )


def create(needed: tuple[MissingNode, ...], log: Log) -> tuple[str, ...]:
    """Make the nodes. Returns the host paths of the new ones; failures are logged."""
    made = []
    for above in {os.path.dirname(item.agent) for item in needed}:
        files.sweep(above, [item.name for item in needed])  # temporary files of a killed process
    for item in needed:
        try:
            make_node(item.agent, item.major, item.minor, _MODE)
        except OSError as error:
            log.warning("device node not made", error=item.failure(reason(error)))
            continue
        made.append(item.host)
    if made:
        log.info("device nodes made", paths=made)
    return tuple(made)


def _obstacle(path: str) -> str | None:
    """The reason why no node can be made at an agent path, None if no reason is known. Changes
    nothing."""
    try:
        if not stat.S_ISCHR(os.stat(path, follow_symlinks=False).st_mode):
            return _NO_NODE
    except FileNotFoundError:
        pass
    except OSError as error:
        return reason(error)
    if not os.access(os.path.dirname(path), os.W_OK):
        return "its directory cannot be written"
    return None if _may_make() else "this process has no right to make one (CAP_MKNOD)"


def _may_make() -> bool:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            rights = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return True  # the attempt will show it
    return bool(rights >> _MKNOD & 1)


def make_node(path: str, major: int, minor: int, mode: int) -> None:
    """Make a character device at a resolved agent path. Raises OSError.

    It replaces a character device only, never a file, a link or a directory.
    """
    with nofollow.open_parent(path) as (directory, base):
        temporary = files.temporary_name(base)
        try:
            found = os.stat(base, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            found = None
        if found is not None and not stat.S_ISCHR(found.st_mode):
            raise OSError(_NO_NODE)
        numbers = os.makedev(major, minor)
        os.mknod(temporary, stat.S_IFCHR | 0o600, numbers, dir_fd=directory)
        try:
            _set_mode(directory, temporary, numbers, mode)
            os.rename(temporary, base, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)
            raise


def _set_mode(above: int, name: str, numbers: int, mode: int) -> None:
    """Give a new node its mode, by its descriptor. The driver's container can write to /dev of its
    root, and could put a link or another file in the place of the node."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        found = os.fstat(fd)
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != numbers:
            raise OSError("somebody put another file in its place; examine that file")
        os.chmod(f"/proc/self/fd/{fd}", mode)  # fchmod(2) refuses a descriptor of O_PATH
    finally:
        os.close(fd)
