"""The desired handlers of a containerd, and their differences from its files and from its Status.

They have NVIDIA's binary, and the settings of the handler that runs the node's pods without NVIDIA.

Invariant: pure. Nothing is inherited from a handler that cannot run pods, and such a handler never
becomes the default runtime. Observed on 1.6.20, 1.7.24 and 2.1.9: Status, `config dump` and a start
show no error for a handler without a type, or of a type without a shim, but each of its pods fails.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent.cri.client import Answer
from agent.decide import Decision
from agent.errors import Refused
from agent.runtimes.base import Effective
from agent.runtimes.desired_state import (
    FILLED,
    LINUX,
    OUR_NAMES,
    RUNC_V2,
    SANDBOXER,
    Desired,
    binaries,
    default_for,
    emptied,
    first_foreign,
    is_nvidia,
    is_runc,
    is_sandbox,
    leaves,
    same,
)
from agent.toml.document import Data, Path, Set, apply, get, without_empty
from agent.toolkit.programs import Binary

_RUNC_V1 = "io.containerd.runc.v1"
_RUNTIMES: Path = ("containerd", "runtimes")
_DEFAULT: Path = ("containerd", "default_runtime_name")
# Status spells a handler's key `runtimeType` or `PodAnnotations` (containerd's JSON tags).
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
    """What the running containerd can do. `keys` are the keys that it knows in a handler's table;
    None if it does not show them. `missing_shims` are the runtime types for which it has no
    shim."""

    keys: frozenset[str] | None = None
    missing_shims: tuple[str, ...] = ()


def shown_features(answer: Answer, missing_shims: tuple[str, ...]) -> Features:
    """The same from the verbose Status: each table there has every key that this version knows."""
    tables = shown_handlers(answer) or {}
    keys = frozenset(key for table in tables.values() for key in table)
    return Features(keys or None, missing_shims)


def derive_desired(
    effective: Effective, decision: Decision, available: tuple[Binary, ...], name: str,
    remembered: str | None, runtime_type: str, features: Features | None = None,
) -> Desired:  # fmt: skip
    """The desired state that follows from a decision on a node with this effective configuration.

    `name` is the handler that becomes the default if the decision says so, `remembered` the
    default before our first change. Raises Refused if pods would lose a sandbox, or if the
    default runtime could not run pods.
    """
    ours = (*OUR_NAMES, *(binary.handler for binary in available))
    features = features or Features()
    _refuse_sandbox(effective, available)
    usable = replace(effective, runtimes=_usable_handlers(effective, features))
    made = _made_runc(effective, usable, ours, remembered, features)
    base = made or effective.table(_base(effective, usable, ours, remembered))
    handlers = {
        binary.handler: _handler(base, binary.path, decision, runtime_type, effective, features,
                                 effective.table(binary.handler))
        for binary in available
    }  # fmt: skip
    if decision.is_default:
        default: str | None = name
    elif made is not None:
        default, handlers["runc"] = "runc", made
    elif is_nvidia(effective, effective.default, ours):
        default = first_foreign(usable, ours, (remembered, "runc", "crun"))
    else:
        _refuse_unusable_default(effective, features)
        default = default_for(effective, None, ours, remembered, "default_runtime_name")
    _refuse_cgroup_switch(effective, handlers, default, features)
    return Desired(handlers, default, decision.enable_cdi)


def why_unusable(table: Data, missing_shims: tuple[str, ...]) -> str | None:
    """Why no pod of a containerd handler can be created, in words; None if no reason is
    known."""
    kind = table.get("runtime_type")
    if not kind:
        return "it has no runtime_type"
    if kind in missing_shims or (is_runc(table) and kind not in (RUNC_V2, _RUNC_V1)):
        return f"this containerd has no runtime_type {kind}"
    return None


def has_ordinary_runc(effective: Effective, missing_shims: tuple[str, ...]) -> bool:
    """Do files define a `runc` that runs pods without NVIDIA's program?"""
    defined = without_empty(get(effective.section, ("containerd", "runtimes"), {})).get("runc")
    usable = why_unusable(effective.table("runc"), missing_shims) is None
    return bool(defined) and usable and not is_nvidia(effective, "runc", ())


def left_out(
    effective: Effective, available: tuple[Binary, ...], remembered: str | None, features: Features
) -> tuple[str, ...]:
    """Warnings about keys that our handlers do not inherit: this containerd does not know them."""
    ours = (*OUR_NAMES, *(binary.handler for binary in available))
    name = _base(
        effective,
        replace(effective, runtimes=_usable_handlers(effective, features)),
        ours,
        remembered,
    )
    table = {} if is_nvidia(effective, name, ours) else effective.table(name)
    keys = [key for key in table if not _is_known(key, features)]
    if features.keys is not None and _is_runc_v2(table):
        keys += [f"options.{key}" for key in table.get("options") or {} if not _is_option(key)]
    return tuple(
        f"{key} of handler {name} is not copied to NVIDIA's handlers: this containerd does not "
        "know it"
        for key in keys
    )


def _usable_handlers(effective: Effective, features: Features) -> dict[str, Data]:
    """The handlers that can run pods."""
    return {
        n: t
        for n, t in effective.runtimes.items()
        if why_unusable(t, features.missing_shims) is None
    }


def _refuse_sandbox(effective: Effective, available: tuple[Binary, ...]) -> None:
    """Raise Refused for a sandbox under one of our names (google/gvisor#10997). As a handler of
    runc it would take the sandbox from all pods that ask for it."""
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
    why = (
        why_unusable(effective.table(effective.default), features.missing_shims)
        if effective.default in effective.runtimes
        else None
    )
    if why is not None:
        raise Refused(
            f"cannot use {effective.default} as default runtime: {why}, and none of its pods can "
            f'be created; set runtime_type = "{RUNC_V2}" in its table'
        )


def _refuse_cgroup_switch(
    effective: Effective, handlers: Mapping[str, Data], default: str | None, features: Features
) -> None:
    """Raise Refused for `systemd_cgroup`, which only the v1.linux shim may have: with a default
    runtime of another shim, containerd 1.x does not serve the CRI (observed on 1.6.20 and
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


def _base(
    effective: Effective, usable: Effective, ours: tuple[str, ...], remembered: str | None
) -> str:
    """The handler from which ours inherit: the first of the default, the remembered default, runc
    and crun that is not NVIDIA's and can run pods; the default if there is none.

    A sandbox is never taken, because only runc's shim knows BinaryName: our binary would never run.
    """
    names = (effective.default, remembered, "runc", "crun")
    candidates = tuple(name for name in names if name and not is_sandbox(effective.table(name)))
    return first_foreign(usable, ours, candidates) or effective.default


def _made_runc(
    effective: Effective,
    usable: Effective,
    ours: tuple[str, ...],
    remembered: str | None,
    features: Features,
) -> Data | None:
    """The table of an ordinary `runc`, None if none is needed. It is needed if the default is
    NVIDIA's and no file defines a handler that could become the default again.

    On such a node (cloud images ship them), only NVIDIA's handler has the cgroup driver and the
    base spec with the limits of every container. Pods of a bare runc would run without them.
    """
    if not is_nvidia(effective, effective.default, ours):
        return None
    found = first_foreign(usable, ours, (remembered, "runc", "crun"))
    defined = without_empty(get(effective.section, ("containerd", "runtimes"), {})).get("runc")
    if found is not None and (found != "runc" or defined):
        return None
    current = effective.table("runc")
    made = _ordinary(current if defined else {}, effective, features)
    made = made or _ordinary(effective.table(effective.default), effective, features)
    if found is not None and not made:
        return None
    made = {"runtime_type": RUNC_V2, **made, "options": made.get("options", {})}
    return _with_cleared_keys(made, current, features)


def _ordinary(table: Data, effective: Effective, features: Features) -> Data:
    """The settings of a handler that are for all pods, without its program and without NVIDIA's
    annotations."""
    kept = _inherited(table, effective, features)
    for key in ("runtime_type", "runtime_path"):
        kept.pop(key, None)
    patterns = kept.pop("container_annotations", [])
    foreign = [item for item in patterns if not str(item).endswith("cdi.k8s.io/*")]
    return {**kept, "container_annotations": foreign} if foreign else kept


def _inherited(table: Data, effective: Effective, features: Features) -> Data:
    """The settings that a handler of runc can inherit from this table. Zero values are left out,
    because they are the default."""
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
    base: Data, binary: str, decision: Decision, runtime_type: str, effective: Effective,
    features: Features, current: Data,
) -> Data:  # fmt: skip
    """The table of a handler of ours: the settings of the base, with our binary under every
    spelling of BinaryName in the current table."""
    table = _inherited(base, effective, features)
    options = {"BinaryName": binary, **dict.fromkeys((key for key, _ in binaries(current)), binary)}
    options |= table.pop("options", {})
    table["runtime_type"] = table.get("runtime_type") or runtime_type
    annotations = [prefix + "*" for prefix in decision.pass_prefixes]
    annotations += [
        item for item in table.pop("container_annotations", []) if item not in annotations
    ]
    if annotations or current.get("container_annotations"):
        table["container_annotations"] = annotations
    table = {**table, "options": options}
    named = [value for _, value in binaries(current)]
    if not named or not _is_runc_v2(current) or any(value != binary for value in named):
        return _with_cleared_keys(table, current, features)
    # It runs our binary already, so the admin may have given it more than the base says.
    more = [Set(path, value) for path, value in leaves(current) if not get(base, path, True)]
    return emptied(table, apply({}, more))


def _with_cleared_keys(table: Data, current: Data, features: Features) -> Data:
    """The table, with every other key of the present handler set to its zero value, because a
    drop-in cannot delete keys."""
    known = {key: value for key, value in current.items() if _is_known(key, features)}
    for key in FILLED:
        if known.get(key) not in (None, "", SANDBOXER):
            table = {key: SANDBOXER, **table}
    return emptied(table, known)


def differences(desired: Desired, effective: Effective) -> dict[Path, Any]:
    """The keys below the CRI section that differ from the desired state, with desired values."""
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


def _is_same_value(key: str, one: Any, other: Any) -> bool:
    """Are two values of a handler's key equal? Some keys have a default other than zero."""
    if key in FILLED:
        one, other = one or SANDBOXER, other or SANDBOXER
    return same(one, other)


def shown_handlers(answer: Answer) -> dict[str, Data] | None:
    """The handlers in Status, with the keys of a file; None if Status does not show them."""
    shown = get(answer.config, _RUNTIMES)
    if not isinstance(shown, Mapping):
        return None
    return {
        str(name): {_HUMP.sub("_", key).lower(): value for key, value in table.items()}
        for name, table in shown.items()
        if isinstance(table, Mapping)
    }


def unproven(desired: Desired, answer: Answer) -> list[str]:
    """What the running runtime lacks of the desired state, in words; empty for nothing."""
    shown = shown_handlers(answer)
    if shown is None:
        # There is no verbose information, but only the list of handlers.
        missing = [name for name in desired.handlers if name not in answer.handlers]
        wrong = [name for name in desired.absent if name in answer.handlers]
        return [f"handler {n} is not listed" for n in missing] + [
            f"handler {n} is still there" for n in wrong
        ]
    problems = [f"handler {name} is still there" for name in desired.absent if name in shown]
    for name, table in desired.handlers.items():
        running = shown.get(name)
        if running is None:
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


def _table_problems(table: Data, running: Data) -> Iterator[str]:
    options = running.get("options") or {}
    for key, value in table["options"].items():
        if not same(value, options.get(key)):
            yield f"option {key} is not as wanted"
    for key, value in binaries({"options": options}):
        if value != table["options"].get("BinaryName", ""):
            yield f"option {key} names another binary"
    for key, value in table.items():
        if key != "options" and key in running and not _is_same_value(key, value, running[key]):
            yield f"{key} is not as wanted"
