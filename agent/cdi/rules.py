"""What makes a spec valid, and the lowest version that carries what it uses.

Invariant: what passes here is read by every runtime that we know of. Rules are those of CDI
SPEC.md and its Go library; one is ours: a vendor or class of a single character makes containerd
before 2.4 panic as soon as it reads the directory (seen on 1.7.24 to 2.3.4).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from agent.cdi.model import ContainerEdits, Spec

_WORD = re.compile(r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
_DEVICE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_ENV = re.compile(r"[^=\0\n]+=[^\0\n]*")
_PERMISSIONS = re.compile(r"[rwm]*")
_HOOKS = frozenset(
    "prestart createRuntime createContainer startContainer poststart poststop".split()
)
_TYPES = frozenset(("", "b", "c", "u", "p"))


def problems(spec: Spec) -> list[str]:
    """Everything that is wrong with a spec, in words; nothing where it is valid."""
    found = [*_kind(spec.kind)]
    if not spec.devices:
        found.append("it has no devices")
    seen: set[str] = set()
    for device in spec.devices:
        if not _DEVICE.fullmatch(device.name):
            found.append(f"{device.name!r} is no device name")
        if device.name in seen:
            found.append(f"device {device.name} is there twice")
        seen.add(device.name)
        if device.container_edits == ContainerEdits():
            found.append(f"device {device.name} brings nothing")
        found += _edits(device.container_edits)
    return [*found, *_edits(spec.container_edits)]


def _kind(kind: str) -> Iterator[str]:
    vendor, slash, name = kind.partition("/")
    if not slash:
        yield f"kind {kind!r} is not VENDOR/CLASS"
        return
    for what, word in (("vendor", vendor), ("class", name)):
        if not _WORD.fullmatch(word):
            yield f"{what} {word!r} is no name"
        elif len(word) < 2:
            yield f"{what} {word!r} is a single character, of which containerd before 2.4 dies"


def _edits(edits: ContainerEdits) -> Iterator[str]:
    for text in edits.env:
        if not _ENV.fullmatch(text):
            yield f"environment {text.partition('=')[0]!r} is not NAME=value"
    for node in edits.device_nodes:
        if not node.path.startswith("/"):
            yield f"device node {node.path!r} has no absolute path"
        if node.type not in _TYPES or not _PERMISSIONS.fullmatch(node.permissions):
            yield f"device node {node.path} has a type or permissions that do not exist"
    for mount in edits.mounts:
        if not (mount.host_path.startswith("/") and mount.container_path.startswith("/")):
            yield f"mount {mount.host_path!r} has no absolute paths"
    for hook in edits.hooks:
        if hook.hook_name not in _HOOKS or not hook.path.startswith("/"):
            yield f"hook {hook.hook_name!r} does not exist or has no absolute path"
        yield from (f"hook environment {e!r} is not NAME=value" for e in hook.env
                    if not _ENV.fullmatch(e))  # fmt: skip


def minimum_version(spec: Spec) -> str:
    """The lowest CDI version that carries all that a spec uses (specs-go/version.go): 1.7 reads up
    to 0.8.0 only, and refuses a whole file for a higher number."""
    every = (spec.container_edits, *(device.container_edits for device in spec.devices))
    if any(edits.additional_gids for edits in every):
        return "0.7.0"
    annotated = spec.annotations or any(device.annotations for device in spec.devices)
    if annotated or "." in spec.kind.partition("/")[2]:
        return "0.6.0"
    named_by_number = any(device.name[:1].isdigit() for device in spec.devices)
    if named_by_number or any(node.host_path for edits in every for node in edits.device_nodes):
        return "0.5.0"
    if any(mount.type for edits in every for mount in edits.mounts):
        return "0.4.0"
    return "0.3.0"
