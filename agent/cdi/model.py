"""A CDI specification as data, with the field's own names (CDI SPEC.md, specs-go/config.go).

Invariant: plain values only. What is valid is decided in `rules`, what is written in `emit`; the
field `version` is never stored, it follows from what a spec uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device node; `host_path` empty where it is `path`, numbers 0 where the runtime looks."""

    path: str
    host_path: str = ""
    type: str = ""
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class Mount:
    """A bind mount from the host."""

    host_path: str
    container_path: str
    options: tuple[str, ...] = ()
    type: str = ""


@dataclass(frozen=True, slots=True)
class Hook:
    """An OCI hook: `path` on the host, `args` with the program's own name first; `timeout` in
    seconds."""

    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class ContainerEdits:
    """What a container gets."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[DeviceNode, ...] = ()
    hooks: tuple[Hook, ...] = ()
    mounts: tuple[Mount, ...] = ()
    additional_gids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Device:
    """One device that can be asked for by name."""

    name: str
    container_edits: ContainerEdits
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Spec:
    """Devices of one kind (`vendor/class`), and what every one of them brings along."""

    kind: str
    devices: tuple[Device, ...]
    container_edits: ContainerEdits = ContainerEdits()
    annotations: Mapping[str, str] = field(default_factory=dict)


def _some(**values: Any) -> dict[str, Any]:
    """Without what is empty; None and zero numbers are left out as the Go library does."""
    return {key: value for key, value in values.items() if value not in (None, "", 0, (), [], {})}


def _node(node: DeviceNode) -> dict[str, Any]:
    data = _some(
        path=node.path, hostPath=node.host_path, type=node.type, major=node.major, minor=node.minor
    )
    # A mode or an owner of zero says something: 0 is not "unknown" here.
    for key, value in (("fileMode", node.file_mode), ("permissions", node.permissions or None),
                       ("uid", node.uid), ("gid", node.gid)):  # fmt: skip
        if value is not None:
            data[key] = value
    return data


def _hook(hook: Hook) -> dict[str, Any]:
    data = _some(hookName=hook.hook_name, path=hook.path, args=list(hook.args), env=list(hook.env))
    return data if hook.timeout is None else {**data, "timeout": hook.timeout}


def _mount(mount: Mount) -> dict[str, Any]:
    return _some(
        hostPath=mount.host_path, containerPath=mount.container_path,
        options=list(mount.options), type=mount.type,
    )  # fmt: skip


def _edits(edits: ContainerEdits) -> dict[str, Any]:
    return _some(
        env=list(edits.env),
        deviceNodes=[_node(node) for node in edits.device_nodes],
        hooks=[_hook(hook) for hook in edits.hooks],
        mounts=[_mount(mount) for mount in edits.mounts],
        additionalGids=list(edits.additional_gids),
    )


def to_data(spec: Spec, version: str) -> dict[str, Any]:
    """The spec as its file has it, keys in the order of the Go structs."""
    return {
        "cdiVersion": version,
        "kind": spec.kind,
        **_some(annotations=dict(spec.annotations)),
        "devices": [
            {
                "name": device.name,
                **_some(annotations=dict(device.annotations)),
                "containerEdits": _edits(device.container_edits),
            }
            for device in spec.devices
        ],
        **_some(containerEdits=_edits(spec.container_edits)),
    }
