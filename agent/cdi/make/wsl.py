"""The spec `nvidia.com/gpu` of WSL2, where Windows has the driver and provides its libraries.

Invariant: the only device is `all`, because /dev/dxg stands for every GPU. Entries and their order
are those of NVIDIA's generator (pkg/nvcdi v1.20, mode wsl).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from agent.cdi.driver import driver, dxcore
from agent.cdi.driver.driver import Node
from agent.cdi.driver.root import DriverRoot
from agent.cdi.make import driver_files, transform
from agent.cdi.make.driver_files import BuildContext
from agent.cdi.model import ContainerEdits, Device, Spec
from agent.errors import NoDriver, Refused, reason
from agent.host import trust
from agent.host.paths import HostRoot
from agent.options.device_classes import GPU_KIND
from agent.options.settings import Settings

DXG = "/dev/dxg"
LIBRARIES = "/usr/lib/wsl/lib"
STORES = "/usr/lib/wsl/drivers"  # Windows keeps drivers of earlier versions there, too

_DXCORE = "libdxcore.so"
_CUDA = "libcuda.so.1.1"
_PROGRAM, _LINK = "nvidia-smi", "/usr/bin/nvidia-smi"
# Files that every version of a driver has. Its other files are mounted after these.
_KNOWN = (
    _CUDA, "libcuda_loader.so", "libnvidia-ptxjitcompiler.so.1", "libnvidia-ml.so.1",
    "libnvidia-ml_loader.so", "libnvdxgdmal.so.1", "nvcubins.bin", _PROGRAM,
)  # fmt: skip
_MORE = ("*.so*", "*.bin", "*.dll")


def build(
    host: HostRoot, settings: Settings, context: BuildContext
) -> tuple[Spec, tuple[str, ...], tuple[DriverRoot, ...]]:
    """(spec, warnings, searched driver roots). Raises NoDriver."""
    on_host, root = driver.host_root(host), driver.root_option_or_host(host, settings)
    devs = driver.dev_roots(host, settings, root)
    nodes = driver.nodes_at(devs, (os.path.split(DXG),))
    stores, warnings = _stores_in_use(host, on_host)
    return _spec(on_host, nodes, context, stores), warnings, (on_host, *devs)


def _spec(
    root: DriverRoot, nodes: Sequence[Node], context: BuildContext, stores: Sequence[str]
) -> Spec:
    """The spec of the first of `stores` (directories of drivers) that has NVIDIA's driver. Raises
    NoDriver."""
    store = next((path for path in stores if root.files((path,), _CUDA)), None)
    if store is None:
        where = ", ".join(stores) or "any driver that Windows uses"
        raise NoDriver(
            f"cannot make a CDI spec: there is no {_CUDA} in {where}; install NVIDIA's driver in "
            "Windows, and restart WSL (wsl --shutdown)"
        )
    if not nodes:
        raise NoDriver(
            f"cannot make a CDI spec: there is no device node {DXG}; restart WSL (wsl --shutdown)"
        )
    device = Device(transform.ALL, driver_files.node_edits(nodes))
    void = ContainerEdits(env=(driver_files.VOID,))
    return transform.finish(
        Spec(GPU_KIND, (device,), transform.joined(_edits(root, context, store), void))
    )


def _edits(root: DriverRoot, context: BuildContext, store: str) -> ContainerEdits:
    core = root.files((LIBRARIES,), _DXCORE)
    known = tuple(path for name in _KNOWN for path in root.files((store,), name))
    found = (path for pattern in _MORE for path in root.files((store,), pattern))
    more = tuple(path for path in found if os.path.basename(path) not in _KNOWN)
    program = next((path for path in known if os.path.basename(path) == _PROGRAM), None)
    return ContainerEdits(
        hooks=(
            *context.hooks.symlinks((f"{program}::{_LINK}",) if program else ()),
            *context.hooks.ldcache((*known, *core)),
        ),
        mounts=tuple(driver_files.mount(root, path) for path in (*core, *known, *more)),
    )


def _stores_in_use(host: HostRoot, root: DriverRoot) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The directories of the drivers that Windows uses, and warnings. If Windows does not name
    them, the only existing driver is taken. Raises NoDriver if there are several."""
    error = f"there is no {_DXCORE} in {LIBRARIES}"
    for path in root.glob(LIBRARIES, _DXCORE):
        answer = _ask_dxcore(host, path)
        if not answer.error:
            return answer.paths, ()
        error = answer.error
    stores = tuple(os.path.dirname(path) for path in root.files((STORES,), f"*/{_CUDA}"))
    if len(stores) > 1:
        raise NoDriver(
            f"cannot make a CDI spec: {STORES} has {len(stores)} drivers, and {_DXCORE} does not "
            f"tell which of them Windows uses: {error}; run this where {DXG} is, or remove the "
            "other drivers in Windows (pnputil /delete-driver)"
        )
    warning = f"the driver is the only one in {STORES}, because {_DXCORE} names none: {error}"
    return stores, (warning,) if stores else ()


def _ask_dxcore(host: HostRoot, path: str) -> dxcore.Stores:
    try:
        with trust.open_path(host, path, os.O_RDONLY) as library:
            if library.distrust:
                return dxcore.Stores(error=f"others than root can change it: {library.distrust}")
            return dxcore.ask(library.fd)
    except OSError as error:
        return dxcore.Stores(error=reason(error))
    except Refused as error:
        return dxcore.Stores(error=error.message)
