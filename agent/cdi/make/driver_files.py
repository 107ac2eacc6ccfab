"""What the specs of a driver have in common: its libraries, programs, firmware and sockets. The
management spec is these files and every device node, as one device `all` for tools of the node.

Invariant: pure in what was found; NVML is not needed. Entries are those of NVIDIA's generator
(pkg/nvcdi v1.20), in its order, because the order decides the arguments of hooks.
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
    """What a spec depends on besides the driver: the hooks that may be made, the kernel's release,
    its extra firmware directory ("" for none) and the machine's architecture."""

    hooks: Hooks
    kernel: str
    firmware: str = ""
    machine: str = "x86_64"


def management_spec(driver: Driver, context: BuildContext, kind: str = MANAGEMENT) -> Spec:
    """The management spec of a driver."""
    common = transform.joined(file_edits(driver, context), ContainerEdits(env=(VOID,)))
    hooks = ContainerEdits(hooks=context.hooks.folders(node.inside for node in driver.nodes))
    device = Device(transform.ALL, transform.joined(node_edits(driver.nodes), hooks))
    return transform.finish(Spec(kind, (device,), common))


def file_edits(driver: Driver, context: BuildContext) -> ContainerEdits:
    """Libraries, programs, firmware and sockets, and the hooks that make libraries found."""
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
    """Device nodes, and the groups without which a container's user cannot open them."""
    unique = tuple({node.host_path: node for node in nodes}.values())
    # A node that not everybody may open can be opened by its group only.
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
    """A mount of a file of the driver root; `target` is its path in the container, by default the
    same as in the root."""
    return Mount(root.mount_source(inside), target or inside, options)


def remedy(path: str) -> str:
    """What else helps if a host path can be changed by another user than root: some daemons of
    NVIDIA make their directories anew, for the user that they run as."""
    if path.endswith(_SOCKETS[0]):
        return ", or let nvidia-persistenced run as root (without --user)"
    return ""


def watch_paths(root: DriverRoot) -> Iterator[str]:
    """Agent paths of what comes and goes beside the libraries, with entries `PREFIX*DIRECTORY` and
    `=PATH`. A spec that mounts a socket which is gone keeps containers from starting."""
    yield from (root.agent_path(f"{place}/{name}") for place in _RUN for name in _SOCKETS)
    yield f"={root.agent_path(f'{_TEMPORARY}/{_MPS}')}"
    yield f"nvidia-*{root.agent_path('/usr/bin')}"


def _sockets(root: DriverRoot) -> tuple[str, ...]:
    found: list[str] = []
    for name in _SOCKETS:
        found += root.files(_RUN, name)[:1]
    return (*found, *root.files((_TEMPORARY,), _MPS))


def _firmware(driver: Driver, context: BuildContext) -> tuple[str, ...]:
    """The GSP firmware, wherever the kernel would look for it."""
    places = (
        *((context.firmware,) if context.firmware.startswith("/") else ()),
        f"/lib/firmware/updates/{context.kernel}", "/lib/firmware/updates",
        f"/lib/firmware/{context.kernel}", "/lib/firmware",
    )  # fmt: skip
    return driver.root.files(dict.fromkeys(places), f"nvidia/{driver.version}/gsp*.bin")
