"""What a CRI-O has to end up with, and how far it is from that.

Invariant: pure. The same wish is held against files (before) and against what the running CRI-O
says (proof); a value that is missing counts as the zero value, as in CRI-O itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from agent.decide import Decision
from agent.engine.wanted import (
    OUR_NAMES,
    Binary,
    Wanted,
    default_for,
    emptied,
    first_foreign,
    leaves,
    same,
)
from agent.observe.cri import Answer
from agent.runtimes import crio
from agent.runtimes.merge import Cri
from agent.tomledit import Data, Path, get

_VM = "vm"  # kata and the like: no binary of ours would ever run there
# Of the low-level runtime itself, or of no use to one of ours.
_OWN = frozenset({
    "runtime_path", "runtime_type", "runtime_config_path", "inherit_default_runtime",
})  # fmt: skip
# What CRI-O itself rewrites after it has read it; it shows something else than the file says.
_REWRITTEN = frozenset({
    "monitor_path", "monitor_cgroup", "monitor_env", "monitor_exec_cgroup",
    "container_min_memory", "container_create_timeout", "stream_websockets",
})  # fmt: skip


def want(
    cri: Cri, decision: Decision, available: tuple[Binary, ...], name: str, remembered: str | None
) -> Wanted:
    """The wish that follows from a decision; `cri` is what is in force without our own drop-in.

    Raises Refused where no default could be gone back to.
    """
    ours = (*OUR_NAMES, *(binary.handler for binary in available), name)
    base = cri.table(_base(cri, ours, remembered))
    handlers = {
        binary.handler: _handler(base, binary.path, cri.table(binary.handler))
        for binary in (() if decision.hook else available)
    }
    wanted = name if decision.is_default and not decision.hook else None
    return Wanted(handlers, default_for(cri, wanted, ours, remembered, crio.DEFAULT[-1]))


def _base(cri: Cri, ours: tuple[str, ...], remembered: str | None) -> str:
    """The handler to inherit from: the default unless ours or a VM's, the remembered one, runc,
    crun; where there is no other handler at all, the default as it is."""
    names = (cri.default, remembered, "runc", "crun")
    usable = tuple(n for n in names if n and cri.table(n).get("runtime_type") != _VM)
    return first_foreign(cri, ours, usable) or cri.default


def _handler(base: Data, binary: str, current: Data) -> Data:
    """Everything that the base has, with our binary."""
    inherited = {key: value for key, value in base.items() if key not in _OWN}
    table: Data = {"runtime_path": binary, "runtime_type": "oci", **copy.deepcopy(inherited)}
    if current.get("inherit_default_runtime"):
        table["inherit_default_runtime"] = False  # it would win over the path
    # What an earlier tool's handler has besides goes; the admin may have given more to ours.
    return table if current.get("runtime_path") in (None, binary) else emptied(table, current)


def gaps(wanted: Wanted, cri: Cri) -> dict[Path, Any]:
    """Keys of a file that are not as wanted, with what they have to be."""
    found: dict[Path, Any] = {}
    if wanted.default is not None and cri.default != wanted.default:
        found[crio.DEFAULT] = wanted.default
    for name, table in wanted.handlers.items():
        current = cri.runtimes.get(name)
        for path, value in leaves(table):
            if current is None or not same(value, get(current, path)):
                found[(*crio.RUNTIMES, name, *path)] = value
    return found


def unproven(wanted: Wanted, answer: Answer) -> list[str]:
    """What the running CRI-O lacks, in words; empty where it is as wanted."""
    said = crio.shown(answer.config, answer.dump)
    tables = get(said, ("runtimes",))
    if said is None or not isinstance(tables, Mapping):
        return ["it does not show its handlers"]
    listed = answer.handlers or tuple(tables)
    problems = [
        f"handler {name} is still there"
        for name in wanted.absent
        if name in tables or name in listed
    ]
    for name, table in wanted.handlers.items():
        running = tables.get(name)
        if not isinstance(running, Mapping):
            problems.append(f"handler {name} is missing")
        elif name not in listed:
            problems.append(f"handler {name} is not listed")
        else:
            problems += [
                f"handler {name}: {key} is not as wanted"
                for key, value in table.items()
                if key not in _REWRITTEN and not _like(key, value, running.get(key))
            ]
    default = said.get("default_runtime")
    if wanted.default is not None and default != wanted.default:
        problems.append(f"the default runtime is {default}, not {wanted.default}")
    return problems


def _like(key: str, value: Any, shown: Any) -> bool:
    if key == "runtime_type":
        return (value or "oci") == (shown or "oci")
    if isinstance(value, list) and isinstance(shown, list):
        return sorted(map(str, value)) == sorted(map(str, shown))
    return same(value, shown)
