"""A CDI specification as data, with the names of CDI's SPEC.md and specs-go/config.go.

Invariant: plain values only. `rules` decides what is valid, `emit` writes a spec. The version is
not stored, because it follows from the features of a spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any


@dataclass(frozen=True)
class DeviceNode:
    """A device node. Without a `host_path` the node has the same `path` on the host. Without a
    `type`, or with `major` and `minor` 0, the runtime reads the missing values from the node."""

    path: str
    host_path: str = ""
    type: str = ""
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True)
class Mount:
    """A mount of `host_path` on the host at `container_path`."""

    host_path: str
    container_path: str
    options: tuple[str, ...] = ()
    type: str = ""


@dataclass(frozen=True)
class Hook:
    """An OCI hook that runs `path` on the host. `args` begins with the program's own name;
    `timeout` is in seconds."""

    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


@dataclass(frozen=True)
class ContainerEdits:
    """The changes that a spec makes to a container (`containerEdits`)."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[DeviceNode, ...] = ()
    hooks: tuple[Hook, ...] = ()
    mounts: tuple[Mount, ...] = ()
    additional_gids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Device:
    """A device that a container requests as `KIND=NAME`."""

    name: str
    container_edits: ContainerEdits
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec:
    """Devices of one kind (`vendor/class`). `container_edits` hold for a container with any of
    them."""

    kind: str
    devices: tuple[Device, ...]
    container_edits: ContainerEdits = ContainerEdits()
    annotations: Mapping[str, str] = field(default_factory=dict)


def _data(value: Any) -> Any:
    """The plain data of a part of a spec, with CDI's field names. Fields with their default value
    are left out. (A mode or an owner of 0 is kept, because the default of these is None.)"""
    if isinstance(value, tuple):
        return [_data(item) for item in value]
    if not is_dataclass(value):
        return value
    pairs = ((field, getattr(value, field.name)) for field in fields(value))
    return {_cdi_name(field.name): _data(item) for field, item in pairs if item != field.default}


def _cdi_name(name: str) -> str:
    first, *words = name.split("_")
    return first + "".join(map(str.capitalize, words))


def to_data(spec: Spec, version: str) -> dict[str, Any]:
    """The plain data of a spec's file, with `version` as its `cdiVersion`. Keys are in the order of
    CDI's Go structs."""
    devices = [
        {
            "name": device.name,
            **({"annotations": dict(device.annotations)} if device.annotations else {}),
            "containerEdits": _data(device.container_edits),
        }
        for device in spec.devices
    ]
    common = _data(spec.container_edits)
    return {
        "cdiVersion": version,
        "kind": spec.kind,
        **({"annotations": dict(spec.annotations)} if spec.annotations else {}),
        "devices": devices,
        **({"containerEdits": common} if common else {}),
    }
