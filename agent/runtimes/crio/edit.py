"""The edits that bring CRI-O's files to the desired state.

Invariant: one drop-in and one hook are ours. A file of others is edited only if CRI-O reads it
after ours and it overrides our keys, and only in these keys. The root file is edited also if
CRI-O reads no drop-ins. The effect is computed on all files together, as CRI-O merges them. A
setting that a flag or a variable of the process fixes is refused, because no file can change it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agent.decide import Decision
from agent.errors import Refused
from agent.host import files, trust
from agent.host.files import Change, FileState, new_state
from agent.host.paths import HostPath, HostRoot, is_below
from agent.options.settings import Settings
from agent.runtimes import low_level
from agent.runtimes.base import Edits, Effective
from agent.runtimes.config_file import ConfigFile, Files, fresh_state, with_text
from agent.runtimes.crio import desired_state, hook, merge
from agent.runtimes.crio.desired_state import PresentState
from agent.runtimes.desired_state import OUR_NAMES, Desired, is_ours, leaves, same
from agent.runtimes.key_ownership import HEADER, is_untouched
from agent.runtimes.preflight import first_difference
from agent.state.store import Memory, Original, Store
from agent.toml import document
from agent.toml.document import Data, Op, Set, Unset, get
from agent.toolkit import programs
from agent.toolkit.programs import Binary

if TYPE_CHECKING:
    from agent.runtimes.crio.adapter import CrioNode


@dataclass(frozen=True)
class EditInput:
    """What an edit is made from."""

    host: HostRoot
    settings: Settings
    store: Store
    node: CrioNode
    memory: Memory
    decision: Decision
    available: tuple[Binary, ...]
    hook_program: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of handlers that are ours whatever they run."""
        return (*OUR_NAMES, *(b.handler for b in self.available), self.settings.runtime_name)


def edits(inputs: EditInput) -> Edits:
    """The changes that make the files right; none if they already are. Raises Refused."""
    node, decision, name = inputs.node, inputs.decision, inputs.settings.runtime_name
    _refuse_fileless(inputs)
    future = {path.host: state for path, state in _left_behind(inputs)}
    rest = _with_place(inputs, future)
    existing = next(file for file in rest if file.path.host == node.drop_in.host)
    fresh = existing.state is None or is_untouched(inputs.memory, existing)
    if fresh:
        rest = tuple(replace(f, state=None, data={}) if f is existing else f for f in rest)
    effective, present = node.effective(rest), _present_state(inputs, rest)
    desired = desired_state.derive_desired(
        effective, decision, inputs.available, name, inputs.memory.default, present
    )
    base = desired_state.base(effective, inputs.available, name, inputs.memory.default, present)
    _refuse_fixed(inputs, desired)
    names = [file.path.host for file in rest]
    after_ours = rest[names.index(existing.path.host) + 1 :]
    later = tuple(_with_desired(file, desired) for file in after_ours)
    future |= {file.path.host: file.state for file in later}
    basis = (*rest[: len(rest) - len(later)], *later)
    future[node.drop_in.host] = _drop_in(inputs, basis, existing, desired, fresh=fresh)
    changes = list(_changes(inputs, future))
    result = node.load(inputs.host, {item.path.host: item.after for item in changes})
    _check(inputs, result, desired)
    desired = _with_removals(inputs, desired, node.effective(result))
    changes += _hook(inputs)
    changes.sort(key=lambda item: item.path.host == node.drop_in.host)
    called = (low_level.called_by(inputs.host, table) for table in present.handlers.values())
    return Edits(tuple(changes), desired, result, base, next(filter(None, called), None))


def _refuse_fileless(inputs: EditInput) -> None:
    """Raise Refused if no edit can help: CRI-O reads no files, or no directory of CDI specs."""
    node, overrides = inputs.node, inputs.node.overrides
    if not node.directory and not node.root.name and overrides.directory:
        raise Refused(
            "cannot configure CRI-O: it was started with an empty "
            f"{overrides.directory.source} and no configuration file either, and reads nothing; "
            "take one of the two settings out of "
            f"{node.setting_file(inputs.host, overrides.directory)} and restart it"
        )
    if inputs.decision.native and not merge.spec_dirs(node.files, overrides):
        owner = merge.owner(node.files, merge.SPEC_DIRS)
        place = owner.path.host if owner else node.root.path.host
        if fixed := overrides.spec_dirs:
            place = f"{fixed.source} ({node.setting_file(inputs.host, fixed)})"
        raise Refused(
            f"cannot use native CDI: cdi_spec_dirs is empty in {place}, so CRI-O reads no specs; "
            'remove the key, or name "/etc/cdi" and "/var/run/cdi" in it'
        )


def _refuse_fixed(inputs: EditInput, desired: Desired) -> None:
    """Raise Refused if a flag or a variable of CRI-O fixes a setting that has to be changed,
    because it wins over every file."""
    overrides = inputs.node.overrides
    fixed = overrides.default
    if fixed and desired.default is not None and fixed.value != desired.default:
        raise Refused(
            f"cannot make {desired.default} the default runtime: {fixed.source} of the running "
            f"CRI-O fixes {fixed.value or 'the built-in one'}, over every file; take it out of "
            f"{inputs.node.setting_file(inputs.host, fixed)} and restart CRI-O"
        )
    for name, table in overrides.handlers.items():
        ours = desired.handlers.get(name, {})
        if overrides.runtimes and any(not same(v, get(table, path)) for path, v in leaves(ours)):
            raise Refused(
                f"cannot register handler {name}: {overrides.runtimes.source} of the running CRI-O "
                "fixes another one, over every file; take it out of "
                f"{inputs.node.setting_file(inputs.host, overrides.runtimes)} and restart CRI-O"
            )


def _present_state(inputs: EditInput, rest: Files) -> PresentState:
    """The state of the node: its own default runtimes, and the handlers that pods may use."""
    node = inputs.node
    shown = node.shown
    tables = get(shown, ("runtimes",)) if shown else node.effective(node.files).runtimes
    builtin = node.rules.default
    return PresentState(
        defaults=merge.explicit_defaults(tuple(_unedited(inputs, file) for file in rest)),
        builtin=builtin if builtin in (get(shown, ("runtimes",)) or {}) else None,
        handlers={n: t for n, t in (tables or {}).items() if is_ours(n, t, inputs.names)},
        root=node.rules.root,
    )


def _unedited(inputs: EditInput, file: ConfigFile) -> ConfigFile:
    """A file of others with its content before our edit, if nobody edited it since."""
    known = inputs.memory.files.get(file.path.host)
    if known is None or known.digest is None or known.edited or file.state is None:
        return file
    if file.state.digest != known.written:
        return file
    return replace(
        file, data=document.parse(inputs.store.original_bytes(known.digest), file.path.host)
    )


def _with_place(inputs: EditInput, future: Mapping[str, FileState | None]) -> Files:
    """The files as they will be. Our drop-in is at its place among them, even if it does not
    exist."""
    node = inputs.node
    found = node.load(inputs.host, future)
    if any(file.path.host == node.drop_in.host for file in found):
        return found
    found = node.load(inputs.host, {**future, node.drop_in.host: new_state()})
    absent = (f for f in found if f.path.host == node.drop_in.host)
    missing = {file.path.host: replace(file, state=None) for file in absent}
    return tuple(missing.get(file.path.host, file) for file in found)


def _with_desired(file: ConfigFile, desired: Desired) -> ConfigFile:
    """A file that is read after ours, with the desired values if it overrides them."""
    ops: list[Op] = []
    for name, table in desired.handlers.items():
        whole = (*merge.RUNTIMES, name)
        current = get(file.data, whole)
        if current is not None:
            # All keys, because some decoders forget those of earlier files.
            wrong = {path: v for path, v in leaves(table) if not same(v, get(current, path))}
            ops += [Set((*whole, *path), value) for path, value in wrong.items()]
    named = get(file.data, merge.DEFAULT)
    if desired.default is not None and named not in (None, desired.default):
        ops.append(Set(merge.DEFAULT, desired.default))
    if not ops or file.state is None:
        return file
    name = file.path.host
    text = document.edit(document.decoded(file.state.data, name), ops, name)
    state = with_text(file.state, text)
    return replace(file, state=state, data=document.parse(state.data, name))


def _changes(inputs: EditInput, future: Mapping[str, FileState | None]) -> Iterator[Change]:
    """The change of each file whose future content is another one."""
    overlay = inputs.node.overlay
    for name, after in sorted(future.items()):
        path = HostPath(inputs.host.agent_path(name), name)
        now = overlay[name] if name in overlay else files.read(path.agent, name)
        if (now and now.data) != (after and after.data):
            yield guarded(inputs.host, inputs.node, Change(path, now, after))


def guarded(host: HostRoot, node: CrioNode, change: Change) -> Change:
    """The change, with a place for temporary files outside the drop-in directory if the file is
    in it, because CRI-O reads every file in that directory and below."""
    if not node.directory:
        return change
    directory = host.resolve(node.directory).host
    above = os.path.dirname(directory)
    if not is_below(change.path.host, directory):
        return change
    return replace(change, outside=HostPath(host.agent_path(above), above))


def _with_removals(inputs: EditInput, desired: Desired, after: Effective) -> Desired:
    """The desired state with all removals in it: a default that was ours, handlers, and keys of
    handlers."""
    shown = inputs.node.shown or {}
    running = get(shown, ("runtimes",), {})
    now = inputs.node.effective(inputs.node.files)
    if desired.default is None:
        shown_default = shown.get("default_runtime")
        defaults = ((now.default, now.runtimes), (shown_default, running))
        if any(n and is_ours(n, t.get(n) or {}, inputs.names) for n, t in defaults):
            desired = replace(desired, default=after.default)
    handlers = {
        name: {**table, **_cleared_keys(now.table(name), after.table(name))}
        for name, table in desired.handlers.items()
    }
    known = {*now.runtimes, *running}
    absent = tuple(n for n in inputs.names if n in known and n not in after.runtimes)
    return replace(desired, handlers=handlers, absent=tuple(dict.fromkeys(absent)))


def _cleared_keys(now: Data, after: Data) -> Data:
    """The keys that a handler loses, with their zero values."""
    return {key: type(value)() for key, value in now.items() if value and key not in after}


def _drop_in(
    inputs: EditInput, basis: Files, existing: ConfigFile, desired: Desired, *,
    fresh: bool,
) -> FileState | None:  # fmt: skip
    """The future content of our drop-in, None if none is needed."""
    node = inputs.node
    state = existing.state
    if not fresh and state is not None:
        ops = _in_place(
            inputs, existing.data, desired_state.differences(desired, node.by_files(basis)), desired
        )
        name = node.drop_in.host
        text = document.edit(document.decoded(state.data, name), ops, name)
        empty = not document.without_empty(document.parse(document.encoded(text), name))
        known = inputs.memory.files.get(name)
        made = known is not None and known.digest is None and not known.edited
        return None if empty and made else with_text(state, text)
    differences = desired_state.differences(desired, node.by_files(basis))
    if not differences:
        return None
    ops = [Set(merge.DEFAULT, desired.default)] if merge.DEFAULT in differences else []
    depth = len(merge.RUNTIMES)
    changed = {path[depth] for path in differences if path[:depth] == merge.RUNTIMES}
    ops += [Set((*merge.RUNTIMES, n), t) for n, t in desired.handlers.items() if n in changed]
    data: Data = document.apply({}, ops)
    if state is not None and existing.data == data:
        return state
    return with_text(state or fresh_state(node.files), HEADER + document.render(data))


def _in_place(
    inputs: EditInput, data: Data, differences: Mapping[tuple[str, ...], Any], desired: Desired
) -> list[Op]:
    """The operations that set or remove our keys in a drop-in that others have edited too."""
    ops: list[Op] = []
    for name, table in desired.handlers.items():
        whole = (*merge.RUNTIMES, name)
        own_differences = {
            path: value for path, value in differences.items() if path[: len(whole)] == whole
        }
        if own_differences and get(data, whole) is None:
            ops.append(Set(whole, table))
        else:
            ops += [Set(path, value) for path, value in own_differences.items()]
    for name, table in (get(data, merge.RUNTIMES) or {}).items():
        if inputs.decision.hook and is_ours(name, table, inputs.names):
            ops.append(Unset((*merge.RUNTIMES, name)))
    if merge.DEFAULT in differences:
        ops.append(Set(merge.DEFAULT, differences[merge.DEFAULT]))
    return sorted(ops, key=lambda op: len(op.path))


def _check(inputs: EditInput, after: Files, desired: Desired) -> None:
    """Check that the files together have the desired state and no other change.

    Raises Refused, which names the file that prevents it.
    """
    node = inputs.node
    effective = node.effective(after)
    other = merge.effective(replace(node.rules, by_key=not node.rules.by_key), after)
    if differences := desired_state.differences(desired, effective) or desired_state.differences(
        desired, other
    ):
        path = next(iter(differences))
        # Any key of a handler there can take all others away.
        owner = merge.owner(after, path[: len(merge.RUNTIMES) + 1])
        raise Refused(
            f"cannot set {document.dotted(path)}: {owner.path if owner else node.root.path} is "
            f"read after {node.drop_in} and overrides it; remove the key there, or give a later "
            "name with --drop-in-config"
        )
    if effective.default not in effective.runtimes:
        raise Refused(
            f"cannot edit {node.drop_in}: default_runtime is {effective.default}, and there would "
            "be no such handler; add it or correct the name"
        )
    now, later = (_strip(inputs, found) for found in (node.files, after))
    difference = first_difference(now, later)
    if difference is not None:
        raise Refused(
            f"cannot edit {node.drop_in}: {document.dotted(difference)} would change too; move "
            "what is not NVIDIA's in there to a file of its own"
        )


def _strip(inputs: EditInput, found: Files) -> Data:
    """Settings without the keys that an edit of ours may change."""
    whole = merge.merged(found, by_key=inputs.node.rules.by_key)
    ours = [
        name
        for name, table in (get(whole, merge.RUNTIMES) or {}).items()
        if is_ours(name, table, inputs.names)
    ]
    ops: list[Op] = [Unset((*merge.RUNTIMES, name)) for name in ours]
    return document.without_empty(document.apply(whole, [*ops, Unset(merge.DEFAULT)]))


def _hook(inputs: EditInput) -> Iterator[Change]:
    """The change that writes our hook, if it is needed. Raises Refused if CRI-O would not
    run it."""
    if not _writes_hook(inputs):
        return
    path = inputs.node.hook
    hidden = hook.hidden_by(inputs.node, inputs.host)
    if hidden is not None:
        raise Refused(
            f"cannot use {path} as hook: CRI-O takes {hidden} in its place, which has the same "
            "name in a later directory; remove that file, or give another name with "
            "--hook-filename"
        )
    hook.require(inputs.node, inputs.host)
    _, now = trust.read_file(inputs.host, path.host)
    data = hook.content(inputs.hook_program)
    if now is None or now.data != data:
        state = new_state(data) if now is None else replace(now, data=data, links=1)
        yield Change(path, now, state)


def _writes_hook(inputs: EditInput) -> bool:
    """Is our own hook needed? It is not if a hook of others runs NVIDIA's program for all
    containers, as ours would."""
    host = inputs.host
    return inputs.decision.hook and not any(
        one.for_all and programs.runs(host, one.program)
        for one in hook.of_others(inputs.node, host)
    )


def _left_behind(inputs: EditInput) -> Iterator[tuple[HostPath, FileState | None]]:
    """The files that we wrote for another row or under another option, with the original state to
    which each is restored."""
    node = inputs.node
    kept = {node.drop_in.host, *((node.hook.host,) if _writes_hook(inputs) else ())}
    loaded = {file.path.host for file in node.files}
    for name, original in sorted(inputs.memory.files.items()):
        if name in kept or not (name in loaded or name.endswith(".json")):
            continue
        path = HostPath(inputs.host.agent_path(name), name)
        now = files.read(path.agent, name)
        if now is None or now.digest != original.written or original.edited:
            continue  # it is gone, or others have changed it: `warnings` names it
        yield path, _original(inputs, original, now)


def _original(inputs: EditInput, original: Original, now: FileState) -> FileState | None:
    if original.digest is None:
        return None
    data = inputs.store.original_bytes(original.digest)
    return FileState(data, original.mode, original.uid, original.gid, now.label)


def warnings(inputs: EditInput, planned: Edits) -> tuple[str, ...]:
    """Warnings for a person."""
    node = inputs.node
    found = list(_of_overrides(inputs))
    effective = node.effective(planned.files)
    if not inputs.decision.hook:
        return (*found, *_of_base(inputs, planned), *_of_hooks(inputs, planned))
    if _writes_hook(inputs):
        warning = hook.warning(node, inputs.host)
        found += [warning] if warning else []
    for other in hook.of_others(node, inputs.host):
        found.append(
            f"{other.path} is a hook of NVIDIA's too, which runs {other.program}: "
            + ("it does what ours would do, so that ours is left out" if other.for_all
               else "containers for which it runs get their GPUs twice; remove it yourself")
        )  # fmt: skip
    for name, table in effective.runtimes.items():
        if is_ours(name, table, inputs.names):
            owner = merge.owner(planned.files, (*merge.RUNTIMES, name))
            found.append(
                f"handler {name} stays: {owner.path if owner else 'a file'} defines it; take "
                "it out there, for the hook injects by itself"
            )
    return tuple(found)


def _of_overrides(inputs: EditInput) -> Iterator[str]:
    """A warning if flags or environment of CRI-O are not known."""
    running = inputs.node.runtime.process
    if running is None:
        yield "the flags and the environment of CRI-O are not known: its process cannot be seen"
    elif not inputs.node.overrides.environment:
        yield (
            f"the environment of CRI-O (pid {running.pid}) cannot be read: whether "
            "CONTAINER_DEFAULT_RUNTIME or the like fixes a setting there is not known; run as root"
        )


def _of_base(inputs: EditInput, planned: Edits) -> Iterator[str]:
    """A warning if our handlers keep another low-level runtime than the default one."""
    effective = inputs.node.effective(planned.files)
    default = effective.table(effective.default)
    if planned.base in (None, effective.default) or is_ours(
        effective.default, default, inputs.names
    ):
        return
    if default.get("runtime_type") != "vm":
        yield (
            f"the handlers stay on {planned.base} while the default runtime is "
            f"{effective.default}: pods that use them would be lost; `revert` and `apply` move "
            "them once there are none"
        )


def _of_hooks(inputs: EditInput, planned: Edits) -> Iterator[str]:
    """A warning for each hook that injects beside the handlers."""
    node, host = inputs.node, inputs.host
    going = {item.path.host for item in planned.changes if item.after is None}
    of_nvidia = {found.path.host: found for found in hook.of_nvidia(node, host)}
    for name, found in sorted(of_nvidia.items()):
        if name not in going:
            which = "all containers" if found.for_all else "some containers"
            yield (
                f"{name} is an OCI hook for {which}, which contradicts row {inputs.decision.row}: "
                f"{found.program} injects beside the handlers, by environment variable, or keeps "
                "containers from starting; it is not as this agent wrote it, so remove it yourself"
            )
    ours = node.hook
    read = [host.resolve(os.path.normpath(name)).host for name in node.hooks_read]
    here = os.path.dirname(ours.host) in read and os.path.lexists(ours.agent)
    if here and ours.host not in (going | of_nvidia.keys()):
        yield f"{ours} is not as this agent wrote it, and CRI-O reads it; remove it yourself"
