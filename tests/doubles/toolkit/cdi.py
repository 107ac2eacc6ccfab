"""CDI as the scripted runtime does it: which specs there are, which devices, what they change in
an OCI specification."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tests.doubles.toolkit import blocks

_QUALIFIED = (
    r"[A-Za-z]([\w.-]*[A-Za-z0-9])?/[A-Za-z]([\w-]*[A-Za-z0-9])?=[A-Za-z0-9]([\w.:-]*[A-Za-z0-9])?"
)
_EDITS = {"env", "deviceNodes", "hooks", "mounts", "additionalGids", "intelRdt", "netDevices"}
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

Edits = Mapping[str, Any]


class Device(NamedTuple):
    """One device; `file` is where it was found, `common` what each device of that file does."""

    file: str
    common: Edits
    own: Edits


class Unresolvable(Exception):
    """A container asks for devices that no spec describes."""


def is_qualified(name: str) -> bool:
    """Whether it is vendor/class=name."""
    return re.fullmatch(_QUALIFIED, name) is not None


def devices(directories: Iterable[str]) -> dict[str, Device]:
    """All that the specs describe. A later directory wins; what two files of one directory
    describe is not there."""
    found: dict[str, Device] = {}
    for directory in directories:
        here: dict[str, list[Device]] = {}
        for path in _files(directory):
            for name, device in _of_file(path).items():
                here.setdefault(name, []).append(device)
        for name, described in here.items():
            found.pop(name, None)
            if len(described) == 1:
                found[name] = described[0]
    return found


def inject(spec: dict[str, Any], names: Sequence[str], directories: Iterable[str]) -> None:
    """Change `spec` as the devices of these names want it."""
    known = devices(directories)
    missing = [name for name in names if name not in known]
    if missing:
        raise Unresolvable(f"unresolvable CDI devices {', '.join(missing)}")
    files: set[str] = set()
    for device in (known[name] for name in names):
        if device.file not in files:
            files.add(device.file)
            edit(spec, device.common)
        edit(spec, device.own)


def edit(spec: dict[str, Any], edits: Edits) -> None:
    """Change `spec` as one set of edits wants it; a ValueError where one is unknown."""
    unknown = sorted(set(edits) - _EDITS)
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r} in container edits")
    process = spec.setdefault("process", {})
    for word in edits.get("env") or ():
        name = word.partition("=")[0]
        others = [w for w in process.get("env") or () if w.partition("=")[0] != name]
        process["env"] = [*others, word]
    for node in edits.get("deviceNodes") or ():
        _add_node(spec, node)
    for mount in edits.get("mounts") or ():
        _add_mount(spec, mount)
    for hook in edits.get("hooks") or ():
        _add_hook(spec, hook)
    user = process.setdefault("user", {})
    for gid in edits.get("additionalGids") or ():
        if gid and gid not in user.setdefault("additionalGids", []):
            user["additionalGids"].append(gid)


def _files(directory: str) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    return [os.path.join(directory, n) for n in names if n.endswith((".json", ".yaml"))]


def _of_file(path: str) -> dict[str, Device]:
    """What one file describes; one that cannot be read is passed over, as the libraries do."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        spec = json.loads(text) if path.endswith(".json") else blocks.parse(text)
        common = spec.get("containerEdits") or {}
        return {
            f"{spec['kind']}={device['name']}": Device(path, common, device["containerEdits"])
            for device in spec["devices"]
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _add_node(spec: dict[str, Any], node: Mapping[str, Any]) -> None:
    linux = spec.setdefault("linux", {})
    path = node["path"]
    found = os.stat(node.get("hostPath") or path)
    kind = "b" if stat.S_ISBLK(found.st_mode) else "c"
    device: dict[str, Any] = {
        "path": path,
        "type": node.get("type") or kind,
        "major": node.get("major") or os.major(found.st_rdev),
        "minor": node.get("minor") or os.minor(found.st_rdev),
        "fileMode": node.get("fileMode") or stat.S_IMODE(found.st_mode),
    }
    device |= {key: node[key] for key in ("uid", "gid") if node.get(key) is not None}
    linux["devices"] = [d for d in linux.get("devices") or () if d["path"] != path] + [device]
    rules = linux.setdefault("resources", {}).setdefault("devices", [])
    rule = {key: device[key] for key in ("type", "major", "minor")}
    rules.append({"allow": True, **rule, "access": node.get("permissions") or "rwm"})


def _add_mount(spec: dict[str, Any], mount: Mapping[str, Any]) -> None:
    target = mount["containerPath"]
    others = [m for m in spec.get("mounts") or () if m["destination"] != target]
    added = {
        "destination": target,
        "source": mount["hostPath"],
        "type": mount.get("type") or "bind",
        "options": list(mount.get("options") or ()),
    }
    # What lies in another mount comes after it.
    spec["mounts"] = sorted([*others, added], key=lambda m: m["destination"].rstrip("/").count("/"))


def _add_hook(spec: dict[str, Any], hook: Mapping[str, Any]) -> None:
    name = hook["hookName"]
    if name not in _HOOKS:
        raise ValueError(f"unknown hook name {name!r}")
    added = {key: hook[key] for key in ("path", "args", "env", "timeout") if hook.get(key)}
    hooks = spec["hooks"] = spec.get("hooks") or {}
    hooks[name] = [*(hooks.get(name) or ()), added]
