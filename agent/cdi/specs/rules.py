"""The rules of a valid spec, and the lowest version of CDI that has all features of a spec.

Invariant: every known runtime reads a spec without problems, and its containers start as far as
that depends on the spec. Rules are those of CDI SPEC.md and its Go library (0.8 to 1.1), tried on
containerd 1.7.24 and 2.1.9. The same rules hold for specs of ours and of other writers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent.cdi.specs import readers
from agent.cdi.specs.readers import UNKNOWN_READER, VERSIONS, Reader
from agent.cdi.specs.scalar import quoted
from agent.cdi.specs.shape import Problem, edits

_WORD = re.compile(r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
_DEVICE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_PERMISSIONS = re.compile(r"[rwm]*")
_ANNOTATION = re.compile(
    r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
)
_ANNOTATIONS = 256 << 10  # bytes
_HOOKS = (
    "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
)  # fmt: skip
_TYPES = ("b", "c", "u", "p")
_CRASH = "containerd up to 2.3 dies as soon as it reads the file"
_UNFOUND = "it is not found, and the container not started"
_NEWEST = VERSIONS[-1]
_NEW_RDT = ("schemata", "enableMonitoring")

Data = Mapping[str, Any]


def check(spec: Data, reader: Reader = UNKNOWN_READER) -> Iterator[Problem]:
    """The problems of a spec for a runtime. `spec` has the fields and types of `shape`."""
    yield from _version(spec, reader)
    yield from _kind(spec.get("kind", ""), reader)
    yield from _annotations(spec, "annotations")
    devices = spec.get("devices", [])
    if not devices:
        yield _refused("devices", "it has no devices", "add one, or remove the file")
    seen: set[str] = set()
    for number, device in enumerate(devices):
        where = f"devices[{number}]"
        name = device.get("name", "")
        if not _DEVICE.fullmatch(name):
            yield _refused(
                f"{where}.name", f"{quoted(name)} is no device name",
                "use letters, digits and _ - . : with a letter or digit at both ends",
            )  # fmt: skip
        elif name in seen:
            yield _refused(f"{where}.name", f"device {name} is there twice", "remove one of them")
        seen.add(name)
        part = device.get("containerEdits", {})
        if "intelRdt" not in part and not any(part.values()):
            yield _refused(
                f"{where}.containerEdits", f"device {quoted(name)} brings nothing",
                "give it a device node, a mount, a hook or a variable",
            )  # fmt: skip
        yield from _annotations(device, f"{where}.annotations")
    for where, part in edits(spec):
        yield from _edits(part, where, reader)


def _refused(where: str, what: str, remedy: str) -> Problem:
    return Problem("file", where, what, remedy)


def needed_version(spec: Data) -> tuple[str, str, str]:
    """(lowest version that the spec can have, feature that needs it, place of the feature); the
    latter two are "" if no feature needs it (specs-go/version.go)."""
    uses = [(readers.EARLIEST, "", ""), *_uses(spec)]
    return max(uses, key=lambda use: VERSIONS.index(use[0]))


def _uses(spec: Data) -> Iterator[tuple[str, str, str]]:
    if spec.get("annotations"):
        yield "0.6.0", "annotations", "annotations"
    if "." in spec.get("kind", "").partition("/")[2]:
        yield "0.6.0", "a class with a dot", "kind"
    for number, device in enumerate(spec.get("devices", ())):
        if device.get("name", "")[:1].isdigit():
            yield "0.5.0", "a device name that starts with a digit", f"devices[{number}].name"
        if device.get("annotations"):
            yield "0.6.0", "annotations", f"devices[{number}].annotations"
    for where, part in edits(spec):
        rdt = part.get("intelRdt")
        if part.get("netDevices"):
            yield _NEWEST, "netDevices", f"{where}.netDevices"
        if rdt is not None:
            new = "schemata" in rdt or rdt.get("enableMonitoring", False)
            yield (_NEWEST if new else "0.7.0"), "intelRdt", f"{where}.intelRdt"
        if part.get("additionalGids"):
            yield "0.7.0", "additionalGids", f"{where}.additionalGids"
        if any(node and node.get("hostPath") for node in part.get("deviceNodes", ())):
            yield "0.5.0", "hostPath of a device node", f"{where}.deviceNodes"
        if any(mount and mount.get("type") for mount in part.get("mounts", ())):
            yield "0.4.0", "type of a mount", f"{where}.mounts"


def _version(spec: Data, reader: Reader) -> Iterator[Problem]:
    given = spec.get("cdiVersion", "")
    number = readers.version_index(given)
    lowest, what, where = needed_version(spec)
    if number < 0:
        text = f"{quoted(given)} is no version of CDI" if given else "there is no version"
        yield _refused("cdiVersion", text, f"write {lowest}")
    elif number < VERSIONS.index(lowest):
        because = f", which {what} ({where}) needs" if what else ", the first that is still read"
        yield _refused("cdiVersion", f"{given} is lower than {lowest}{because}", f"write {lowest}")
    elif (most := reader.newest or reader.limit) and number > VERSIONS.index(most):
        sure = reader.limit is not None and number > VERSIONS.index(reader.limit)
        known = f"{reader.name} may read no more than {most}"
        if sure:
            known = f"{reader.name} reads up to {reader.limit}"
        remedy = f"write {lowest}" if lowest != given.removeprefix("v") else f"do without {what}"
        yield Problem("file" if sure else "nothing", "cdiVersion", f"it is {given}, and {known}",
                      remedy, unsure=not sure)  # fmt: skip


def _kind(kind: str, reader: Reader) -> Iterator[Problem]:
    vendor, slash, name = kind.partition("/")
    if not slash:
        text = f"{quoted(kind)} is not VENDOR/CLASS" if kind else "there is no kind (VENDOR/CLASS)"
        yield _refused("kind", text, "write one, as vendor.example/gpu")
        return
    for what, word in (("vendor", vendor), ("class", name)):
        if not _WORD.fullmatch(word):
            remedy = "use letters, digits and _ - . with a letter first and none of _ - . last"
            yield _refused("kind", f"{what} {quoted(word)} is no name", remedy)
            return
        if len(word) < 2 and reader.brittle is not False:
            text = f"{what} {quoted(word)} is a single character: {_CRASH}"
            yield Problem("file", "kind", text, "rename the kind, or remove the file at once")


def _annotations(item: Data, where: str) -> Iterator[Problem]:
    annotations = item.get("annotations", {})
    for key in annotations:
        if not _ANNOTATION.fullmatch(key):
            yield Problem("nothing", where, f"{quoted(key)} is no name of an annotation",
                          "name it as Kubernetes does, as vendor.example/name")  # fmt: skip
    if sum(len(key) + len(value) for key, value in annotations.items()) > _ANNOTATIONS:
        yield Problem("nothing", where, "they are larger than 256 KiB", "make them smaller")


def _edits(part: Data, where: str, reader: Reader) -> Iterator[Problem]:
    yield from _env(part.get("env", ()), f"{where}.env", "environment")
    rules = {"deviceNodes": _node, "mounts": _mount, "hooks": _hook, "netDevices": _net}
    for field, rule in rules.items():
        for number, item in enumerate(part.get(field, ())):
            place = f"{where}.{field}[{number}]"
            if item is None:
                what = "it is empty" if field == "netDevices" else f"it is empty: {_CRASH}"
                yield _refused(place, what, "remove the item")
            else:
                yield from rule(item, place)
    for key in ("hostInterfaceName", "name"):
        names = [device.get(key) for device in part.get("netDevices", ()) if device]
        if len(set(names)) < len(names):
            yield _refused(f"{where}.netDevices", f"two have the same {key}", "remove one")
    yield from _intel_rdt(part.get("intelRdt", {}), f"{where}.intelRdt", reader)
    yield from _unknown(part, ("netDevices",), where, reader)
    yield from _unknown(part.get("intelRdt", {}), _NEW_RDT, f"{where}.intelRdt", reader)


def _unknown(data: Data, fields: Sequence[str], where: str, reader: Reader) -> Iterator[Problem]:
    """Problems of fields that are too new for the runtime, or may be."""
    if reader.limit is None or reader.newest == _NEWEST:
        return
    sure = reader.limit != _NEWEST
    does = "does" if sure else "may"
    for name in fields:
        if name in data:
            text = f"{reader.name} {does} not know the field, which came with CDI {_NEWEST}"
            yield Problem("file" if sure else "nothing", f"{where}.{name}", text, "remove it",
                          unsure=not sure)  # fmt: skip


def _env(values: Sequence[str], where: str, what: str) -> Iterator[Problem]:
    for number, text in enumerate(values):
        name, equals, _ = text.partition("=")
        place = f"{where}[{number}]"
        if not equals or not name:
            yield _refused(place, f"{what} {quoted(name)} is not NAME=value", "write NAME=value")
        elif "\0" in text:
            yield Problem("use", place, f"{what} {quoted(name)} is not NAME=value, because it "
                          "contains a zero byte", "remove the zero byte")  # fmt: skip
        elif "\n" in text:
            yield Problem("nothing", place, f"{what} {quoted(name)} is not NAME=value in one line",
                          "remove the line break")  # fmt: skip


def _node(node: Data, where: str) -> Iterator[Problem]:
    path = node.get("path", "")
    if not path:
        yield _refused(f"{where}.path", "there is no path", "write one")
    for key in ("path", "hostPath"):
        if node.get(key) and not node[key].startswith("/"):
            yield Problem("nothing", f"{where}.{key}", f"device node {quoted(node[key])} has no "
                          "absolute path", "start it with /")  # fmt: skip
    if node.get("type") and node["type"] not in _TYPES:
        yield _refused(f"{where}.type", f"there is no type {quoted(node['type'])}",
                       f"write one of {', '.join(_TYPES)}, or nothing")  # fmt: skip
    if not _PERMISSIONS.fullmatch(node.get("permissions", "")):
        yield _refused(f"{where}.permissions", f"{quoted(node['permissions'])} are no permissions",
                       "write some of the letters r, w and m")  # fmt: skip
    for key in ("major", "minor"):
        if node.get(key, 0) < 0:
            yield Problem("use", f"{where}.{key}", f"{node[key]} stands for any number, so no "
                          "node can be created", "write the number, or nothing")  # fmt: skip


def _mount(mount: Data, where: str) -> Iterator[Problem]:
    options = mount.get("options", ())
    kind = mount.get("type", "") if mount.get("type") not in ("none", "bind") else ""
    binds = "bind" in options or "rbind" in options
    for key in ("hostPath", "containerPath"):
        path = mount.get(key, "")
        if not path:
            yield _refused(f"{where}.{key}", "there is no path", "write one")
        elif not path.startswith("/") and key == "hostPath" and binds:
            text = f"mount {quoted(path)} has no absolute path: {_UNFOUND}"
            yield Problem("use", f"{where}.{key}", text, "start it with /")
        elif not path.startswith("/") and (key == "containerPath" or not kind):
            yield Problem("nothing", f"{where}.{key}", f"mount {quoted(path)} has no absolute path",
                          "start it with /")  # fmt: skip
    if not binds and not kind:
        yield Problem("use", f"{where}.options", "there is neither bind nor rbind, nor the type of "
                      "a file system: the container is not started", "add rbind")  # fmt: skip


def _hook(hook: Data, where: str) -> Iterator[Problem]:
    name, path = hook.get("hookName", ""), hook.get("path", "")
    if name not in _HOOKS:
        yield _refused(f"{where}.hookName", f"hook {quoted(name)} does not exist",
                       f"write one of {', '.join(_HOOKS)}")  # fmt: skip
    if not path:
        yield _refused(f"{where}.path", "there is no path", "write one")
    elif not path.startswith("/"):
        text = f"hook {quoted(path)} has no absolute path: {_UNFOUND}"
        yield Problem("use", f"{where}.path", text, "start it with /")
    if hook.get("timeout", 1) <= 0:
        yield Problem("use", f"{where}.timeout", f"{hook['timeout']} seconds are over before the "
                      "hook starts", "write more than 0, or nothing")  # fmt: skip
    yield from _env(hook.get("env", ()), f"{where}.env", "hook environment")


def _net(device: Data, where: str) -> Iterator[Problem]:
    for key in ("hostInterfaceName", "name"):
        if not device.get(key):
            yield _refused(f"{where}.{key}", "there is no name", "write one")


def _intel_rdt(rdt: Data, where: str, reader: Reader) -> Iterator[Problem]:
    name = rdt.get("closID", "")
    root = name == "/" and reader.newest == _NEWEST
    if (len(name) >= 4096 or name in (".", "..") or "/" in name or "\n" in name) and not root:
        yield _refused(f"{where}.closID", f"{quoted(name)} is no name of a class", "write a name")
    for key in ("enableCMT", "enableMBM"):
        if key in rdt and reader.newest in (None, _NEWEST):
            text = f"CDI {_NEWEST} has no such field, and runtimes with it may refuse the file"
            yield Problem("nothing", f"{where}.{key}", text, "use enableMonitoring")
