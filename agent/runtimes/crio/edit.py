"""The edits that bring CRI-O's files to the desired state.

Invariant: one drop-in and one hook are ours. A file of others is edited only if CRI-O reads that
file after our drop-in and it overrides our keys; then only these keys are edited. The root file is
also edited if CRI-O reads no drop-ins. The effect is computed on all files together, as CRI-O
merges them. A change of a setting that a flag or a variable of the process fixes is refused,
because no file can change that setting.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.errors import Refused
from agent.host import files, trust
from agent.host.files import Change, FileState, new_state
from agent.host.paths import HostPath, is_below
from agent.runtimes import config_file, low_level
from agent.runtimes.base import EditRequest, Edits
from agent.runtimes.config_file import ConfigFile, Files, fresh_state, is_hook, with_text
from agent.runtimes.crio import desired_state, hook, merge
from agent.runtimes.crio.desired_state import PresentState
from agent.runtimes.desired_state import (
    Desired,
    Effective,
    first_difference,
    is_ours,
    leaves,
    operations,
    require_default,
    same,
)
from agent.runtimes.key_ownership import HEADER, is_untouched
from agent.toml import document
from agent.toml.document import Data, Op, Set, Unset, get
from agent.toolkit import programs

if TYPE_CHECKING:
    from agent.runtimes.crio.adapter import CrioNode


def edits(node: CrioNode, request: EditRequest) -> Edits:
    """The changes that bring the files to the desired state, none if they have it. Raises
    Refused."""
    _refuse_fileless(node, native=bool(request.decision.native))
    future = dict(_left_behind(node, request))
    rest = _with_place(node, future)
    existing = next(file for file in rest if file.path.host == node.drop_in.host)
    fresh = existing.state is None or is_untouched(request.memory, existing)
    if fresh:
        rest = tuple(replace(f, state=None, data={}) if f is existing else f for f in rest)
    effective, present = node.effective(rest), _present_state(node, request, rest)
    desired = desired_state.derive_desired(effective, request, present)
    base = desired_state.base(effective, request, present)
    _refuse_fixed(node, desired)
    place = [file.path.host for file in rest].index(existing.path.host) + 1
    later = tuple(_with_desired(file, desired) for file in rest[place:])
    future |= {file.path.host: file.state for file in later}
    basis = (*rest[:place], *later)
    future[node.drop_in.host] = _drop_in(node, request, basis, existing, desired, fresh=fresh)
    changes = list(_changes(node, future))
    result = node.load({item.path.host: item.after for item in changes})
    _check(node, request, result, desired)
    desired = _with_removals(node, request, desired, node.effective(result))
    changes += _hook(node, request)
    changes.sort(key=lambda item: item.path.host == node.drop_in.host)
    called = (low_level.called_by(node.host, table) for table in present.handlers.values())
    return Edits(tuple(changes), desired, result, base, next(filter(None, called), None))


def _refuse_fileless(node: CrioNode, *, native: bool) -> None:
    """Raise Refused if no edit can have an effect: CRI-O reads no files, or with `native` no CDI
    specs."""
    overrides = node.overrides
    if not node.directory and not node.root.name and overrides.directory:
        raise Refused(
            "cannot configure CRI-O: it was started with an empty "
            f"{overrides.directory.source} and no configuration file either, so it reads no files; "
            "take one of the two settings out of "
            f"{node.setting_file(overrides.directory)} and restart CRI-O"
        )
    if native and not merge.spec_dirs(node.files, overrides):
        owner = config_file.owner(node.files, merge.SPEC_DIRS)
        place = owner.path.host if owner else node.root.path.host
        if fixed := overrides.spec_dirs:
            place = f"{fixed.source} ({node.setting_file(fixed)})"
        raise Refused(
            f"cannot use native CDI: cdi_spec_dirs is empty in {place}, so CRI-O reads no specs; "
            'remove the key, or name "/etc/cdi" and "/var/run/cdi" in it'
        )


def _refuse_fixed(node: CrioNode, desired: Desired) -> None:
    """Raise Refused if a flag or a variable of CRI-O fixes a setting that has to change, because
    flags and variables win over every file."""
    overrides = node.overrides
    fixed = overrides.default
    if fixed and desired.default is not None and fixed.value != desired.default:
        raise Refused(
            f"cannot make {desired.default} the default runtime: {fixed.source} of the running "
            f"CRI-O fixes {fixed.value or 'the built-in one'}, over every file; take it out of "
            f"{node.setting_file(fixed)} and restart CRI-O"
        )
    for name, table in overrides.handlers.items():
        ours = desired.handlers.get(name, {})
        if overrides.runtimes and any(not same(v, get(table, path)) for path, v in leaves(ours)):
            raise Refused(
                f"cannot register handler {name}: {overrides.runtimes.source} of the running CRI-O "
                "fixes another one, over every file; take it out of "
                f"{node.setting_file(overrides.runtimes)} and restart CRI-O"
            )


def _present_state(node: CrioNode, request: EditRequest, rest: Files) -> PresentState:
    """The present state of the node. `rest` are the files without our own edits."""
    shown = node.shown_section
    tables = get(shown, ("runtimes",)) if shown else node.effective(node.files).runtimes
    builtin = node.rules.default
    return PresentState(
        defaults=merge.explicit_defaults(tuple(_unedited(request, file) for file in rest)),
        builtin=builtin if builtin in (get(shown, ("runtimes",)) or {}) else None,
        handlers={n: t for n, t in (tables or {}).items() if is_ours(n, t, request.own_names)},
        root=node.rules.root,
    )


def _unedited(request: EditRequest, file: ConfigFile) -> ConfigFile:
    """A file of others with its content before our edit; the file itself if we did not edit it, or
    if somebody edited it since."""
    known = request.memory.files.get(file.path.host)
    if known is None or known.digest is None or known.edited or file.state is None:
        return file
    if file.state.digest != known.written:
        return file
    return replace(
        file, data=document.parse(request.store.original_bytes(known.digest), file.path.host)
    )


def _with_place(node: CrioNode, future: Mapping[str, FileState | None]) -> Files:
    """The future files, with our drop-in at its place among them even if it does not exist."""
    drop_in = node.drop_in.host
    loaded = node.load(future)
    if any(file.path.host == drop_in for file in loaded):
        return loaded
    loaded = node.load({**future, drop_in: new_state()})
    return tuple(replace(f, state=None) if f.path.host == drop_in else f for f in loaded)


def _with_desired(file: ConfigFile, desired: Desired) -> ConfigFile:
    """A file that CRI-O reads after our drop-in, with the desired values of the keys that it
    overrides."""
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


def _changes(node: CrioNode, future: Mapping[str, FileState | None]) -> Iterator[Change]:
    """The change of each file whose content will differ."""
    for name, after in sorted(future.items()):
        path = HostPath(node.host.agent_path(name), name)
        now = node.overlay[name] if name in node.overlay else files.read(path.agent, name)
        if (now and now.data) != (after and after.data):
            yield guarded(node, Change(path, now, after))


def guarded(node: CrioNode, change: Change) -> Change:
    """The change. If its file is below the drop-in directory, temporary files are placed outside
    that directory, because CRI-O reads every file below it."""
    directory = node.host.resolve(node.directory).host if node.directory else None
    if directory is None or not is_below(change.path.host, directory):
        return change
    above = os.path.dirname(directory)
    return replace(change, outside=HostPath(node.host.agent_path(above), above))


def _with_removals(
    node: CrioNode, request: EditRequest, desired: Desired, after: Effective
) -> Desired:
    """The desired state with all removals: the default runtime if it was ours, absent handlers, and
    removed keys of handlers, with their zero values."""
    shown_default, shown = node.adapter.shown_handlers(node.runtime.answer)
    running, now = shown or {}, node.effective(node.files)
    if desired.default is None:
        defaults = ((now.default, now.runtimes), (shown_default, running))
        if any(n and is_ours(n, t.get(n) or {}, request.own_names) for n, t in defaults):
            desired = replace(desired, default=after.default)
    handlers = {}
    for name, table in desired.handlers.items():
        left, kept = now.table(name), after.table(name)
        cleared = {key: type(v)() for key, v in left.items() if v and key not in kept}
        handlers[name] = {**table, **cleared}
    known = {*now.runtimes, *running}
    absent = tuple(n for n in request.own_names if n in known and n not in after.runtimes)
    return replace(desired, handlers=handlers, absent=tuple(dict.fromkeys(absent)))


def _drop_in(
    node: CrioNode, request: EditRequest, basis: Files, existing: ConfigFile, desired: Desired, *,
    fresh: bool,
) -> FileState | None:  # fmt: skip
    """The future state of our drop-in, None if none is needed. A drop-in that others have edited
    too is edited in place; with `fresh`, it is written anew."""
    state, name = existing.state, node.drop_in.host
    different = desired_state.differences(desired, node.by_files(basis))
    ops = operations(desired, different, merge.RUNTIMES, existing.data if not fresh else {})
    if fresh or state is None:
        data = document.apply({}, ops)
        if not ops or (state is not None and existing.data == data):
            return state if ops else None
        return with_text(state or fresh_state(node.files), HEADER + document.render(data))
    tables = (get(existing.data, merge.RUNTIMES) or {}) if request.decision.hook else {}
    for handler, table in tables.items():
        if is_ours(handler, table, request.own_names):
            ops.append(Unset((*merge.RUNTIMES, handler)))
    text = document.edit(document.decoded(state.data, name), ops, name)
    empty = not document.without_empty(document.parse(document.encoded(text), name))
    known = request.memory.files.get(name)
    made = known is not None and known.digest is None and not known.edited
    return None if empty and made else with_text(state, text)


def _check(node: CrioNode, request: EditRequest, after: Files, desired: Desired) -> None:
    """Check that the future files together have the desired state, and that nothing else changes.

    Raises Refused, which names the file that prevents this.
    """
    effective = node.effective(after)
    other = merge.effective(replace(node.rules, by_key=not node.rules.by_key), after)
    if differences := desired_state.differences(desired, effective) or desired_state.differences(
        desired, other
    ):
        path = next(iter(differences))
        # With some decoders, any key of a handler in a later file removes all its other keys.
        owner = config_file.owner(after, path[: len(merge.RUNTIMES) + 1])
        raise Refused(
            f"cannot set {document.dotted(path)}: {owner.path if owner else node.root.path} is "
            f"read after {node.drop_in} and overrides it; remove the key there, or give a later "
            "name with --drop-in-config"
        )
    require_default(effective, merge.DEFAULT[-1], node.drop_in)
    now, later = (_strip(node, request, loaded) for loaded in (node.files, after))
    difference = first_difference(now, later)
    if difference is not None:
        raise Refused(
            f"cannot edit {node.drop_in}: {document.dotted(difference)} would change too; move the "
            "settings in it that are not NVIDIA's to another file"
        )


def _strip(node: CrioNode, request: EditRequest, loaded: Files) -> Data:
    """The merged settings of these files, without the keys that an edit of ours may change."""
    whole = merge.merged(loaded, by_key=node.rules.by_key)
    ours = [
        name
        for name, table in (get(whole, merge.RUNTIMES) or {}).items()
        if is_ours(name, table, request.own_names)
    ]
    ops: list[Op] = [Unset((*merge.RUNTIMES, name)) for name in ours]
    return document.without_empty(document.apply(whole, [*ops, Unset(merge.DEFAULT)]))


def _hook(node: CrioNode, request: EditRequest) -> Iterator[Change]:
    """The change that writes our hook, if the hook is needed and not right. Raises Refused if CRI-O
    would not run the hook."""
    if not _writes_hook(node, request):
        return
    path = node.hook
    hidden = hook.hidden_by(node)
    if hidden is not None:
        raise Refused(
            f"cannot use {path} as hook: CRI-O takes {hidden} in its place, which has the same "
            "name in a later directory; remove that file, or give another name with "
            "--hook-filename"
        )
    hook.require(node)
    _, now = trust.read_file(node.host, path.host)
    data = hook.content(request.hook_program)
    if now is None or now.data != data:
        state = new_state(data) if now is None else replace(now, data=data, links=1)
        yield Change(path, now, state)


def _writes_hook(node: CrioNode, request: EditRequest) -> bool:
    """Does the decision need our own hook? Not if a hook of others runs NVIDIA's program for all
    containers already."""
    return request.decision.hook and not any(
        one.for_all and programs.runs(node.host, one.program) for one in hook.of_others(node)
    )


def _left_behind(node: CrioNode, request: EditRequest) -> Iterator[tuple[str, FileState | None]]:
    """The files that we wrote for another row or under another option (host paths), with the
    original state to which each is restored."""
    kept = {node.drop_in.host, *((node.hook.host,) if _writes_hook(node, request) else ())}
    loaded = {file.path.host for file in node.files}
    for name, known in sorted(request.memory.files.items()):
        if name in kept or not (name in loaded or is_hook(name)):
            continue
        now = files.read(node.host.agent_path(name), name)
        if now is None or now.digest != known.written or known.edited:
            continue  # the file is gone, or others have changed it; then `warnings` names it
        if known.digest is None:
            yield name, None
        else:
            data = request.store.original_bytes(known.digest)
            yield name, FileState(data, known.mode, known.uid, known.gid, now.label)


def warnings(node: CrioNode, request: EditRequest, planned: Edits) -> tuple[str, ...]:
    """The warnings about the planned edits."""
    texts = list(_of_overrides(node))
    effective = node.effective(planned.files)
    if not request.decision.hook:
        return (*texts, *_of_base(node, request, planned), *_of_hooks(node, request, planned))
    if _writes_hook(node, request):
        warning = hook.warning(node)
        texts += [warning] if warning else []
    for other in hook.of_others(node):
        texts.append(
            f"{other.path} is a hook of NVIDIA's too, which runs {other.program}: "
            + ("it runs for all containers, so our hook is left out" if other.for_all
               else "containers for which it runs get their GPUs twice; remove it yourself")
        )  # fmt: skip
    for name, table in effective.runtimes.items():
        if is_ours(name, table, request.own_names):
            owner = config_file.owner(planned.files, (*merge.RUNTIMES, name))
            texts.append(
                f"handler {name} stays: {owner.path if owner else 'a file'} defines it; remove it "
                "there, because the hook injects GPUs without a handler"
            )
    return tuple(texts)


def _of_overrides(node: CrioNode) -> Iterator[str]:
    """A warning if the flags or the environment of CRI-O are not known."""
    running = node.runtime.process
    if running is None:
        yield "the flags and the environment of CRI-O are not known: its process cannot be seen"
    elif not node.overrides.environment:
        yield (
            f"the environment of CRI-O (pid {running.pid}) cannot be read: whether "
            "CONTAINER_DEFAULT_RUNTIME or the like fixes a setting there is not known; run as root"
        )


def _of_base(node: CrioNode, request: EditRequest, planned: Edits) -> Iterator[str]:
    """A warning if our handlers keep another low-level runtime than the default one."""
    effective = node.effective(planned.files)
    default = effective.table(effective.default)
    if planned.base in (None, effective.default) or is_ours(
        effective.default, default, request.own_names
    ):
        return
    if default.get("runtime_type") != "vm":
        yield (
            f"the handlers stay on {planned.base} while the default runtime is "
            f"{effective.default}: their running pods would be lost; when no pod uses them, "
            "`revert` and `apply` move them"
        )


def _of_hooks(node: CrioNode, request: EditRequest, planned: Edits) -> Iterator[str]:
    """A warning for each hook that injects beside the handlers."""
    removed = {item.path.host for item in planned.changes if item.after is None}
    of_nvidia = {found.path.host: found for found in hook.of_nvidia(node)}
    for name, found in sorted(of_nvidia.items()):
        if name not in removed:
            which = "all containers" if found.for_all else "some containers"
            yield (
                f"{name} is an OCI hook for {which}, which contradicts row {request.decision.row}: "
                f"{found.program} injects beside the handlers, by environment variable, or keeps "
                "containers from starting; this agent did not write it, or somebody edited it, so "
                "remove it yourself"
            )
    ours = node.hook
    read = [node.host.resolve(os.path.normpath(name)).host for name in node.hooks_read]
    here = os.path.dirname(ours.host) in read and os.path.lexists(ours.agent)
    if here and ours.host not in (removed | of_nvidia.keys()):
        yield (
            f"{ours} was edited after this agent wrote it, and CRI-O reads it; remove it yourself"
        )
