"""The spec `nvidia.com/gpu` of WSL2, where Windows has the driver and gives its libraries.

Invariant: pure in what was found; the one device is `all`, because /dev/dxg stands for every GPU.
Entries and their order are those of NVIDIA's generator (pkg/nvcdi v1.20, mode wsl).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from agent.cdi.driver.driver import Node
from agent.cdi.driver.root import DriverRoot
from agent.cdi.make import driver_edits, gpu, transform
from agent.cdi.make.driver_edits import Surroundings
from agent.cdi.model import ContainerEdits, Device, Spec
from agent.errors import NoDriver

DXG = "/dev/dxg"
LIBRARIES = "/usr/lib/wsl/lib"
DXCORE = "libdxcore.so"
STORES = "/usr/lib/wsl/drivers"

_CUDA = "libcuda.so.1.1"
_PROGRAM, _LINK = "nvidia-smi", "/usr/bin/nvidia-smi"
# What a driver's directory has in every version; all else there comes after it.
_KNOWN = (
    _CUDA, "libcuda_loader.so", "libnvidia-ptxjitcompiler.so.1", "libnvidia-ml.so.1",
    "libnvidia-ml_loader.so", "libnvdxgdmal.so.1", "nvcubins.bin", _PROGRAM,
)  # fmt: skip
_MORE = ("*.so*", "*.bin", "*.dll")


def stores(root: DriverRoot) -> tuple[str, ...]:
    """Every directory of a driver of NVIDIA's. Windows keeps those of earlier versions."""
    return tuple(os.path.dirname(path) for path in root.files((STORES,), f"*/{_CUDA}"))


def spec(
    root: DriverRoot, nodes: Sequence[Node], around: Surroundings, told: Sequence[str]
) -> Spec:
    """The spec of the first of the directories `told` that has NVIDIA's driver. Raises NoDriver."""
    store = next((path for path in told if root.files((path,), _CUDA)), None)
    if store is None:
        where = ", ".join(told) or "any driver that Windows uses"
        raise NoDriver(
            f"cannot make a CDI spec: there is no {_CUDA} in {where}; install NVIDIA's driver in "
            "Windows, and restart WSL (wsl --shutdown)"
        )
    if not nodes:
        raise NoDriver(
            f"cannot make a CDI spec: there is no device node {DXG}; restart WSL (wsl --shutdown)"
        )
    device = Device(transform.ALL, driver_edits.node_edits(nodes))
    common = transform.joined(_edits(root, around, store), ContainerEdits(env=(driver_edits.VOID,)))
    return transform.finish(Spec(gpu.KIND, (device,), common))


def _edits(root: DriverRoot, around: Surroundings, store: str) -> ContainerEdits:
    core = root.files((LIBRARIES,), DXCORE)
    known = tuple(path for name in _KNOWN for path in root.files((store,), name))
    found = (path for pattern in _MORE for path in root.files((store,), pattern))
    more = tuple(path for path in found if os.path.basename(path) not in _KNOWN)
    program = next((path for path in known if os.path.basename(path) == _PROGRAM), None)
    return ContainerEdits(
        hooks=(
            *around.hooks.symlinks((f"{program}::{_LINK}",) if program else ()),
            *around.hooks.cache((*known, *core)),
        ),
        mounts=tuple(driver_edits.mount(root, path) for path in (*core, *known, *more)),
    )
