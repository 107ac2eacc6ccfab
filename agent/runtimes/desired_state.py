"""What the runtime has to end up with, and how far it is from that.

Invariant: pure. The same wish is held against files (before) and against the runtime's own Status
(proof), and a value that is missing counts as the zero value, as in the runtime itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agent.cri.client import Answer
from agent.errors import Refused
from agent.runtimes.base import Effective
from agent.state import schema
from agent.toml.edit import Data, Path, Set, apply, get

# The shims of runc: v2, v1 (gone in containerd 2.0), and the one before them (likewise).
RUNC_V2 = "io.containerd.runc.v2"
LINUX = "io.containerd.runtime.v1.linux"
_RUNC = "io.containerd.runc."
OUR_NAMES = ("nvidia", "nvidia-cdi", "nvidia-legacy")
FILLED = ("sandboxer", "sandbox_mode")  # containerd puts its own value where there is none:
SANDBOXER = "podsandbox"
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


STATUS_NAMES = {name: key for key, name in _STATUS_KEYS.items()}  # from Status to the file


@dataclass(frozen=True, slots=True)
class Desired:
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
    def from_json(cls, data: Data) -> Desired:
        """From the journal. Raises Refused."""
        try:
            schema.require(data, schema.WANTED)
            return cls(data["handlers"], data["default"], data["enable_cdi"], tuple(data["absent"]))
        except (KeyError, ValueError) as error:
            raise Refused(
                f"cannot read the journal: what it wants is damaged ({error}); look at the "
                "runtime's configuration, then move journal.json away"
            ) from error


def is_ours(name: str, table: Data, names: tuple[str, ...] = OUR_NAMES) -> bool:
    """A handler with one of our names, or one that calls an nvidia-container-runtime.

    A sandbox (gVisor, Kata) is neither, whatever its name: what it protects is not ours to give up.
    """
    if is_sandbox(table):
        return False
    return name in names or any(map(_is_binary, programs_of(table)))


def is_nvidia(effective: Effective, name: str, names: tuple[str, ...] = OUR_NAMES) -> bool:
    """The same of a handler of this configuration. One that is called like the program is NVIDIA's,
    too; one of the v1.linux shim that names no program calls that of the shim's own settings."""
    table = effective.table(name)
    if is_ours(name, table, names) or (_is_binary(name) and not is_sandbox(table)):
        return True
    silent = table.get("runtime_type") == LINUX and not any(programs_of(table))
    return silent and _is_binary(effective.linux_runtime)


def is_runc(table: Data) -> bool:
    """Does containerd run this handler by runc's shim, the only one that knows BinaryName?"""
    return str(table.get("runtime_type") or _RUNC).startswith(_RUNC)


def is_sandbox(table: Data) -> bool:
    """Does a shim of somebody else run the pods of this handler of containerd (gVisor, Kata)?"""
    kind = str(table.get("runtime_type") or _RUNC)
    return kind.startswith("io.containerd.") and kind != LINUX and not kind.startswith(_RUNC)


def programs_of(table: Data) -> Iterator[str]:
    """Every program that a handler names: `runtime_path` is the OCI runtime in CRI-O and a shim in
    containerd, `runtime_engine` the OCI runtime of the v1.linux shim."""
    for key in ("runtime_path", "runtime_engine"):
        if isinstance(value := table.get(key), str) and value:
            yield value
    options = table.get("options") or {}
    for key, value in options.items():
        if isinstance(value, str) and value and key.lower() in ("binaryname", "runtime"):
            yield value


def _is_binary(path: str) -> bool:
    return os.path.basename(path).startswith(_BINARY)


def binaries(table: Data) -> Iterator[tuple[str, str]]:
    """Every spelling of the binary in a handler's options.

    containerd passes options on by name regardless of case: with `binaryName` in one file and
    `BinaryName` in another, Status shows the one and pods run the other (observed on 2.1.9).
    `Runtime` is the option of the v1.linux shim; NVIDIA's installer writes both in version 1 files.
    """
    options = table.get("options") or {}
    for key, value in options.items():
        if not isinstance(value, str):
            continue
        lower = key.lower()
        if lower == "binaryname" or (lower == "runtime" and _is_binary(value)):
            yield key, value


def default_for(
    effective: Effective,
    own_default: str | None,
    ours: tuple[str, ...],
    remembered: str | None,
    key: str,
) -> str | None:
    """The default runtime to write, None where the present one stays.

    `own_default` is one of our handlers, or None. `key` is the name of the setting in a file.
    Raises Refused where no handler can become the default runtime again.
    """
    if own_default is not None:
        return own_default
    if is_nvidia(effective, effective.default, ours):
        found = first_foreign(effective, ours, (remembered, "runc", "crun"))
        if found is None:
            raise Refused(
                f"cannot take {effective.default} back as default runtime: there is no handler "
                "runc or crun to go back to; add the handler that was the default before, or leave "
                f"{effective.default} the default with --set-as-default=true"
            )
        return found
    if effective.default not in effective.runtimes:
        raise Refused(
            f"cannot use the configuration: {key} is {effective.default}, and there is no such "
            "handler; add it or correct the name"
        )
    return None


def first_foreign(
    effective: Effective, ours: tuple[str, ...], names: tuple[str | None, ...]
) -> str | None:
    """The first of these that is a handler, and not one of ours."""
    for name in names:
        if name and name in effective.runtimes and not is_nvidia(effective, name, ours):
            return name
    return None


def emptied(table: Data, current: Data) -> Data:
    """The table, and everything that the current one has besides set to nothing."""
    for path, value in leaves(current):
        known = isinstance(value, bool | int | float | str | list)
        if known and value and path[-1] not in FILLED and get(table, path, table) is table:
            table = apply(table, [Set(path, type(value)())])
    return table


def differences(desired: Desired, effective: Effective) -> dict[Path, Any]:
    """Keys below the CRI section that are not as wanted, with what they have to be."""
    found: dict[Path, Any] = {}
    for name, table in desired.handlers.items():
        current = effective.runtimes.get(name)
        for path, value in leaves(table):
            if current is None or not _is_same_value(path[-1], value, get(current, path)):
                found[(*_RUNTIMES, name, *path)] = value
    if desired.default is not None and effective.default != desired.default:
        found[_DEFAULT] = desired.default
    if desired.enable_cdi and effective.enable_cdi is not True:
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


def _is_same_value(key: str, one: Any, other: Any) -> bool:
    """The same of a key of a handler: some have another value of their own than nothing."""
    if key in FILLED:
        one, other = one or SANDBOXER, other or SANDBOXER
    return same(one, other)


def unproven(desired: Desired, answer: Answer) -> list[str]:
    """What the running runtime lacks, in words; empty where it is as wanted."""
    shown = get(answer.config, _RUNTIMES)
    if not isinstance(shown, Mapping):
        # No verbose information: all that can be had is the list of handlers.
        missing = [name for name in desired.handlers if name not in answer.handlers]
        wrong = [name for name in desired.absent if name in answer.handlers]
        return [f"handler {n} is not listed" for n in missing] + [
            f"handler {n} is still there" for n in wrong
        ]
    problems = [f"handler {name} is still there" for name in desired.absent if name in shown]
    for name, table in desired.handlers.items():
        running = shown.get(name)
        if not isinstance(running, Mapping):
            problems.append(f"handler {name} is missing")
        elif answer.handlers and name not in answer.handlers:
            problems.append(f"handler {name} is not listed")
        else:
            problems += [f"handler {name}: {text}" for text in _table_problems(table, running)]
    default = get(answer.config, ("containerd", "defaultRuntimeName"))
    if desired.default is not None and default != desired.default:
        problems.append(f"the default runtime is {default}, not {desired.default}")
    if desired.enable_cdi and get(answer.config, ("enableCDI",), False) not in (True, None):
        problems.append("enableCDI is not on")
    return problems


def _table_problems(table: Data, running: Mapping[str, Any]) -> Iterator[str]:
    options = running.get("options") or {}
    for key, value in table["options"].items():
        if not same(value, options.get(key)):
            yield f"option {key} is not as wanted"
    for key, value in binaries({"options": options}):
        if value != table["options"].get("BinaryName", ""):
            yield f"option {key} names another binary"
    for key, value in table.items():
        shown = _STATUS_KEYS.get(key, key)
        if key != "options" and shown in running and not _is_same_value(key, value, running[shown]):
            yield f"{key} is not as wanted"
