"""The effects of a CDI device in a container, and whether each is there exactly once.

Invariant: depends on the arguments only. A container that was only created is judged by its OCI
runtime spec; a running one by its process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.toml.document import get

_MOST = 3  # effects that a message names


@dataclass(frozen=True)
class Effects:
    """The effects of a device: variables (NAME=VALUE), paths of device nodes, and destinations of
    mounts."""

    variables: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()


def effects(spec: Mapping[str, Any], device: str) -> Effects:
    """The effects of the device with this unqualified name in a CDI spec."""
    devices = (item for item in spec.get("devices", ()) if item.get("name") == device)
    # A variable of the device replaces one of the same name in the whole spec.
    edits = [part.get("containerEdits") or {} for part in (spec, next(devices, {}))]
    variables = {word.partition("=")[0]: word for edit in edits for word in edit.get("env", ())}
    return Effects(
        tuple(variables.values()),
        (*dict.fromkeys(n["path"] for edit in edits for n in edit.get("deviceNodes", ())),),
        (*dict.fromkeys(m["containerPath"] for edit in edits for m in edit.get("mounts", ())),),
    )


def effects_of_runtime_spec(spec: object) -> Effects:
    """All variables, device nodes and mounts in a container's OCI runtime spec, duplicates
    included."""
    return Effects(
        tuple(map(str, get(spec, ("process", "env")) or ())),
        tuple(str(node.get("path")) for node in get(spec, ("linux", "devices")) or ()),
        tuple(str(mount.get("destination")) for mount in get(spec, ("mounts",)) or ()),
    )


def problem(expected: Effects, actual: Effects) -> str:
    """The effects of a device that a container lacks or has more than once, in words; "" if there
    are none."""
    missing: list[str] = []
    repeated: list[str] = []
    for kind, expected_items, found_items in (
        ("device node", expected.nodes, actual.nodes),
        ("mount", expected.mounts, actual.mounts),
        ("variable", expected.variables, actual.variables),
    ):
        for item in expected_items:
            name = item.partition("=")[0] if kind == "variable" else item
            count = found_items.count(item)
            (missing if count == 0 else repeated if count > 1 else []).append(f"{kind} {name}")
    total = len(expected.nodes) + len(expected.mounts) + len(expected.variables)
    if missing and len(missing) == total:
        return "the container has nothing of the device"
    texts = ((missing, "not in the container"), (repeated, "more than once in the container"))
    return "; ".join(
        ", ".join(items[:_MOST])
        + (f" and {len(items) - _MOST} more" if len(items) > _MOST else "")
        + f": {text}"
        for items, text in texts
        if items
    )
