"""The last steps of making a spec: remove duplicates and edits that all devices share, sort, and
add the device `all`.

Invariant: depends on the arguments only, and not on the order of devices, nodes and mounts. The
steps are those of NVIDIA's generator (pkg/nvcdi/spec and transform, v1.20). Hooks and environment
keep their order, because it has a meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

from agent.cdi.model import ContainerEdits, Device, Spec

ALL = "all"


def finish(spec: Spec, *, with_all: bool = True) -> Spec:
    """The spec after all steps. `with_all` adds a device `all` with the edits of all devices,
    unless one exists."""
    done = _mapped(_simplified(spec), _in_order)
    done = replace(done, devices=tuple(sorted(done.devices, key=lambda device: device.name)))
    if not with_all or not done.devices or any(device.name == ALL for device in done.devices):
        return done
    all_edits = joined(*(device.container_edits for device in done.devices))
    return finish(replace(done, devices=(*done.devices, Device(ALL, all_edits))), with_all=False)


def without_groups(spec: Spec) -> Spec:
    """The spec without `additionalGids`, for a runtime that refuses a file with them."""
    return _mapped(spec, lambda edits: replace(edits, additional_gids=()))


def joined(*parts: ContainerEdits) -> ContainerEdits:
    """Several edits as one: lists one after another, without duplicates."""
    names = [field.name for field in fields(ContainerEdits)]
    found = {name: [item for part in parts for item in getattr(part, name)] for name in names}
    found["additional_gids"].sort()
    return ContainerEdits(**{name: tuple(dict.fromkeys(items)) for name, items in found.items()})


def _mapped(spec: Spec, change: Callable[[ContainerEdits], ContainerEdits]) -> Spec:
    devices = tuple(
        replace(device, container_edits=change(device.container_edits)) for device in spec.devices
    )
    return replace(spec, devices=devices, container_edits=change(spec.container_edits))


def _simplified(spec: Spec) -> Spec:
    """The spec without those edits of a device that the whole spec has too. A device that would
    have no edits left keeps them. Groups stay, as in NVIDIA's generator."""
    common = joined(spec.container_edits)
    devices = []
    for device in spec.devices:
        edits = joined(device.container_edits)
        rest = {
            name: tuple(item for item in getattr(edits, name) if item not in getattr(common, name))
            for name in ("env", "device_nodes", "hooks", "mounts")
        }
        if any(rest.values()):  # a device without edits is not valid, and groups are none
            edits = replace(edits, **rest)
        devices.append(replace(device, container_edits=edits))
    return replace(spec, devices=tuple(devices), container_edits=common)


def _in_order(edits: ContainerEdits) -> ContainerEdits:
    """The edits with device nodes and mounts sorted by depth, so that no mount hides another one
    below it."""
    nodes = sorted(edits.device_nodes, key=lambda node: _depth(node.path))
    mounts = sorted(edits.mounts, key=lambda mount: _depth(mount.container_path))
    return replace(edits, device_nodes=tuple(nodes), mounts=tuple(mounts))


def _depth(path: str) -> tuple[int, str]:
    return path.count("/"), path
