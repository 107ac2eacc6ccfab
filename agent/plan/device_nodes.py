"""Control nodes of the driver that are missing below /dev.

Invariant: a node that is right is not touched, and the lack of a right to make one is a warning:
where the driver's own tools make the nodes, nobody needs ours.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from agent.cdi.driver import driver
from agent.cdi.driver.root import DriverRoot
from agent.cdi.make import generate
from agent.errors import reason
from agent.host import files, mknod
from agent.plan.context import Context
from agent.toolkit import device_nodes
from agent.toolkit.device_nodes import ControlNode

_LIMIT = 1 << 16  # bytes of /proc/devices


@dataclass(frozen=True, slots=True)
class Missing:
    """A node that is not there, or has other numbers than the driver; both of its paths."""

    node: ControlNode
    agent: str
    host: str

    def __str__(self) -> str:
        return f"{self.host} ({self.node.major}:{self.node.minor})"


def missing(ctx: Context, root: DriverRoot | None) -> tuple[Missing, ...]:
    """What --create-device-nodes asks for and is not there, of a driver in `root`. With CDI only,
    as in NVIDIA's installer."""
    asked = ctx.settings.create_device_nodes
    if not ctx.settings.cdi_enabled or "control" not in asked or "none" in asked:
        return ()
    wanted = device_nodes.control_nodes(_proc_devices(ctx))
    dev = _dev_root(ctx, root) if root and wanted else None
    directory = dev.resolve("/dev") if dev else None
    if dev is None or directory is None:
        return ()
    agent, host = dev.agent_path(directory), dev.host_path.rstrip("/") + "/dev"
    found = (Missing(node, f"{agent}/{node.name}", f"{host}/{node.name}") for node in wanted)
    return tuple(item for item in found if not _is_there(item))


def _proc_devices(ctx: Context) -> str:
    try:
        with open(
            os.path.join(ctx.host.proc, "devices"), encoding="ascii", errors="replace"
        ) as file:
            return file.read(_LIMIT)
    except OSError:
        return ""


def _dev_root(ctx: Context, root: DriverRoot) -> DriverRoot | None:
    """Where the driver's nodes are already, else where they are looked for first."""
    tried = driver.dev_roots(ctx.host, generate.places(ctx.settings), root)
    used = (dev for dev in tried if driver.device_nodes((dev,)))
    return next(used, tried[0] if tried else None)


def possible(wanted: Iterable[Missing]) -> tuple[tuple[Missing, ...], tuple[str, ...]]:
    """Those that can be made, and a warning for each of the others."""
    found = [(item, mknod.obstacle(item.agent)) for item in wanted]
    return (
        tuple(item for item, why in found if why is None),
        tuple(_cannot(item, why) for item, why in found if why is not None),
    )


def _cannot(item: Missing, why: str) -> str:
    return f"cannot make the device node {item}: {why}"


def _is_there(item: Missing) -> bool:
    try:
        found = os.stat(item.agent, follow_symlinks=False)
    except OSError:
        return False
    numbers = os.makedev(item.node.major, item.node.minor)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == numbers


def create(ctx: Context, wanted: tuple[Missing, ...]) -> tuple[str, ...]:
    """Make what is missing, as far as we may. Gives host paths of what was made."""
    made = []
    for above in {os.path.dirname(item.agent) for item in wanted}:
        files.sweep(above, [item.node.name for item in wanted])  # of one that was killed
    for item in wanted:
        try:
            mknod.make(item.agent, item.node.major, item.node.minor, device_nodes.MODE)
        except OSError as error:
            ctx.log.warning("device node not made", error=_cannot(item, reason(error)))
            continue
        made.append(item.host)
    if made:
        ctx.log.info("device nodes made", paths=made)
    return tuple(made)
