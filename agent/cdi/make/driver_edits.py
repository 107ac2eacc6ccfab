"""What the specs of a driver have in common: its libraries, programs, firmware and sockets.

Invariant: pure in what was found; no NVML. Entries are those of NVIDIA's generator (pkg/nvcdi
v1.20), and so is the order of libraries, because it decides the arguments of hooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agent.cdi.driver.driver import Driver, Node
from agent.cdi.driver.root import DriverRoot
from agent.cdi.make.hooks import Hooks
from agent.cdi.model import ContainerEdits, DeviceNode, Mount

VOID = "NVIDIA_VISIBLE_DEVICES=void"  # no second injection by the nvidia runtime

_MOUNT = ("ro", "nosuid", "nodev", "rbind", "rprivate")
_SOCKET = ("nosuid", "nodev", "rbind", "rprivate", "noexec")
_PROGRAMS = (
    "nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server", "nvidia-imex", "nvidia-imex-ctl",
)  # fmt: skip
_RUN = ("/run", "/var/run")
_SOCKETS = ("nvidia-persistenced/socket", "nvidia-fabricmanager/socket")
_TEMPORARY, _MPS = "/tmp", "nvidia-mps"  # noqa: S108 - the driver's own place


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What besides the driver decides: which hooks there may be, the kernel's release, its extra
    firmware directory ("" where there is none), and the machine's kind."""

    hooks: Hooks
    kernel: str
    firmware: str = ""
    machine: str = "x86_64"


def driver_edits(driver: Driver, around: Surroundings) -> ContainerEdits:
    """Libraries, programs and all else that is no device."""
    libraries = driver.libraries()
    return ContainerEdits(
        env=(f"NVIDIA_CTK_LIBCUDA_DIR={':'.join(driver.directories)}",),
        hooks=around.hooks.libraries(driver.root, driver.version, libraries),
        mounts=(
            *(mount(driver.root, path) for path in libraries),
            *(mount(driver.root, path, options=_SOCKET) for path in _sockets(driver.root)),
            *(mount(driver.root, path) for path in _firmware(driver, around)),
            *(mount(driver.root, path) for name in _PROGRAMS if (path := driver.program(name))),
        ),
    )


def node_edits(nodes: Iterable[Node]) -> ContainerEdits:
    """Device nodes, and the groups without which a container's user cannot open them."""
    unique = tuple({node.host_path: node for node in nodes}.values())
    # A node that is not for everybody can be opened by its group only.
    gids = {node.gid for node in unique if node.gid and node.mode & 0o006 != 0o006}
    return ContainerEdits(
        device_nodes=tuple(
            DeviceNode(
                path=node.inside,
                host_path="" if node.host_path == node.inside else node.host_path,
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
    """A file of the driver root, in a container at `target`, by default where it is here."""
    return Mount(root.mount_source(inside), target or inside, options)


def _sockets(root: DriverRoot) -> tuple[str, ...]:
    found: list[str] = []
    for name in _SOCKETS:
        found += root.files(_RUN, name)[:1]
    return (*found, *root.files((_TEMPORARY,), _MPS))


def remedy(path: str) -> str:
    """What else can be done about a host path that is not root's alone: daemons of NVIDIA's make
    their directories anew, for the user that they run as."""
    if path.endswith(_SOCKETS[0]):
        return ", or let nvidia-persistenced run as root (without --user)"
    return ""


def watched(root: DriverRoot) -> Iterator[str]:
    """Agent paths of what comes and goes beside the libraries, with entries `PREFIX*DIRECTORY` and
    `=PATH`. A socket that is gone keeps every container of the spec from starting."""
    yield from (root.agent_path(f"{place}/{name}") for place in _RUN for name in _SOCKETS)
    yield f"={root.agent_path(f'{_TEMPORARY}/{_MPS}')}"
    yield f"nvidia-*{root.agent_path('/usr/bin')}"


def _firmware(driver: Driver, around: Surroundings) -> tuple[str, ...]:
    """The GSP firmware, wherever the kernel would look for it."""
    places = (
        *((around.firmware,) if around.firmware.startswith("/") else ()),
        f"/lib/firmware/updates/{around.kernel}", "/lib/firmware/updates",
        f"/lib/firmware/{around.kernel}", "/lib/firmware",
    )  # fmt: skip
    return driver.root.files(dict.fromkeys(places), f"nvidia/{driver.version}/gsp*.bin")
