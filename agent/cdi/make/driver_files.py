"""The parts that all specs of a driver share: libraries, programs, firmware and sockets. The
management spec has these files and every device node, as one device `all` for tools of the node.

Invariant: depends on the arguments and the files of the driver root only; NVML is not needed.
Entries are those of NVIDIA's generator (pkg/nvcdi v1.20), in its order, because the order decides
the arguments of hooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agent.cdi.driver.driver import Driver, Node
from agent.cdi.driver.root import DriverRoot
from agent.cdi.make import transform
from agent.cdi.make.hooks import Hooks
from agent.cdi.model import ContainerEdits, Device, DeviceNode, Mount, Spec

MANAGEMENT = "management.nvidia.com/gpu"
VOID = "NVIDIA_VISIBLE_DEVICES=void"  # keeps the nvidia runtime from a second injection

_MOUNT = ("ro", "nosuid", "nodev", "rbind", "rprivate")
_SOCKET = ("nosuid", "nodev", "rbind", "rprivate", "noexec")
_PROGRAMS = (
    "nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server", "nvidia-imex", "nvidia-imex-ctl",
)  # fmt: skip
_RUN = ("/run", "/var/run")
_SOCKETS = ("nvidia-persistenced/socket", "nvidia-fabricmanager/socket")
_TEMPORARY, _MPS = "/tmp", "nvidia-mps"  # noqa: S108 - the driver's own place


@dataclass(frozen=True)
class BuildContext:
    """The inputs of a spec besides the driver: the allowed hooks, the kernel's release, its extra
    firmware directory ("" for none) and the machine's architecture (`uname -m`)."""

    hooks: Hooks
    kernel: str
    firmware: str = ""
    machine: str = "x86_64"


def management_spec(driver: Driver, context: BuildContext, kind: str = MANAGEMENT) -> Spec:
    """The management spec of a driver, under `kind`."""
    common = transform.joined(file_edits(driver, context), ContainerEdits(env=(VOID,)))
    hooks = ContainerEdits(
        hooks=context.hooks.chmod_directories(node.inside for node in driver.nodes)
    )
    device = Device(transform.ALL, transform.joined(node_edits(driver.nodes), hooks))
    return transform.finish(Spec(kind, (device,), common))


def file_edits(driver: Driver, context: BuildContext) -> ContainerEdits:
    """Mounts of libraries, programs, firmware and sockets, and the hooks by which programs find the
    libraries."""
    root, libraries = driver.root, driver.libraries()
    return ContainerEdits(
        env=(f"NVIDIA_CTK_LIBCUDA_DIR={':'.join(driver.directories)}",),
        hooks=context.hooks.libraries(root, driver.version, libraries),
        mounts=(
            *(mount(root, path) for path in libraries),
            *(mount(root, path, options=_SOCKET) for path in _sockets(root)),
            *(mount(root, path) for path in _firmware(driver, context)),
            *(mount(root, path) for name in _PROGRAMS if (path := driver.program(name))),
        ),
    )


def node_edits(nodes: Iterable[Node]) -> ContainerEdits:
    """Device nodes, and the groups that may open them if not everybody may."""
    unique = tuple({node.host_path: node for node in nodes}.values())
    # If not everybody may open a node, a container's user needs the node's group.
    gids = {node.gid for node in unique if node.gid and node.mode & 0o006 != 0o006}
    return ContainerEdits(
        device_nodes=tuple(
            DeviceNode(
                path=node.inside,
                host_path=node.host_path_if_other,
                major=node.major,
                minor=node.minor,
                file_mode=node.mode,
                permissions="rwm",
                gid=node.gid or None,
            )
            for node in unique
        ),
        additional_gids=tuple(sorted(gids)),
    )


def mount(
    root: DriverRoot, inside: str, target: str = "", options: tuple[str, ...] = _MOUNT
) -> Mount:
    """A mount of the file `inside` a driver root at `target` in the container, by default at the
    same path."""
    return Mount(root.mount_source(inside), target or inside, options)


def remedy(path: str) -> str:
    """An additional remedy, as the end of a sentence, if a user other than root can change the host
    path; "" if there is none. nvidia-persistenced, for example, gives its directory to the user
    that it runs as."""
    if path.endswith(_SOCKETS[0]):
        return ", or let nvidia-persistenced run as root (without --user)"
    return ""


def watch_paths(root: DriverRoot) -> Iterator[str]:
    """Agent paths of sockets and programs that come and go, with entries `PREFIX*DIRECTORY` and
    `=PATH` as in `driver.watch_paths`. A container does not start if its spec mounts a socket that
    is gone."""
    yield from (root.agent_path(f"{place}/{name}") for place in _RUN for name in _SOCKETS)
    yield f"={root.agent_path(f'{_TEMPORARY}/{_MPS}')}"
    yield f"nvidia-*{root.agent_path('/usr/bin')}"


def _sockets(root: DriverRoot) -> tuple[str, ...]:
    found: list[str] = []
    for name in _SOCKETS:
        found += root.files(_RUN, name)[:1]
    return (*found, *root.files((_TEMPORARY,), _MPS))


def _firmware(driver: Driver, context: BuildContext) -> tuple[str, ...]:
    """Paths of the GSP firmware, in all directories where the kernel would search."""
    places = (
        *((context.firmware,) if context.firmware.startswith("/") else ()),
        f"/lib/firmware/updates/{context.kernel}", "/lib/firmware/updates",
        f"/lib/firmware/{context.kernel}", "/lib/firmware",
    )  # fmt: skip
    return driver.root.files(dict.fromkeys(places), f"nvidia/{driver.version}/gsp*.bin")
