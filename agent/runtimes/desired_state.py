"""The desired state of a runtime, and the rules by which a handler is NVIDIA's or ours.

Invariant: pure. A missing value counts as the zero value, as in the runtimes. Each adapter compares
the desired state with the files (before a change) and with the running runtime (as the proof).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.errors import Refused
from agent.state import schema
from agent.toml.document import Data, Op, Path, Set, apply, deep_merge, get
from agent.toml.ops import identical

if TYPE_CHECKING:
    from agent.host.paths import HostPath

# Shims of runc: v2, v1, and the one before v1. containerd 2.0 and later have v2 only.
RUNC_V2 = "io.containerd.runc.v2"
LINUX = "io.containerd.runtime.v1.linux"
_RUNC = "io.containerd.runc."
OUR_NAMES = ("nvidia", "nvidia-cdi", "nvidia-legacy")
FILLED = ("sandboxer", "sandbox_mode")  # keys that containerd sets to SANDBOXER if they are missing
SANDBOXER = "podsandbox"
_DEFAULTS = {**dict.fromkeys(FILLED, SANDBOXER), "runtime_type": "oci"}  # the last is CRI-O's
_BINARY = "nvidia-container-runtime"


@dataclass(frozen=True)
class Effective:
    """The effective configuration: built-in defaults and all files, as the runtime merges them.

    `default` is the default runtime, `runtimes` has the table of each handler by name, `section` is
    the section with the CRI's settings. `enable_cdi` is None if the runtime has no such switch.
    `linux_runtime` is the program that the v1.linux shim runs for a handler that names none; empty
    without that shim.
    """

    default: str
    runtimes: Mapping[str, Data]
    enable_cdi: bool | None
    section: Data
    linux_runtime: str = ""

    def table(self, name: str) -> Data:
        """The table of a handler, empty if the handler does not exist."""
        return self.runtimes.get(name) or {}


@dataclass(frozen=True)
class Desired:
    """The desired state: whole tables of `handlers`, the default runtime (None leaves the present
    one), `enable_cdi` (false leaves the present value), and `absent` names, which must not be
    handlers."""

    handlers: Mapping[str, Data]
    default: str | None = None
    enable_cdi: bool = False
    absent: tuple[str, ...] = ()

    def to_json(self) -> Data:
        """The state as the journal stores it."""
        return {**vars(self), "handlers": dict(self.handlers), "absent": list(self.absent)}

    @classmethod
    def from_json(cls, data: Data) -> Desired:
        """The state in a journal. Raises Refused if the data is damaged."""
        try:
            return schema.make(cls, data)
        except ValueError as error:
            raise Refused(
                f"cannot read the journal: its desired state is damaged ({error}); look at the "
                "runtime's configuration, then move journal.json away"
            ) from error


def is_ours(name: str, table: Data, names: tuple[str, ...] = OUR_NAMES) -> bool:
    """Has a handler one of `names`, or does it call an nvidia-container-runtime?

    A sandbox (gVisor, Kata) is never ours, whatever its name, because its pods would lose their
    protection.
    """
    if is_sandbox(table):
        return False
    return name in names or any(map(_is_binary, programs_of(table)))


def is_nvidia(effective: Effective, name: str, names: tuple[str, ...] = OUR_NAMES) -> bool:
    """Is a handler of this configuration NVIDIA's? It is if `is_ours` says so, if its name is that
    of NVIDIA's program, or if it belongs to the v1.linux shim, names no program, and the settings
    of the shim name NVIDIA's."""
    table = effective.table(name)
    if is_ours(name, table, names) or (_is_binary(name) and not is_sandbox(table)):
        return True
    silent = table.get("runtime_type") == LINUX and not any(programs_of(table))
    return silent and _is_binary(effective.linux_runtime)


def is_runc(table: Data) -> bool:
    """Does containerd run the pods of this handler with runc's shim? Only that shim knows
    BinaryName."""
    return str(table.get("runtime_type") or _RUNC).startswith(_RUNC)


def is_sandbox(table: Data) -> bool:
    """Does another shim than runc's run the pods of this containerd handler (gVisor, Kata)?"""
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
    """The options of a handler that name its binary: each key with its value.

    containerd ignores the case of an option's name: with `binaryName` in one file and `BinaryName`
    in another, Status shows one value and pods run the other (observed on 2.1.9). `Runtime` is the
    option of the v1.linux shim; NVIDIA's installer writes both into files of version 1.
    """
    options = table.get("options") or {}
    for key, value in options.items():
        if not isinstance(value, str):
            continue
        lower = key.lower()
        if lower == "binaryname" or (lower == "runtime" and _is_binary(value)):
            yield key, value


def require_default(effective: Effective, key: str, edited: HostPath | None = None) -> None:
    """Raise Refused if the default runtime is no handler. `key` is the name of the setting in the
    runtime's files. `edited` is the file after whose edit the configuration is `effective`."""
    if effective.default not in effective.runtimes:
        action = f"edit {edited}" if edited else "use the configuration"
        raise Refused(
            f"cannot {action}: {key} is {effective.default}, and there "
            f"{'would be' if edited else 'is'} no such handler; add it or correct the name"
        )


def first_foreign(
    effective: Effective, ours: tuple[str, ...], names: tuple[str | None, ...]
) -> str | None:
    """The first of `names` that is an existing handler and not NVIDIA's, None if there is none.
    `ours` are the names of our handlers."""
    for name in names:
        if name and name in effective.runtimes and not is_nvidia(effective, name, ours):
            return name
    return None


def emptied(table: Data, current: Data) -> Data:
    """The table, with every further key of the current table set to its zero value."""
    for path, value in leaves(current):
        known = isinstance(value, bool | int | float | str | list)
        if known and value and path[-1] not in FILLED and get(table, path, table) is table:
            table = apply(table, [Set(path, type(value)())])
    return table


def leaves(table: Data, above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value in a table and in its sub-tables, with its path."""
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), value


def first_difference(one: Data, other: Data) -> Path | None:
    """The path of the first key in which two sets of data differ; None if they are equal."""
    old, new = dict(leaves(one)), dict(leaves(other))
    for path, _ in leaves(deep_merge(one, other)):
        if path not in old or path not in new or not identical(old[path], new[path]):
            return path
    return None


def differences(
    desired: Desired, effective: Effective, runtimes: Path, default: Path
) -> dict[Path, Any]:
    """The keys that differ from the desired state, with their desired values. `runtimes` and
    `default` are the paths of the handlers and of the default runtime in a file."""
    different: dict[Path, Any] = {}
    for name, table in desired.handlers.items():
        current = effective.runtimes.get(name)
        for path, value in leaves(table):
            if current is None or not same_value(path[-1], value, get(current, path)):
                different[(*runtimes, name, *path)] = value
    if desired.default not in (None, effective.default):
        different[default] = desired.default
    if desired.enable_cdi and effective.enable_cdi is not True:
        different[("enable_cdi",)] = True
    return different


def own_keys(data: Data, runtimes: Path, default: Path) -> Iterator[Path]:
    """The paths of our handlers, and of a default runtime that is one of them. `runtimes` and
    `default` as in `differences`."""
    tables = get(data, runtimes) or {}
    yield from ((*runtimes, name) for name, table in tables.items() if is_ours(name, table))
    name = get(data, default)
    if name and is_ours(name, tables.get(name, {})):
        yield default


def operations(
    desired: Desired, different: Mapping[Path, Any], runtimes: Path, data: Data,
    section_of: Callable[[Path], Path] = lambda _: (),
) -> list[Op]:  # fmt: skip
    """The operations on a file's data that set the keys in `different`. A handler that is new to
    the file is set as a whole table. `section_of` returns the path of the section for a key."""
    values: dict[Path, Any] = {}
    for path, value in different.items():
        handler = path[: len(runtimes) + 1]
        whole = (*section_of(handler), *handler)
        if handler[:-1] == runtimes and get(data, whole) is None:
            values[whole] = desired.handlers[handler[-1]]
        else:
            values[(*section_of(path), *path)] = value
    # Keys come before the tables below them.
    return [Set(path, values[path]) for path in sorted(values, key=len)]


def same_value(key: str, one: Any, other: Any) -> bool:
    """Are two values of this key of a handler equal? A missing value counts as the key's default,
    and the order of a list does not matter."""
    default = _DEFAULTS.get(key)
    if isinstance(one, list) and isinstance(other, list):
        one, other = sorted(map(str, one)), sorted(map(str, other))
    return same(one or default, other or default) if default else same(one, other)


def same(one: Any, other: Any) -> bool:
    """Are two values equal? A missing value counts as the zero value."""
    if isinstance(one, bool) or isinstance(other, bool):
        return bool(one) is bool(other)
    return bool(one == other) or (not one and not other)
