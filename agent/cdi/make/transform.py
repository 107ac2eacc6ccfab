"""The last steps of making a spec: remove duplicates and edits that all devices share, sort, and
add the device `all`.

Invariant: depends on the arguments only, and not on the order of devices, nodes and mounts. The
steps are those of NVIDIA's generator (pkg/nvcdi/spec and transform, v1.20). Hooks and environment
keep their order, because it has a meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from agent.cdi.model import ContainerEdits, Device, Spec

ALL = "all"

T = TypeVar("T")


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
    return ContainerEdits(
        env=_once(part.env for part in parts),
        device_nodes=_once(part.device_nodes for part in parts),
        hooks=_once(part.hooks for part in parts),
        mounts=_once(part.mounts for part in parts),
        additional_gids=tuple(sorted({gid for part in parts for gid in part.additional_gids})),
    )


def _once(parts: Iterable[tuple[T, ...]]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(item for part in parts for item in part))


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
        whole = joined(device.container_edits)
        rest = ContainerEdits(
            env=_difference(whole.env, common.env),
            device_nodes=_difference(whole.device_nodes, common.device_nodes),
            hooks=_difference(whole.hooks, common.hooks),
            mounts=_difference(whole.mounts, common.mounts),
        )
        # A device without edits is not valid; groups alone do not count as edits.
        edits = whole
        if rest != ContainerEdits():
            edits = replace(rest, additional_gids=whole.additional_gids)
        devices.append(replace(device, container_edits=edits))
    return replace(spec, devices=tuple(devices), container_edits=common)


def _difference(items: tuple[T, ...], common: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(item for item in items if item not in common)


def _in_order(edits: ContainerEdits) -> ContainerEdits:
    """The edits with device nodes and mounts sorted by depth, so that no mount hides another one
    below it."""
    nodes = sorted(edits.device_nodes, key=lambda node: _depth(node.path))
    mounts = sorted(edits.mounts, key=lambda mount: _depth(mount.container_path))
    return replace(edits, device_nodes=tuple(nodes), mounts=tuple(mounts))


def _depth(path: str) -> tuple[int, str]:
    return path.count("/"), path
