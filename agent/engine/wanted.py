"""What the runtime has to end up with, and how far it is from that.

Invariant: pure. The same wish is held against files (before) and against the runtime's own Status
(proof), and a value that is missing counts as the zero value, as in the runtime itself.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from typing import Any

from agent.data import dataclass
from agent.decide import Decision
from agent.errors import Refused
from agent.observe.cri import Answer
from agent.runtimes.merge import Cri
from agent.tomledit import Data, Path, Set, apply, get

OUR_NAMES = ("nvidia", "nvidia-cdi", "nvidia-legacy")
_RUNC = "io.containerd.runc."
FILLED = ("sandboxer", "sandbox_mode")  # containerd puts its own value where there is none
# Of our handler's own kind, not of the node's: which program runs, and what it is told.
_OWN = ("runtime_type", "runtime_path", "runtime_engine", "runtime_root", "options",
        "container_annotations")  # fmt: skip
_BINARY = "nvidia-container-runtime"
_RUNTIMES: Path = ("containerd", "runtimes")
_DEFAULT: Path = ("containerd", "default_runtime_name")

# Names in Status where they are not those of the file (containerd's JSON tags).
_STATUS_KEYS = {
    "runtime_type": "runtimeType", "runtime_path": "runtimePath", "runtime_root": "runtimeRoot",
    "runtime_engine": "runtimeEngine", "pod_annotations": "PodAnnotations",
    "container_annotations": "ContainerAnnotations", "base_runtime_spec": "baseRuntimeSpec",
    "cni_conf_dir": "cniConfDir", "cni_max_conf_num": "cniMaxConfNum",
    "cgroup_writable": "cgroupWritable", "sandbox_mode": "sandboxMode",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Binary:
    """A handler's name and its binary on the host."""

    handler: str
    path: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """The wish: whole handler tables, the default (None: leave it), `enable_cdi` set to true,
    and names that must not be handlers (after a revert)."""

    handlers: Mapping[str, Data]
    default: str | None = None
    enable_cdi: bool = False
    absent: tuple[str, ...] = ()

    def to_json(self) -> Data:
        """For the journal."""
        return {
            "handlers": dict(self.handlers),
            "default": self.default,
            "enable_cdi": self.enable_cdi,
            "absent": list(self.absent),
        }

    @classmethod
    def from_json(cls, data: Data) -> Wanted:
        """From the journal."""
        return cls(data["handlers"], data["default"], data["enable_cdi"], tuple(data["absent"]))


def is_ours(name: str, table: Data, names: tuple[str, ...] = OUR_NAMES) -> bool:
    """A handler with one of our names, or one that runs an nvidia-container-runtime."""
    paths = [value for _, value in binaries(table)]
    if isinstance(path := table.get("runtime_path"), str):  # CRI-O's key
        paths.append(path)
    return name in names or any(os.path.basename(p).startswith(_BINARY) for p in paths)


def is_runc(table: Data) -> bool:
    """Does containerd run this handler by runc's shim, the only one that knows BinaryName?"""
    return str(table.get("runtime_type") or _RUNC).startswith(_RUNC)


def binaries(table: Data) -> Iterator[tuple[str, str]]:
    """Every spelling of the binary in a handler's options.

    containerd passes options on by name regardless of case: with `binaryName` in one file and
    `BinaryName` in another, Status shows the one and pods run the other (observed on 2.1.9).
    `Runtime` is what the peer writes beside it in version 1 files.
    """
    options = table.get("options") or {}
    for key, value in options.items():
        if not isinstance(value, str):
            continue
        lower = key.lower()
        nvidia = lower == "runtime" and os.path.basename(value).startswith(_BINARY)
        if lower == "binaryname" or nvidia:
            yield key, value


def want(
    cri: Cri, decision: Decision, available: tuple[Binary, ...], name: str,
    remembered: str | None, runtime_type: str,
) -> Wanted:  # fmt: skip
    """The wish that follows from a decision on a node with these effective settings.

    `name` is the handler that becomes the default where the decision says so, `remembered` the
    default of before our first change. Raises Refused where no default could be gone back to.
    """
    names = tuple(binary.handler for binary in available)
    ours = (*OUR_NAMES, *names)
    carried = _carried(cri, ours, remembered)
    base = carried or cri.table(_base(cri, ours, remembered))
    handlers = {
        binary.handler: _handler(base, binary.path, decision, runtime_type,
                                 cri.table(binary.handler))
        for binary in available
    }  # fmt: skip
    default = default_for(
        cri, name if decision.is_default else None, ours, remembered, _DEFAULT[-1]
    )
    if carried and not decision.is_default:
        handlers["runc"] = carried
    return Wanted(handlers, default, decision.enable_cdi)


def default_for(
    cri: Cri, wanted: str | None, ours: tuple[str, ...], remembered: str | None, key: str
) -> str | None:
    """The default that has to be written; None leaves what there is. `wanted` is one of ours or
    None, `key` what a file calls it. Raises Refused where no default could be gone back to."""
    if wanted is not None:
        return wanted
    if is_ours(cri.default, cri.table(cri.default), ours):
        found = first_foreign(cri, ours, (remembered, "runc", "crun"))
        if found is None:
            raise Refused(
                f"cannot take {cri.default} back as default runtime: there is no handler runc or "
                "crun to go back to; add one to the configuration"
            )
        return found
    if cri.default not in cri.runtimes:
        raise Refused(
            f"cannot use the configuration: {key} is {cri.default}, and there is no such handler; "
            "add it or correct the name"
        )
    return None


def first_foreign(cri: Cri, ours: tuple[str, ...], names: tuple[str | None, ...]) -> str | None:
    """The first of these that is a handler, and not one of ours."""
    for name in names:
        if name and name in cri.runtimes and not is_ours(name, cri.table(name), ours):
            return name
    return None


def _carried(cri: Cri, ours: tuple[str, ...], remembered: str | None) -> Data | None:
    """The table of `runc` where only containerd itself defines it and the node's default is ours.

    Such a node (cloud images ship them) has its cgroup driver and its base spec (with the limits of
    every container) in our handler alone; pods of the built-in runc would run without them.
    """
    defined = get(cri.section, ("containerd", "runtimes"), {})
    stale = cri.table(cri.default)
    if not is_ours(cri.default, stale, ours) or "runc" not in cri.runtimes or "runc" in defined:
        return None
    if first_foreign(cri, ours, (remembered, "runc")) != "runc":
        return None
    binary = {key for key, _ in binaries(stale)}
    options = stale.get("options") or {}
    kept = {key: value for key, value in options.items() if key not in binary and value}
    rest = {key: value for key, value in stale.items() if key not in _OWN and value}
    if not kept and not rest:
        return None
    return {"runtime_type": cri.table("runc")["runtime_type"], **rest, "options": kept}


def _base(cri: Cri, ours: tuple[str, ...], remembered: str | None) -> str:
    """The handler to inherit from: the default unless ours, the remembered one, runc, crun; where
    there is no other handler at all, the default as it is.

    Only a runc shim knows BinaryName: below a kata or gVisor default our binary would never run.
    """
    names = [
        name
        for name in (cri.default, remembered, "runc", "crun")
        if name and is_runc(cri.table(name))
    ]
    return first_foreign(cri, ours, tuple(names)) or cri.default


def _handler(base: Data, binary: str, decision: Decision, runtime_type: str, current: Data) -> Data:
    """The base's table with our binary, under every spelling that the current table has."""
    table = copy.deepcopy(base)
    inherited = table.pop("options", {})
    foreign = {key for key, _ in binaries(base)}
    options = {"BinaryName": binary, **dict.fromkeys((key for key, _ in binaries(current)), binary)}
    options |= {key: value for key, value in inherited.items() if key not in foreign}
    table["runtime_type"] = table.get("runtime_type") or runtime_type
    annotations = [prefix + "*" for prefix in decision.pass_prefixes]
    annotations += [
        item for item in table.pop("container_annotations", []) if item not in annotations
    ]
    if annotations or current.get("container_annotations"):
        table["container_annotations"] = annotations
    table = {**table, "options": options}
    return without_stale(table, current, binary)


def without_stale(table: Data, current: Data, binary: str) -> Data:
    """What an earlier tool's handler of this name has besides is set to nothing: a drop-in cannot
    delete. A handler that runs our binary already may have been given more by the admin."""
    if all(value == binary for _, value in binaries(current)):
        return table
    return emptied(table, current)


def emptied(table: Data, current: Data) -> Data:
    """The table, and everything that the current one has besides set to nothing."""
    for path, value in leaves(current):
        known = isinstance(value, bool | int | float | str | list)
        if known and value and path[-1] not in FILLED and get(table, path, table) is table:
            table = apply(table, [Set(path, type(value)())])
    return table


def gaps(wanted: Wanted, cri: Cri) -> dict[Path, Any]:
    """Keys below the CRI section that are not as wanted, with what they have to be."""
    found: dict[Path, Any] = {}
    for name, table in wanted.handlers.items():
        current = cri.runtimes.get(name)
        for path, value in leaves(table):
            if current is None or not same(value, get(current, path)):
                found[(*_RUNTIMES, name, *path)] = value
    if wanted.default is not None and cri.default != wanted.default:
        found[_DEFAULT] = wanted.default
    if wanted.enable_cdi and cri.enable_cdi is not True:
        found[("enable_cdi",)] = True
    return found


def leaves(table: Data, above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value in a table and in those below it, with its path."""
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), value


def same(one: Any, other: Any) -> bool:
    """Equal, where a missing value is the zero value of its kind."""
    if isinstance(one, bool) or isinstance(other, bool):
        return bool(one) is bool(other)
    return bool(one == other) or (not one and not other)


def unproven(wanted: Wanted, answer: Answer) -> list[str]:
    """What the running runtime lacks, in words; empty where it is as wanted."""
    shown = get(answer.config, _RUNTIMES)
    if not isinstance(shown, Mapping):
        # No verbose information: all that can be had is the list of handlers.
        missing = [name for name in wanted.handlers if name not in answer.handlers]
        wrong = [name for name in wanted.absent if name in answer.handlers]
        return [f"handler {n} is not listed" for n in missing] + [
            f"handler {n} is still there" for n in wrong
        ]
    problems = [f"handler {name} is still there" for name in wanted.absent if name in shown]
    for name, table in wanted.handlers.items():
        running = shown.get(name)
        if not isinstance(running, Mapping):
            problems.append(f"handler {name} is missing")
        elif answer.handlers and name not in answer.handlers:
            problems.append(f"handler {name} is not listed")
        else:
            problems += [f"handler {name}: {text}" for text in _unlike(table, running)]
    default = get(answer.config, ("containerd", "defaultRuntimeName"))
    if wanted.default is not None and default != wanted.default:
        problems.append(f"the default runtime is {default}, not {wanted.default}")
    if wanted.enable_cdi and get(answer.config, ("enableCDI",), False) not in (True, None):
        problems.append("enableCDI is not on")
    return problems


def _unlike(table: Data, running: Mapping[str, Any]) -> Iterator[str]:
    options = running.get("options") or {}
    for key, value in table["options"].items():
        if not same(value, options.get(key)):
            yield f"option {key} is not as wanted"
    for key, value in binaries({"options": options}):
        if value != table["options"].get("BinaryName", ""):
            yield f"option {key} names another binary"
    for key, value in table.items():
        shown = _STATUS_KEYS.get(key, key)
        if key != "options" and shown in running and not same(value, running[shown]):
            yield f"{key} is not as wanted"
