"""The desired state of a runtime, and whose a handler is.

Invariant: pure. A missing value counts as the zero value, as in the runtimes. Each runtime compares
the desired state with its files (before a change) and with what it shows (as the proof).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agent.errors import Refused
from agent.runtimes.base import Effective
from agent.state import schema
from agent.toml.document import Data, Path, Set, apply, get

# Shims of runc: v2, v1, and the one before v1. containerd 2.0 and later have v2 only.
RUNC_V2 = "io.containerd.runc.v2"
LINUX = "io.containerd.runtime.v1.linux"
_RUNC = "io.containerd.runc."
OUR_NAMES = ("nvidia", "nvidia-cdi", "nvidia-legacy")
FILLED = ("sandboxer", "sandbox_mode")  # containerd puts its own value if there is none:
SANDBOXER = "podsandbox"
_BINARY = "nvidia-container-runtime"


@dataclass(frozen=True)
class Desired:
    """The desired state: whole tables of `handlers`, the default runtime (None leaves the present
    one), `enable_cdi` if it is set to true, and `absent` names, which must not be handlers."""

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
            return schema.make(cls, data)
        except ValueError as error:
            raise Refused(
                f"cannot read the journal: what it wants is damaged ({error}); look at the "
                "runtime's configuration, then move journal.json away"
            ) from error


def is_ours(name: str, table: Data, names: tuple[str, ...] = OUR_NAMES) -> bool:
    """Has a handler one of our names, or does it call an nvidia-container-runtime?

    A sandbox (gVisor, Kata) is never ours, whatever its name, because its pods would lose their
    protection.
    """
    if is_sandbox(table):
        return False
    return name in names or any(map(_is_binary, programs_of(table)))


def is_nvidia(effective: Effective, name: str, names: tuple[str, ...] = OUR_NAMES) -> bool:
    """Is a handler of this configuration NVIDIA's? Besides those of `is_ours`, a handler with the
    name of the program is. A handler of the v1.linux shim that names no program calls the one in
    the shim's own settings."""
    table = effective.table(name)
    if is_ours(name, table, names) or (_is_binary(name) and not is_sandbox(table)):
        return True
    silent = table.get("runtime_type") == LINUX and not any(programs_of(table))
    return silent and _is_binary(effective.linux_runtime)


def is_runc(table: Data) -> bool:
    """Does containerd run this handler with runc's shim? Only that shim knows BinaryName."""
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
    """The default runtime to write, None if the present one stays.

    `own_default` is one of our handlers, or None. `key` is the name of the setting in a file.
    Raises Refused if no handler can become the default runtime again.
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
    """The first of these names that is a handler of others, None if there is none."""
    for name in names:
        if name and name in effective.runtimes and not is_nvidia(effective, name, ours):
            return name
    return None


def emptied(table: Data, current: Data) -> Data:
    """The table, with every other key of the current table set to its zero value."""
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


def same(one: Any, other: Any) -> bool:
    """Are two values equal? A missing value counts as the zero value."""
    if isinstance(one, bool) or isinstance(other, bool):
        return bool(one) is bool(other)
    return bool(one == other) or (not one and not other)
