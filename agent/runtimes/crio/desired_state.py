"""The desired state of a CRI-O, and its differences from the files.

Invariant: pure. The same desired state is compared with the files (before a change) and with the
settings that the running CRI-O shows (as the proof). A missing value counts as the zero value, as
in CRI-O.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.errors import Refused
from agent.runtimes import desired_state
from agent.runtimes.base import EditRequest
from agent.runtimes.crio import merge
from agent.runtimes.desired_state import (
    Desired,
    Effective,
    emptied,
    first_foreign,
    is_nvidia,
    require_default,
)
from agent.toml.document import Data
from agent.toolkit.programs import Binary

_VM = "vm"  # the type of kata and similar runtimes, which would never run our binary
# Keys that belong to the low-level runtime itself, or have no effect in our handlers.
_OWN = frozenset({
    "runtime_path", "runtime_type", "runtime_config_path", "inherit_default_runtime",
})  # fmt: skip


@dataclass(frozen=True)
class PresentState:
    """The state of the node before the change.

    `defaults` are the default runtimes that the files name, that of the last file first. `builtin`
    is the built-in default runtime, None if the running CRI-O does not show it. `handlers` are
    NVIDIA's handlers of the running CRI-O, which pods may use. `root` is the state directory of
    handlers that name none."""

    defaults: tuple[str, ...] = ()
    builtin: str | None = None
    handlers: Mapping[str, Data] = field(default_factory=dict)
    root: str = ""

    def root_of(self, table: Data) -> str:
        """The state directory of a handler."""
        return str(table.get("runtime_root") or self.root)


def derive_desired(effective: Effective, request: EditRequest, present: PresentState) -> Desired:
    """The desired state for the decision of a request. `effective` is the effective configuration
    without our own drop-in.

    Raises Refused if no handler can become the default runtime again.
    """
    decision, default = request.decision, None
    inherited = base(effective, request, present) or effective.default
    handlers = {
        binary.handler: _handler(effective, inherited, binary, present)
        for binary in (() if decision.hook else request.available)
    }
    if decision.is_default and not decision.hook:
        default = request.settings.runtime_name
    elif is_nvidia(effective, effective.default, request.own_names):
        earlier = _defaults(effective, request, present)
        default = first_foreign(effective, request.own_names, earlier)
        if default is None:
            raise Refused(
                f"cannot take {effective.default} back as default runtime: there is no handler "
                "runc or crun to go back to; add the handler that was the default before, or leave "
                f"{effective.default} the default with --set-as-default=true"
            )
    else:
        require_default(effective, merge.DEFAULT[-1])
    return Desired(handlers, default)


def base(effective: Effective, request: EditRequest, present: PresentState) -> str | None:
    """The handler from which our handlers inherit, None if all handlers are NVIDIA's. It is the
    default runtime, or the earlier default if the present default is NVIDIA's. A handler for
    virtual machines is never the base.

    If the running CRI-O has handlers of ours, a base with their state directory comes first,
    because CRI-O takes running containers for ended if that directory or the low-level runtime
    changes (observed on 1.30 and 1.37).
    """
    usable = [n for n, table in effective.runtimes.items() if table.get("runtime_type") != _VM]
    names = (effective.default, *_defaults(effective, request, present))
    roots = {present.root_of(table) for table in present.handlers.values()}
    same = [n for n in (*names, *usable) if n and present.root_of(effective.table(n)) in roots]
    order = (*(same if len(roots) == 1 else ()), *names)
    return first_foreign(effective, request.own_names, tuple(n for n in order if n in usable))


def _defaults(
    effective: Effective, request: EditRequest, present: PresentState
) -> tuple[str | None, ...]:
    """The candidates for a default runtime other than NVIDIA's, the best first: those in the files,
    the remembered one, those with the state directory of the present default (NVIDIA's installer
    copies the earlier default), the built-in one, runc and crun."""
    current = present.handlers.get(effective.default)
    root = present.root_of(current) if current is not None else None
    same_root = (n for n, table in effective.runtimes.items() if present.root_of(table) == root)
    return (*present.defaults, request.memory.default, *same_root, present.builtin, "runc", "crun")


def _handler(effective: Effective, inherited: str, binary: Binary, present: PresentState) -> Data:
    """The table of one of our handlers: the settings of the base (`inherited`), our binary, and the
    state directory of running pods of this handler."""
    current = effective.table(binary.handler)
    options = {key: value for key, value in effective.table(inherited).items() if key not in _OWN}
    table: Data = {"runtime_path": binary.path, "runtime_type": "oci", **copy.deepcopy(options)}
    running = present.handlers.get(binary.handler)
    if running is not None and present.root_of(running) != present.root_of(table):
        table["runtime_root"] = present.root_of(running)
    if current.get("inherit_default_runtime"):
        table["inherit_default_runtime"] = False  # it would win over the path
    # Further keys of an earlier tool's handler are cleared. Further keys of our own handler stay,
    # because the admin may have added them.
    return table if current.get("runtime_path") in (None, binary.path) else emptied(table, current)


differences = functools.partial(
    desired_state.differences, runtimes=merge.RUNTIMES, default=merge.DEFAULT
)
