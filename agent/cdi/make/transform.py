"""From what was found to what is written: duplicates go, what all share is said once, all is in
order, and `all` stands for every device.

Invariant: pure, and equal findings in any order of devices, nodes and mounts give the same spec.
The steps and their order are those of NVIDIA's generator (pkg/nvcdi/spec and transform, v1.20).
Hooks and environment keep their order: there it means something.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from agent.cdi.model import ContainerEdits, Device, DeviceNode, Mount, Spec

ALL = "all"

T = TypeVar("T")


def finish(spec: Spec, *, merged: bool = True) -> Spec:
    """The spec as it is written; with `merged` it gets a device `all`, unless it has one."""
    done = _sorted(_simplified(spec))
    if not merged or not done.devices or any(device.name == ALL for device in done.devices):
        return done
    every = joined(*(device.container_edits for device in done.devices))
    return finish(replace(done, devices=(*done.devices, Device(ALL, every))), merged=False)


def without_groups(spec: Spec) -> Spec:
    """The spec for a runtime that refuses a file with groups in it."""
    devices = (
        replace(device, container_edits=replace(device.container_edits, additional_gids=()))
        for device in spec.devices
    )
    common = replace(spec.container_edits, additional_gids=())
    return replace(spec, devices=tuple(devices), container_edits=common)


def joined(*parts: ContainerEdits) -> ContainerEdits:
    """One set of edits out of several, each thing once."""
    return ContainerEdits(
        env=_once(part.env for part in parts),
        device_nodes=_once(part.device_nodes for part in parts),
        hooks=_once(part.hooks for part in parts),
        mounts=_once(part.mounts for part in parts),
        additional_gids=tuple(sorted({gid for part in parts for gid in part.additional_gids})),
    )


def _once(parts: Iterable[tuple[T, ...]]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(item for part in parts for item in part))


def _rest(items: tuple[T, ...], others: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(item for item in items if item not in others)


def _simplified(spec: Spec) -> Spec:
    """Without what a device shares with the whole spec, unless nothing would be left of it."""
    common = joined(spec.container_edits)
    devices = []
    for device in spec.devices:
        whole = joined(device.container_edits)
        rest = _without(whole, common)
        # A device that brings nothing is not valid; groups alone count as nothing.
        empty = replace(rest, additional_gids=()) == ContainerEdits()
        devices.append(replace(device, container_edits=whole if empty else rest))
    return replace(spec, devices=tuple(devices), container_edits=common)


def _without(edits: ContainerEdits, others: ContainerEdits) -> ContainerEdits:
    """NVIDIA's generator leaves groups where they are."""
    return ContainerEdits(
        env=_rest(edits.env, others.env),
        device_nodes=_rest(edits.device_nodes, others.device_nodes),
        hooks=_rest(edits.hooks, others.hooks),
        mounts=_rest(edits.mounts, others.mounts),
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
    """What lies deeper comes later, so that no mount hides one that is inside it."""

    def node(item: DeviceNode) -> tuple[int, str]:
        return item.path.count("/"), item.path

    def mount(item: Mount) -> tuple[int, str]:
        return item.container_path.count("/"), item.container_path

    return replace(
        edits,
        device_nodes=tuple(sorted(edits.device_nodes, key=node)),
        mounts=tuple(sorted(edits.mounts, key=mount)),
    )
