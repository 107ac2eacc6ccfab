"""The spec `nvidia.com/gpu`: every GPU and every MIG device under all of its names, and `all`.

Invariant: pure in what was found. A device is in it only with all of the nodes without which it is
of no use; what is left out is told. Entries and their order are those of NVIDIA's generator
(pkg/nvcdi v1.20, mode nvml).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from agent.cdi.driver.driver import Driver, Node
from agent.cdi.driver.gpus import Gpu, Mig
from agent.cdi.make import driver_edits, graphics, transform
from agent.cdi.make.driver_edits import Surroundings
from agent.cdi.model import ContainerEdits, Device, Hook, Spec
from agent.errors import DevicesLost, NoDevices

KIND = "nvidia.com/gpu"

CONTROL = ("/dev/nvidia-modeset", "/dev/nvidia-uvm-tools", "/dev/nvidia-uvm", "/dev/nvidiactl")


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the kernel says about GPUs: names of DRM nodes by PCI address, and the minor numbers of
    MIG capabilities by their names (`gpu0/gi1/access`)."""

    drm: Mapping[str, tuple[str, ...]]
    capabilities: Mapping[str, int]


def spec(
    driver: Driver, around: Surroundings, gpus: Sequence[Gpu], kernel: Kernel,
    strategies: Sequence[str], *, merged: bool = True, lost: Sequence[str] = (),
) -> tuple[Spec, tuple[str, ...]]:  # fmt: skip
    """The spec, and what is not in it and why; `merged`: with a device `all`; `lost` is what was
    told of other GPUs. Raises NoDevices where there are none, DevicesLost where none is left."""
    devices: list[Device] = []
    missing: list[str] = []
    for gpu in gpus:
        maker = Maker(driver, around, gpu, kernel)
        for part in gpu.instances if gpu.mig else (None,):
            found, names = maker.make(part), device_names(gpu, part, strategies)
            if isinstance(found, str):
                missing.append(f"{_title(gpu, part)} is not in the CDI spec: {found}")
            elif not names:
                missing.append(f"{_title(gpu, part)} is not in the CDI spec: it has no UUID")
            else:
                devices += (Device(name, found) for name in names)
    if not devices:
        start, reasons = f"cannot make a CDI spec for {KIND}", (*lost, *missing)
        if reasons:
            raise DevicesLost(f"{start}: {'; '.join(reasons)}")
        raise NoDevices(f"{start}: there is no GPU, nor a MIG device")
    made = Spec(KIND, tuple(devices), common(driver, around))
    return transform.finish(made, merged=merged), tuple(missing)


def chosen(told: Sequence[Gpu], ids: Sequence[str], lost: Sequence[str] = ()) -> tuple[Gpu, ...]:
    """The GPUs and MIG devices with these indices (`0`, `0:1`) or UUIDs. Raises NoDevices, with
    what was told of one that is `lost`.

    A GPU that is split can be asked for as a whole, as NVIDIA's generator has it.
    """
    if transform.ALL in ids:
        return tuple(told)
    found: dict[Gpu, None] = {}
    for wanted in ids:
        one = next(_matching(told, wanted), None)
        starts = (f"GPU {wanted} ", f"MIG device {wanted} ")
        if one is None and (why := next((s for s in lost if s.startswith(starts)), None)):
            raise DevicesLost(f"cannot make a CDI spec for {KIND}: {why}")
        if one is None:
            raise NoDevices(
                f"cannot make a CDI spec for {KIND}: there is no GPU or MIG device {wanted}; give "
                "an index or a UUID that nvidia-smi -L shows"
            )
        found[one] = None
    return tuple(found)


def _matching(told: Sequence[Gpu], wanted: str) -> Iterator[Gpu]:
    """GPUs of which nothing is left but what is wanted."""
    for gpu in told:
        if wanted in (str(gpu.index), gpu.uuid):
            yield replace(gpu, mig=False, instances=())
        for part in gpu.instances:
            if wanted in (f"{gpu.index}:{part.index}", part.uuid):
                yield replace(gpu, instances=(part,))


def common(driver: Driver, around: Surroundings) -> ContainerEdits:
    """What every device brings along."""
    hooks = around.hooks
    return transform.joined(
        driver_edits.node_edits(node for path in CONTROL if (node := driver.node(path))),
        graphics.edits(driver, hooks, around.machine),
        driver_edits.driver_edits(driver, around),
        ContainerEdits(
            env=(driver_edits.VOID,),
            hooks=(
                *hooks.make("disable-device-node-modification"),
                *hooks.make("update-application-profile"),
            ),
        ),
    )


def _title(gpu: Gpu, part: Mig | None) -> str:
    return f"MIG device {gpu.index}:{part.index}" if part else f"GPU {gpu.index}"


def device_names(gpu: Gpu, part: Mig | None, strategies: Sequence[str]) -> tuple[str, ...]:
    """What a GPU, or a part of it, is called."""
    number = f"{gpu.index}:{part.index}" if part else str(gpu.index)
    names = {
        "index": number,
        "type-index": ("mig" if part else "gpu") + number,
        "uuid": (part or gpu).uuid,
    }
    return tuple(dict.fromkeys(names[name] for name in strategies if names[name]))


@dataclass(frozen=True, slots=True)
class Maker:
    """What makes the edits of one GPU and of its parts."""

    driver: Driver
    around: Surroundings
    gpu: Gpu
    kernel: Kernel

    def make(self, part: Mig | None) -> ContainerEdits | str:
        """Those of a part, None for the whole GPU; a string says why there are none."""
        paths = [f"/dev/nvidia{self.gpu.minor}"]
        if part:
            above = f"gpu{self.gpu.minor}/gi{part.gpu_instance}"
            for name in (f"{above}/access", f"{above}/ci{part.compute_instance}/access"):
                number = self.kernel.capabilities.get(name)
                if number is None:
                    return f"the kernel does not list its capability {name}"
                paths.append(f"/dev/nvidia-caps/nvidia-cap{number}")
        nodes = []
        for path in paths:
            node = self.driver.node(path)
            if node is None:
                where = self.driver.places(path)
                return f"there is no device node {path} in {where}; run nvidia-modprobe"
            nodes.append(node)
        drm = self._drm() if part is None or part.graphics else ()
        edits = driver_edits.node_edits((*nodes, *drm))
        folders = () if part else tuple(node.inside for node in (*nodes, *drm))
        hooks = (*self._by_path(drm), *self.around.hooks.folders(folders))
        return transform.joined(edits, ContainerEdits(hooks=hooks))

    def _drm(self) -> tuple[Node, ...]:
        names = self.kernel.drm.get(self.gpu.bus, ())
        return tuple(node for name in names if (node := self.driver.node(f"/dev/dri/{name}")))

    def _by_path(self, nodes: Sequence[Node]) -> tuple[Hook, ...]:
        return self.around.hooks.symlinks(tuple(self._links({node.inside for node in nodes})))

    def _links(self, paths: set[str]) -> Iterator[str]:
        """Links by PCI address that lead to these nodes. They are named as a container has them;
        NVIDIA's generator puts the device root before them."""
        for what in ("card", "render"):
            link = f"/dev/dri/by-path/pci-{self.gpu.bus}-{what}"
            target = self.driver.read_link(link)
            if target and os.path.normpath(os.path.join(os.path.dirname(link), target)) in paths:
                yield f"{target}::{link}"
