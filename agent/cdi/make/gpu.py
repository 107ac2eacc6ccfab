"""The spec `nvidia.com/gpu`: every GPU and every MIG device under all of its names, and `all`.

Invariant: depends on the arguments only. A device is in the spec only with all nodes that it needs;
there is a warning for each device that is left out. Entries and their order are those of NVIDIA's
generator (pkg/nvcdi v1.20, mode nvml).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from agent.cdi.driver.driver import Driver
from agent.cdi.driver.nvml import Gpu, Mig
from agent.cdi.make import driver_files, graphics, transform
from agent.cdi.make.driver_files import BuildContext
from agent.cdi.model import ContainerEdits, Device, Spec
from agent.errors import DevicesLost, NoDevices
from agent.options.device_classes import GPU_KIND

CONTROL_NODES = (
    "/dev/nvidia-modeset", "/dev/nvidia-uvm-tools", "/dev/nvidia-uvm", "/dev/nvidiactl",
)  # fmt: skip


@dataclass(frozen=True)
class KernelGpus:
    """GPUs as the kernel shows them: `drm` has the names of DRM nodes by PCI address,
    `capabilities` the minor numbers of MIG capabilities by name (`gpu0/gi1/access`)."""

    drm: Mapping[str, tuple[str, ...]]
    capabilities: Mapping[str, int]


def spec(
    driver: Driver, context: BuildContext, gpus: Sequence[Gpu], kernel: KernelGpus,
    strategies: Sequence[str], *, with_all: bool = True, lost: Sequence[str] = (),
) -> tuple[Spec, tuple[str, ...]]:  # fmt: skip
    """The spec, and a warning for each device that is left out. `strategies` select the names
    (`device_names`); `with_all` adds a device `all`; `lost` are NVML's warnings about other GPUs.
    Raises NoDevices if there is no GPU, DevicesLost if no GPU can be used."""
    devices: list[Device] = []
    warnings: list[str] = []
    for gpu in gpus:
        for mig in gpu.instances if gpu.mig else (None,):
            title = f"MIG device {gpu.index}:{mig.index}" if mig else f"GPU {gpu.index}"
            edits = gpu_edits(driver, context, kernel, gpu, mig)
            names = device_names(gpu, mig, strategies)
            if isinstance(edits, str):
                warnings.append(f"{title} is not in the CDI spec: {edits}")
            elif not names:
                warnings.append(f"{title} is not in the CDI spec: it has no UUID")
            else:
                devices += (Device(name, edits) for name in names)
    if not devices:
        start, reasons = f"cannot make a CDI spec for {GPU_KIND}", (*lost, *warnings)
        if reasons:
            raise DevicesLost(f"{start}: {'; '.join(reasons)}")
        raise NoDevices(f"{start}: there is no GPU, nor a MIG device")
    found_spec = Spec(GPU_KIND, tuple(devices), common_edits(driver, context))
    return transform.finish(found_spec, with_all=with_all), tuple(warnings)


def chosen(gpus: Sequence[Gpu], ids: Sequence[str], lost: Sequence[str] = ()) -> tuple[Gpu, ...]:
    """The GPUs and MIG devices with these indices (`0`, `0:1`) or UUIDs; `all` selects every GPU. A
    GPU that is split into MIG devices can be selected as a whole, as in NVIDIA's generator. Raises
    DevicesLost for a missing id that NVML's warnings (`lost`) explain, NoDevices for any other
    one."""
    if transform.ALL in ids:
        return tuple(gpus)
    found: dict[Gpu, None] = {}
    for device_id in ids:
        gpu = next(_matching(gpus, device_id), None)
        starts = (f"GPU {device_id} ", f"MIG device {device_id} ")
        if gpu is None and (why := next((s for s in lost if s.startswith(starts)), None)):
            raise DevicesLost(f"cannot make a CDI spec for {GPU_KIND}: {why}")
        if gpu is None:
            raise NoDevices(
                f"cannot make a CDI spec for {GPU_KIND}: there is no GPU or MIG device "
                f"{device_id}; give an index or a UUID that nvidia-smi -L shows"
            )
        found[gpu] = None
    return tuple(found)


def _matching(gpus: Sequence[Gpu], device_id: str) -> Iterator[Gpu]:
    """Each GPU that has the id or a MIG device with the id, reduced to that device."""
    for gpu in gpus:
        if device_id in (str(gpu.index), gpu.uuid):
            yield replace(gpu, mig=False, instances=())
        for mig in gpu.instances:
            if device_id in (f"{gpu.index}:{mig.index}", mig.uuid):
                yield replace(gpu, instances=(mig,))


def common_edits(driver: Driver, context: BuildContext) -> ContainerEdits:
    """The edits of a container with any GPU."""
    hooks = context.hooks
    return transform.joined(
        driver_files.node_edits(node for path in CONTROL_NODES if (node := driver.node(path))),
        graphics.edits(driver, hooks, context.machine),
        driver_files.file_edits(driver, context),
        ContainerEdits(
            env=(driver_files.VOID,),
            hooks=(
                *hooks.make("disable-device-node-modification"),
                *hooks.make("update-application-profile"),
            ),
        ),
    )


def device_names(gpu: Gpu, mig: Mig | None, strategies: Sequence[str]) -> tuple[str, ...]:
    """The names of a GPU, or of its MIG device `mig`: one for each of `strategies` (index,
    type-index, uuid), without empty ones."""
    number = f"{gpu.index}:{mig.index}" if mig else str(gpu.index)
    names = {
        "index": number,
        "type-index": ("mig" if mig else "gpu") + number,
        "uuid": (mig or gpu).uuid,
    }
    return tuple(dict.fromkeys(names[name] for name in strategies if names[name]))


def gpu_edits(
    driver: Driver, context: BuildContext, kernel: KernelGpus, gpu: Gpu, mig: Mig | None = None
) -> ContainerEdits | str:
    """The edits of a GPU, or of its MIG device `mig`. A string says why the device cannot be
    used."""
    paths = [f"/dev/nvidia{gpu.minor}"]
    if mig:
        above = f"gpu{gpu.minor}/gi{mig.gpu_instance}"
        for name in (f"{above}/access", f"{above}/ci{mig.compute_instance}/access"):
            number = kernel.capabilities.get(name)
            if number is None:
                return f"the kernel does not list its capability {name}"
            paths.append(f"/dev/nvidia-caps/nvidia-cap{number}")
    nodes = []
    for path in paths:
        node = driver.node(path)
        if node is None:
            where = driver.searched_directories(path)
            return f"there is no device node {path} in {where}; run nvidia-modprobe"
        nodes.append(node)
    drm = kernel.drm.get(gpu.bus, ()) if mig is None or mig.graphics else ()
    drm_nodes = [node for name in drm if (node := driver.node(f"/dev/dri/{name}"))]
    hooks, inside = context.hooks, [node.inside for node in (*nodes, *drm_nodes)]
    links = tuple(_links_by_address(driver, gpu.bus, [node.inside for node in drm_nodes]))
    return transform.joined(
        driver_files.node_edits((*nodes, *drm_nodes)),
        ContainerEdits(
            hooks=(*hooks.symlinks(links), *hooks.chmod_directories(() if mig else inside))
        ),
    )


def _links_by_address(driver: Driver, bus: str, paths: Sequence[str]) -> Iterator[str]:
    """`TARGET::LINK` for the links by PCI address that lead to one of `paths`. Both are paths in a
    container; NVIDIA's generator puts the device root before them."""
    for kind in ("card", "render"):
        link = f"/dev/dri/by-path/pci-{bus}-{kind}"
        target = driver.read_link(link)
        if target and os.path.normpath(os.path.join(os.path.dirname(link), target)) in paths:
            yield f"{target}::{link}"
