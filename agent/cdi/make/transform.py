"""The last steps of making a spec: remove duplicates and edits that all devices share, sort, and
add the device `all`.

Invariant: pure; the order in which devices, nodes and mounts were found does not change the spec.
The steps are those of NVIDIA's generator (pkg/nvcdi/spec and transform, v1.20). Hooks and
environment keep their order, because it has a meaning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from agent.cdi.model import ContainerEdits, Device, DeviceNode, Mount, Spec

ALL = "all"

T = TypeVar("T")


def finish(spec: Spec, *, merged: bool = True) -> Spec:
    """The spec as it is written; `merged` adds a device `all`, unless there is one."""
    done = _sorted(_simplified(spec))
    if not merged or not done.devices or any(device.name == ALL for device in done.devices):
        return done
    every = joined(*(device.container_edits for device in done.devices))
    return finish(replace(done, devices=(*done.devices, Device(ALL, every))), merged=False)


def without_groups(spec: Spec) -> Spec:
    """The spec without groups, for a runtime that refuses a file with groups."""
    devices = (
        replace(device, container_edits=replace(device.container_edits, additional_gids=()))
        for device in spec.devices
    )
    common = replace(spec.container_edits, additional_gids=())
    return replace(spec, devices=tuple(devices), container_edits=common)


def joined(*parts: ContainerEdits) -> ContainerEdits:
    """Several edits as one, without duplicates."""
    return ContainerEdits(
        env=_once(part.env for part in parts),
        device_nodes=_once(part.device_nodes for part in parts),
        hooks=_once(part.hooks for part in parts),
        mounts=_once(part.mounts for part in parts),
        additional_gids=tuple(sorted({gid for part in parts for gid in part.additional_gids})),
    )


def _once(parts: Iterable[tuple[T, ...]]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(item for part in parts for item in part))


def _difference(items: tuple[T, ...], common: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(item for item in items if item not in common)


def _simplified(spec: Spec) -> Spec:
    """The spec without the edits of a device that the whole spec has too, unless the device would
    have none left."""
    common = joined(spec.container_edits)
    devices = []
    for device in spec.devices:
        whole = joined(device.container_edits)
        rest = _without(whole, common)
        # A device without edits is not valid; groups alone do not count as edits.
        empty = replace(rest, additional_gids=()) == ContainerEdits()
        devices.append(replace(device, container_edits=whole if empty else rest))
    return replace(spec, devices=tuple(devices), container_edits=common)


def _without(edits: ContainerEdits, common: ContainerEdits) -> ContainerEdits:
    """Edits without the common ones. Groups stay, as in NVIDIA's generator."""
    return ContainerEdits(
        env=_difference(edits.env, common.env),
        device_nodes=_difference(edits.device_nodes, common.device_nodes),
        hooks=_difference(edits.hooks, common.hooks),
        mounts=_difference(edits.mounts, common.mounts),
        additional_gids=edits.additional_gids,
    )


def _sorted(spec: Spec) -> Spec:
    devices = (
        replace(device, container_edits=_in_order(device.container_edits))
        for device in spec.devices
    )
    return replace(
        spec,
        devices=tuple(sorted(devices, key=lambda device: device.name)),
        container_edits=_in_order(spec.container_edits),
    )


def _in_order(edits: ContainerEdits) -> ContainerEdits:
    """Sorted by depth, so that no mount hides another one that lies below it."""

    def node(item: DeviceNode) -> tuple[int, str]:
        return item.path.count("/"), item.path

    def mount(item: Mount) -> tuple[int, str]:
        return item.container_path.count("/"), item.container_path

    return replace(
        edits,
        device_nodes=tuple(sorted(edits.device_nodes, key=node)),
        mounts=tuple(sorted(edits.mounts, key=mount)),
    )
