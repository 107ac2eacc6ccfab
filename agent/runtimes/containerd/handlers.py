"""The desired handlers of a containerd, and their differences from its files and from its Status.

A desired handler has NVIDIA's binary, and the settings of the handler that runs the node's pods
without NVIDIA (the base).

Invariant: pure. Nothing is inherited from a handler that cannot run pods, and such a handler never
becomes the default runtime. Observed on 1.6.20, 1.7.24 and 2.1.9: Status, `config dump` and a start
show no error for a handler without a type, or of a type without a shim, but each of its pods fails.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from agent.cri.client import Answer
from agent.errors import Refused
from agent.runtimes import desired_state
from agent.runtimes.base import EditRequest
from agent.runtimes.desired_state import (
    FILLED,
    LINUX,
    RUNC_V2,
    SANDBOXER,
    Desired,
    Effective,
    binaries,
    emptied,
    first_foreign,
    is_nvidia,
    is_runc,
    is_sandbox,
    leaves,
    require_default,
)
from agent.toml.document import Data, Path, Set, Unset, apply, get, without_empty
from agent.toolkit.programs import Binary

_RUNC_V1 = "io.containerd.runc.v1"
RUNTIMES: Path = ("containerd", "runtimes")
DEFAULT: Path = ("containerd", "default_runtime_name")
LEGACY: Path = ("containerd", "default_runtime")
# Status spells the keys of a handler as `runtimeType` or `PodAnnotations` (containerd's JSON tags).
_HUMP = re.compile("(?<=[a-z])(?=[A-Z])")
# Options that runc's shim v2 knows (containerd's runc/options/oci.proto, 1.6 to 2.4). containerd
# passes on any other name too, and Status shows it, so that a typo looks like an option.
_OPTIONS = frozenset({
    "nopivotroot", "nonewkeyring", "shimcgroup", "iouid", "iogid", "binaryname", "root", "criupath",
    "systemdcgroup", "criuimagepath", "criuworkpath", "taskapiaddress", "taskapiversion",
})  # fmt: skip
# Keys of the v1.linux shim. If a handler of another shim has one, containerd 1.x does not serve the
# CRI.
_LINUX_ONLY = ("runtime_engine", "runtime_root")


@dataclass(frozen=True)
class Features:
    """The features of the running containerd. `keys` are the keys that it knows in a handler's
    table, None if it does not show them. `missing_shims` are the runtime types for which it has no
    shim."""

    keys: frozenset[str] | None = None
    missing_shims: tuple[str, ...] = ()


def shown_features(answer: Answer, missing_shims: tuple[str, ...]) -> Features:
    """The features that a verbose Status shows: each table in it has every key that this version
    knows."""
    tables = shown_tables(answer) or {}
    keys = frozenset(key for table in tables.values() for key in table)
    return Features(keys or None, missing_shims)


def derive_desired(effective: Effective, request: EditRequest, features: Features) -> Desired:
    """The desired state for the decision of a request, on a node with this effective configuration.

    Raises Refused if pods would lose a sandbox, if the default runtime could not run pods, or if
    containerd would not serve the CRI.
    """
    _refuse_sandbox(effective, request.available)
    made = _made_runc(effective, request, features)
    base = made or effective.table(_base(effective, request, features))
    handlers = {
        binary.handler: _handler(base, binary, request, effective, features)
        for binary in request.available
    }
    default: str | None = None
    if request.decision.is_default:
        default = request.settings.runtime_name
    elif made is not None:
        default, handlers["runc"] = "runc", made
    elif is_nvidia(effective, effective.default, request.own_names):
        default = _earlier_default(effective, request, features)
    else:
        _refuse_unusable_default(effective, features)
        require_default(effective, DEFAULT[-1])
    _refuse_cgroup_switch(effective, handlers, default, features)
    return Desired(handlers, default, request.decision.enable_cdi)


def why_unusable(table: Data, missing_shims: tuple[str, ...]) -> str | None:
    """The reason why no pod of a handler can be created, None if no reason is known."""
    kind = table.get("runtime_type")
    if not kind:
        return "it has no runtime_type"
    if kind in missing_shims or (is_runc(table) and kind not in (RUNC_V2, _RUNC_V1)):
        return f"this containerd has no runtime_type {kind}"
    return None


def unknown_key_warnings(
    effective: Effective, request: EditRequest, features: Features
) -> tuple[str, ...]:
    """Warnings about the keys of the base that our handlers do not inherit, because this containerd
    does not know them."""
    name = _base(effective, request, features)
    table = {} if is_nvidia(effective, name, request.own_names) else effective.table(name)
    keys = [key for key in table if not _is_known(key, features)]
    if features.keys is not None and _is_runc_v2(table):
        keys += [f"options.{key}" for key in table.get("options") or {} if not _is_option(key)]
    return tuple(
        f"{key} of handler {name} is not copied to NVIDIA's handlers: this containerd does not "
        "know it"
        for key in keys
    )


def _refuse_sandbox(effective: Effective, available: tuple[Binary, ...]) -> None:
    """Raise Refused for a sandbox under one of our names (google/gvisor#10997). If we made it a
    handler of runc, all pods that use it would run without their sandbox."""
    for binary in available:
        table = effective.table(binary.handler)
        if is_sandbox(table):
            raise Refused(
                f"cannot register handler {binary.handler}: there is one of that name with "
                f"runtime_type {table['runtime_type']}, and its pods would lose their sandbox; "
                "rename it, or give ours another name with --runtime-name"
            )


def _refuse_unusable_default(effective: Effective, features: Features) -> None:
    """Raise Refused for a default runtime of others that cannot run pods."""
    table = effective.runtimes.get(effective.default)
    why = why_unusable(table, features.missing_shims) if table is not None else None
    if why is not None:
        raise Refused(
            f"cannot use {effective.default} as default runtime: {why}, and none of its pods can "
            f'be created; set runtime_type = "{RUNC_V2}" in its table'
        )


def _refuse_cgroup_switch(
    effective: Effective, handlers: Mapping[str, Data], default: str | None, features: Features
) -> None:
    """Raise Refused if the new default runtime does not allow `systemd_cgroup = true`, because it
    has another shim than v1.linux. containerd 1.x would not serve the CRI (observed on 1.6.20 and
    1.7.24)."""
    name = default or effective.default
    old_type = effective.table(effective.default).get("runtime_type")
    new_type = (handlers.get(name) or effective.table(name)).get("runtime_type")
    switched = old_type == LINUX != new_type and LINUX not in features.missing_shims
    if switched and effective.section.get("systemd_cgroup"):
        raise Refused(
            f"cannot make {name} the default runtime: systemd_cgroup = true is for handlers of "
            f"{LINUX} only, and containerd would not serve the CRI; set it to false, and "
            "SystemdCgroup = true in the options of the handlers"
        )


def _earlier_default(
    effective: Effective, request: EditRequest, features: Features, first: str | None = None
) -> str | None:
    """The first handler of `first`, the remembered default, runc and crun that is not NVIDIA's and
    can run pods; None if none of them is."""
    usable = {
        name: table for name, table in effective.runtimes.items()
        if why_unusable(table, features.missing_shims) is None
    }  # fmt: skip
    names = (first, request.memory.default, "runc", "crun")
    return first_foreign(replace(effective, runtimes=usable), request.own_names, names)


def _base(effective: Effective, request: EditRequest, features: Features) -> str:
    """The handler from which our handlers inherit: the first of the default, the remembered
    default, runc and crun that is not NVIDIA's and can run pods; else the default.

    A sandbox is never the base. Only runc's shim knows BinaryName, so our binary would never run.
    """
    tables = {name: t for name, t in effective.runtimes.items() if not is_sandbox(t)}
    plain = replace(effective, runtimes=tables)
    return _earlier_default(plain, request, features, effective.default) or effective.default


def _made_runc(effective: Effective, request: EditRequest, features: Features) -> Data | None:
    """The table of an ordinary `runc` that we have to define, None if it is not needed. It is
    needed if the default is NVIDIA's and no file defines a handler that could become the default.

    On such a node (some cloud images), only NVIDIA's handler has the cgroup driver and the base
    spec with the limits of every container. Pods of a bare runc would run without these limits.
    """
    if not is_nvidia(effective, effective.default, request.own_names):
        return None
    earlier = _earlier_default(effective, request, features)
    defined = defines_runc(effective)
    if earlier is not None and (earlier != "runc" or defined):
        return None
    current = effective.table("runc")
    made = _ordinary(current if defined else {}, effective, features)
    made = made or _ordinary(effective.table(effective.default), effective, features)
    if earlier is not None and not made:
        return None
    made = {"runtime_type": RUNC_V2, **made, "options": made.get("options", {})}
    return _with_cleared_keys(made, current, features)


def defines_runc(effective: Effective) -> bool:
    """Do the files define a `runc`?"""
    return bool(without_empty(get(effective.section, RUNTIMES, {})).get("runc"))


def _ordinary(table: Data, effective: Effective, features: Features) -> Data:
    """The settings that an ordinary runc can take from a handler: all but its program and NVIDIA's
    annotations."""
    kept = _inherited(table, effective, features)
    for key in ("runtime_type", "runtime_path"):
        kept.pop(key, None)
    patterns = kept.pop("container_annotations", [])
    foreign = [item for item in patterns if not str(item).endswith("cdi.k8s.io/*")]
    return {**kept, "container_annotations": foreign} if foreign else kept


def _inherited(table: Data, effective: Effective, features: Features) -> Data:
    """The settings that a handler of runc's shim can inherit from this table, without zero values,
    because these are the default."""
    if is_sandbox(table):
        return {}
    options = {
        key: value for key, value in (table.get("options") or {}).items()
        if value and _is_option(key) and key.lower() != "binaryname"
    }  # fmt: skip
    if table.get("runtime_type") == LINUX and effective.section.get("systemd_cgroup"):
        options["SystemdCgroup"] = True
    own = _LINUX_ONLY if _is_runc_v2(table) else ("runtime_type", "runtime_path", *_LINUX_ONLY)
    kept = {
        key: copy.deepcopy(value) for key, value in table.items()
        if value and key not in (*own, "options") and _is_known(key, features)
    }  # fmt: skip
    return {**kept, "options": options} if options else kept


def _is_runc_v2(table: Data) -> bool:
    return bool(table.get("runtime_type") == RUNC_V2)


def _is_known(key: str, features: Features) -> bool:
    return features.keys is None or key in features.keys


def _is_option(key: str) -> bool:
    return key.lower() in _OPTIONS


def _handler(
    base: Data, program: Binary, request: EditRequest, effective: Effective, features: Features
) -> Data:
    """The table of one of our handlers: the settings of `base`, with our binary under every
    spelling of BinaryName that the current table has."""
    binary, current = program.path, effective.table(program.handler)
    table = _inherited(base, effective, features)
    options = {"BinaryName": binary, **dict.fromkeys((key for key, _ in binaries(current)), binary)}
    options |= table.pop("options", {})
    table["runtime_type"] = table.get("runtime_type") or request.settings.runtime_type
    annotations = [prefix + "*" for prefix in request.decision.pass_prefixes]
    annotations += [
        item for item in table.pop("container_annotations", []) if item not in annotations
    ]
    if annotations or current.get("container_annotations"):
        table["container_annotations"] = annotations
    table = {**table, "options": options}
    named = [value for _, value in binaries(current)]
    if not named or not _is_runc_v2(current) or any(value != binary for value in named):
        return _with_cleared_keys(table, current, features)
    # The handler runs our binary already, so its further settings may be the admin's.
    more = [Set(path, value) for path, value in leaves(current) if not get(base, path, True)]
    return emptied(table, apply({}, more))


def _with_cleared_keys(table: Data, current: Data, features: Features) -> Data:
    """The table, with every further key of the present handler set to its zero value, because a
    drop-in cannot delete keys."""
    known = {key: value for key, value in current.items() if _is_known(key, features)}
    for key in FILLED:
        if known.get(key) not in (None, "", SANDBOXER):
            table = {key: SANDBOXER, **table}
    return emptied(table, known)


def without_own_keys(data: Data, section: Path, names: Iterable[str]) -> Data:
    """The data without the keys of a CRI section that an edit of ours may change: the handlers in
    `names`, the default runtime, the CDI switch, and containerd 1.x's deprecated table of the
    default runtime, which can be a handler called "default"."""
    handlers = ((*RUNTIMES, name) for name in (*names, "default"))
    keys = (*handlers, DEFAULT, LEGACY, ("enable_cdi",))
    return apply(data, [Unset((*section, *key)) for key in keys])


differences = functools.partial(desired_state.differences, runtimes=RUNTIMES, default=DEFAULT)


def shown_tables(answer: Answer) -> dict[str, Data] | None:
    """The table of each handler in Status, with keys as in a file. None if Status does not show
    handlers."""
    shown = get(answer.config, RUNTIMES)
    if not isinstance(shown, Mapping):
        return None
    return {
        str(name): {_HUMP.sub("_", key).lower(): value for key, value in table.items()}
        for name, table in shown.items()
        if isinstance(table, Mapping)
    }
