"""What a CDI device brings into a container, and whether it is there exactly once.

Invariant: pure. A container that was only created is judged by its runtime spec; one that runs, by
what its process has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.toml.document import get

_MOST = 3  # parts that a message names


@dataclass(frozen=True)
class Effects:
    """What a container gets with a device: variables (NAME=VALUE), paths of device nodes, and where
    something is mounted."""

    variables: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()


def effects(spec: Mapping[str, Any], device: str) -> Effects:
    """What a container gets with the device of this (unqualified) name of a CDI spec."""
    devices = (item for item in spec.get("devices", ()) if item.get("name") == device)
    # A variable of the device replaces one of the whole spec.
    edits = [part.get("containerEdits") or {} for part in (spec, next(devices, {}))]
    variables = {word.partition("=")[0]: word for edit in edits for word in edit.get("env", ())}
    return Effects(
        tuple(variables.values()),
        (*dict.fromkeys(n["path"] for edit in edits for n in edit.get("deviceNodes", ())),),
        (*dict.fromkeys(m["containerPath"] for edit in edits for m in edit.get("mounts", ())),),
    )


def of_runtime_spec(spec: object) -> Effects:
    """All that a container has by its runtime spec (the OCI's), each part as often as it is
    there."""
    return Effects(
        tuple(map(str, get(spec, ("process", "env")) or ())),
        tuple(str(node.get("path")) for node in get(spec, ("linux", "devices")) or ()),
        tuple(str(mount.get("destination")) for mount in get(spec, ("mounts",)) or ()),
    )


def problem(expected: Effects, found: Effects) -> str:
    """What of a device is missing in a container or there more than once; "" if nothing is."""
    missing: list[str] = []
    twice: list[str] = []
    for what, wanted, there in (
        ("device node", expected.nodes, found.nodes),
        ("mount", expected.mounts, found.mounts),
        ("variable", expected.variables, found.variables),
    ):
        for item in wanted:
            name = item.partition("=")[0] if what == "variable" else item
            count = there.count(item)
            (missing if count == 0 else twice if count > 1 else []).append(f"{what} {name}")
    total = len(expected.nodes) + len(expected.mounts) + len(expected.variables)
    if missing and len(missing) == total:
        return "the container has nothing of the device"
    texts = ((missing, "not in the container"), (twice, "more than once in the container"))
    return "; ".join(
        ", ".join(items[:_MOST])
        + (f" and {len(items) - _MOST} more" if len(items) > _MOST else "")
        + f": {text}"
        for items, text in texts
        if items
    )
