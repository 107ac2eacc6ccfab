"""The management spec: one device `all` with everything that tools of the node itself need.

Invariant: pure in what was found; no NVML. Entries and their order are those of NVIDIA's generator
(pkg/nvcdi v1.20, mode management), so that hooks get the same arguments.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence

from agent.cdi import elf
from agent.cdi.driver import Driver, Node
from agent.cdi.model import ContainerEdits, Device, DeviceNode, Hook, Mount, Spec
from agent.cdi.root import DriverRoot
from agent.data import dataclass

KIND = "management.nvidia.com/gpu"

_MOUNT = ("ro", "nosuid", "nodev", "rbind", "rprivate")
_SOCKET = ("nosuid", "nodev", "rbind", "rprivate", "noexec")
_PROGRAMS = (
    "nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server", "nvidia-imex", "nvidia-imex-ctl",
)  # fmt: skip
_SOCKETS = ("nvidia-persistenced/socket", "nvidia-fabricmanager/socket")
# Links that no soname gives: (library, link's target or None for the file itself, link's name).
_LINKS = (
    ("libcuda.so.*.*", "libcuda.so.1", "libcuda.so"),
    ("libGLX_nvidia.so.*.*", None, "libGLX_indirect.so.0"),
    ("libnvidia-opticalflow.so.*.*", "libnvidia-opticalflow.so.1", "libnvidia-opticalflow.so"),
)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What besides the driver decides: the hook's host path (None: no hooks), the kernel's release
    and its extra firmware directory ("" where there is none)."""

    hook: str | None
    kernel: str
    firmware: str = ""


def spec(driver: Driver, around: Surroundings, kind: str = KIND) -> Spec:
    """The spec of a driver that is there."""
    libraries = driver.libraries()
    mounts = (
        *(_mount(driver.root, path) for path in libraries),
        *(_mount(driver.root, path, _SOCKET) for path in _sockets(driver.root)),
        *(_mount(driver.root, path) for path in _firmware(driver, around)),
        *(_mount(driver.root, path) for name in _PROGRAMS if (path := driver.program(name))),
    )
    common = ContainerEdits(
        env=(
            f"NVIDIA_CTK_LIBCUDA_DIR={':'.join(driver.directories)}",
            "NVIDIA_VISIBLE_DEVICES=void",  # no second injection by the nvidia runtime
        ),
        hooks=hooks(driver, libraries, around.hook) if around.hook else (),
        mounts=_sorted({mount.container_path: mount for mount in mounts}.values()),
    )
    return Spec(kind, (Device("all", _devices(driver.nodes)),), common)


def _devices(nodes: Sequence[Node]) -> ContainerEdits:
    unique = {node.host_path: node for node in nodes}.values()
    ordered = sorted(unique, key=lambda node: (node.inside.count("/"), node.inside))
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
            for node in ordered
        ),
        additional_gids=tuple(sorted(gids)),
    )


def _mount(root: DriverRoot, inside: str, options: tuple[str, ...] = _MOUNT) -> Mount:
    return Mount(root.mount_source(inside), inside, options)


def _sorted(mounts: Iterable[Mount]) -> tuple[Mount, ...]:
    key = [(item.container_path.count("/"), item.container_path, item) for item in mounts]
    return tuple(item for _, _, item in sorted(key, key=lambda entry: entry[:2]))


def _sockets(root: DriverRoot) -> tuple[str, ...]:
    found: list[str] = []
    for name in _SOCKETS:
        found += root.files(("/run", "/var/run"), name)[:1]
    return (*found, *root.files(("/tmp",), "nvidia-mps"))  # noqa: S108 - the driver's own place


def _firmware(driver: Driver, around: Surroundings) -> tuple[str, ...]:
    """The GSP firmware, wherever the kernel would look for it."""
    places = (
        *((around.firmware,) if around.firmware.startswith("/") else ()),
        f"/lib/firmware/updates/{around.kernel}", "/lib/firmware/updates",
        f"/lib/firmware/{around.kernel}", "/lib/firmware",
    )  # fmt: skip
    return driver.root.files(dict.fromkeys(places), f"nvidia/{driver.version}/gsp*.bin")


def hooks(driver: Driver, libraries: Sequence[str], path: str) -> tuple[Hook, ...]:
    """The hooks that make libraries found in a container, in the order in which they have to run:
    links, then a newer compat library of the image, then the loader's cache."""
    links = tuple(word for link in _links(driver.root, libraries) for word in ("--link", link))
    folders = tuple(word for folder in _folders(libraries) for word in ("--folder", folder))
    return (
        *((_hook(path, "create-symlinks", *links),) if links else ()),
        _hook(path, "enable-cuda-compat", f"--host-driver-version={driver.version}"),
        *((_hook(path, "update-ldcache", *folders),) if folders else ()),
    )


def _hook(path: str, *args: str) -> Hook:
    words = (os.path.basename(path), *args)
    return Hook("createContainer", path, words, ("NVIDIA_CTK_DEBUG=false",))


def _folders(libraries: Sequence[str]) -> tuple[str, ...]:
    found = (
        os.path.dirname(path) for path in libraries
        if fnmatch.fnmatchcase(os.path.basename(path), "lib?*.so*")
    )  # fmt: skip
    return tuple(dict.fromkeys(found))


def _links(root: DriverRoot, libraries: Sequence[str]) -> tuple[str, ...]:
    """`TARGET::LINK` for every link that programs expect and that mounts do not bring along."""
    found: list[str] = []
    for path in libraries:
        directory, name = os.path.split(path)
        found += (
            f"{target or name}::{directory}/{link}"
            for pattern, target, link in _LINKS
            if fnmatch.fnmatchcase(name, pattern)
        )
        if fnmatch.fnmatchcase(name, "*.*.*"):
            found += _soname_links(root, directory, name)
    return tuple(dict.fromkeys(found))


def _soname_links(root: DriverRoot, directory: str, name: str) -> list[str]:
    """Links by soname and by plain name, as far as the driver has them too."""
    soname = elf.soname(root.agent_path(f"{directory}/{name}"))
    if soname is None:
        return []
    soname = soname or name
    found = []
    if soname != name and root.is_link(f"{directory}/{soname}"):
        found.append(f"{name}::{directory}/{soname}")
    stem, version, _ = soname.rpartition(".so.")
    plain = f"{stem}.so"
    if version and root.is_link(f"{directory}/{plain}"):
        found.append(f"{soname}::{directory}/{plain}")
    return found
