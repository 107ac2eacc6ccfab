"""A CDI spec of ours: as data, with the names of CDI's SPEC.md and specs-go/config.go, and as the
text of its file.

Invariant: plain values only, and only the fields that our specs have. Equal specs give equal bytes,
and an invalid spec is never written. The version is not stored, because it follows from the
features of a spec.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from agent.cdi import yaml_text
from agent.cdi.specs import rules
from agent.cdi.specs.own_specs import MARK
from agent.errors import Refused


@dataclass(frozen=True)
class DeviceNode:
    """A device node. Without a `host_path` the node has the same `path` on the host. With
    `major` and `minor` 0, the runtime reads the numbers from the node."""

    path: str
    host_path: str = ""
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    permissions: str = ""
    gid: int | None = None


@dataclass(frozen=True)
class Mount:
    """A mount of `host_path` on the host at `container_path`."""

    host_path: str
    container_path: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hook:
    """An OCI hook that runs `path` on the host. `args` begins with the program's own name."""

    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()


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


@dataclass(frozen=True)
class Spec:
    """Devices of one kind (`vendor/class`). `container_edits` hold for a container with any of
    them."""

    kind: str
    devices: tuple[Device, ...]
    container_edits: ContainerEdits = ContainerEdits()


def _data(value: Any) -> Any:
    """The plain data of a part of a spec, with CDI's field names. Fields with their default value
    are left out. (A mode or a group of 0 is kept, because the default of these is None.)"""
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
    return {"cdiVersion": version, **_data(spec)}


def minimum_version(spec: Spec) -> str:
    """The lowest version of CDI that has all features of a spec. containerd 1.7 reads at most
    0.8.0, and refuses a file with a higher version."""
    return rules.needed_version(to_data(spec, ""))[0]


def problems(spec: Spec) -> list[str]:
    """The problems of a spec, as sentences."""
    data = to_data(spec, minimum_version(spec))
    return [f"{p.where}: {p.what}" if p.where else p.what for p in rules.check(data)]


def text(spec: Spec, form: str = "yaml", *, mark: bool = True) -> str:
    """The content of a spec's file. `form` is yaml or json. `mark`: a YAML file begins with MARK,
    by which `is_ours` recognizes it. Raises Refused for a spec that is not valid."""
    if found := problems(spec):
        raise Refused(f"cannot write a CDI spec for {spec.kind}: {'; '.join(found)}; report this")
    data = to_data(spec, minimum_version(spec))
    if form == "json":
        return yaml_text.printable(json.dumps(data, indent=2, ensure_ascii=False)) + "\n"
    head = ["---", MARK] if mark else ["---"]
    return "\n".join([*head, *yaml_text.lines(data)]) + "\n"
