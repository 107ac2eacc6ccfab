"""From CRI-O's files as they are to the files as they should be.

Invariant: one drop-in and one hook are ours. A file of others is edited only where CRI-O reads it
after ours and it says otherwise, in those keys alone; the root file also where CRI-O reads no
drop-ins. The effect is computed on all files together as CRI-O merges them; what a flag or a
variable of its process fixes no file can change, and is refused with its name.
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
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.containerd.overlay import fresh_state, is_untouched, with_text
from agent.runtimes.crio import desired as wishes
from agent.runtimes.crio import hook, merge
from agent.runtimes.crio.desired import Before
from agent.runtimes.desired import OUR_NAMES, Desired, is_ours, leaves, same
from agent.runtimes.key_ownership import HEADER
from agent.runtimes.preflight import first_difference
from agent.state.store import Memory, Original, Store
from agent.toml import edit as tomledit
from agent.toml.edit import Data, Op, Set, Unset, get
from agent.toolkit import programs
from agent.toolkit.programs import Binary

if TYPE_CHECKING:
    from agent.runtimes.crio.adapter import CrioNode


@dataclass(frozen=True, slots=True)
class Scene:
    """What a plan is made from."""

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


def edits(scene: Scene) -> Edits:
    """The changes that make the files right; none where they already are. Raises Refused."""
    node, decision, name = scene.node, scene.decision, scene.settings.runtime_name
    _refuse_fileless(scene)
    future = {path.host: state for path, state in _left_behind(scene)}
    rest = _with_place(scene, future)
    existing = next(file for file in rest if file.path.host == node.drop_in.host)
    fresh = existing.state is None or is_untouched(scene.memory, existing)
    if fresh:
        rest = tuple(replace(f, state=None, data={}) if f is existing else f for f in rest)
    cri, before = node.effective(rest), _before(scene, rest)
    wanted = wishes.want(cri, decision, scene.available, name, scene.memory.default, before)
    base = wishes.base(cri, scene.available, name, scene.memory.default, before)
    _refuse_fixed(scene, wanted)
    later = tuple(_edited(file, wanted) for file in _after(rest, existing))
    future |= {file.path.host: file.state for file in later}
    basis = (*rest[: len(rest) - len(later)], *later)
    future[node.drop_in.host] = _drop_in(scene, basis, existing, wanted, fresh=fresh)
    changes = list(_changes(scene, future))
    result = node.load(scene.host, {item.path.host: item.after for item in changes})
    _check(scene, result, wanted)
    wanted = _explicit(scene, wanted, node.effective(result))
    changes += _hook(scene)
    changes.sort(key=lambda item: item.path.host == node.drop_in.host)
    called = (low_level.called_by(scene.host, table) for table in before.handlers.values())
    return Edits(tuple(changes), wanted, result, base, next(filter(None, called), None))


def _refuse_fileless(scene: Scene) -> None:
    """Refuse what no file can make right: CRI-O reads none, or looks for CDI specs nowhere."""
    node, overrides = scene.node, scene.node.overrides
    if not node.directory and not node.root.name and overrides.directory:
        raise Refused(
            "cannot configure CRI-O: it was started with an empty "
            f"{overrides.directory.source} and no configuration file either, and reads nothing; "
            "take one of the two settings out of "
            f"{node.kept_in(scene.host, overrides.directory)} and restart it"
        )
    if scene.decision.native and not merge.spec_dirs(node.files, overrides):
        owner = merge.owner(node.files, merge.SPEC_DIRS)
        place = owner.path.host if owner else node.root.path.host
        if fixed := overrides.spec_dirs:
            place = f"{fixed.source} ({node.kept_in(scene.host, fixed)})"
        raise Refused(
            f"cannot use native CDI: cdi_spec_dirs is empty in {place}, so CRI-O reads no specs; "
            'remove the key, or name "/etc/cdi" and "/var/run/cdi" in it'
        )


def _refuse_fixed(scene: Scene, wanted: Desired) -> None:
    """Refuse where a flag or a variable of CRI-O fixes what has to be changed: it wins over every
    file, whatever is written."""
    overrides = scene.node.overrides
    fixed = overrides.default
    if fixed and wanted.default is not None and fixed.value != wanted.default:
        raise Refused(
            f"cannot make {wanted.default} the default runtime: {fixed.source} of the running "
            f"CRI-O fixes {fixed.value or 'the built-in one'}, over every file; take it out of "
            f"{scene.node.kept_in(scene.host, fixed)} and restart CRI-O"
        )
    for name, table in overrides.handlers.items():
        ours = wanted.handlers.get(name, {})
        if overrides.runtimes and any(not same(v, get(table, path)) for path, v in leaves(ours)):
            raise Refused(
                f"cannot register handler {name}: {overrides.runtimes.source} of the running CRI-O "
                "fixes another one, over every file; take it out of "
                f"{scene.node.kept_in(scene.host, overrides.runtimes)} and restart CRI-O"
            )


def _before(scene: Scene, rest: tuple[ConfigFile, ...]) -> Before:
    """What the node has: its own default runtimes, and the handlers that pods may use."""
    node = scene.node
    said = node.shown
    tables = get(said, ("runtimes",)) if said else node.effective(node.files).runtimes
    builtin = node.rules.default
    return Before(
        defaults=merge.explicit_defaults(tuple(_unedited(scene, file) for file in rest)),
        builtin=builtin if builtin in (get(said, ("runtimes",)) or {}) else None,
        handlers={n: t for n, t in (tables or {}).items() if is_ours(n, t, scene.names)},
        root=node.rules.root,
    )


def _unedited(scene: Scene, file: ConfigFile) -> ConfigFile:
    """A file of somebody else's as it was before we edited it, if it is as we left it."""
    known = scene.memory.files.get(file.path.host)
    if known is None or known.digest is None or known.edited or file.state is None:
        return file
    if file.state.digest != known.written:
        return file
    return replace(
        file, data=tomledit.parse(scene.store.original_bytes(known.digest), file.path.host)
    )


def _with_place(scene: Scene, future: Mapping[str, FileState | None]) -> tuple[ConfigFile, ...]:
    """The files as they will be, with our place where CRI-O reads it, there or not."""
    node = scene.node
    found = node.load(scene.host, future)
    if any(file.path.host == node.drop_in.host for file in found):
        return found
    found = node.load(scene.host, {**future, node.drop_in.host: new_state()})
    absent = (f for f in found if f.path.host == node.drop_in.host)
    missing = {file.path.host: replace(file, state=None) for file in absent}
    return tuple(missing.get(file.path.host, file) for file in found)


def _after(files: tuple[ConfigFile, ...], place: ConfigFile) -> tuple[ConfigFile, ...]:
    """The files that CRI-O reads after one of them."""
    names = [file.path.host for file in files]
    return files[names.index(place.path.host) + 1 :]


def _edited(file: ConfigFile, wanted: Desired) -> ConfigFile:
    """A file that is read after ours, with the wish wherever it says otherwise."""
    ops: list[Op] = []
    for name, table in wanted.handlers.items():
        whole = (*merge.RUNTIMES, name)
        there = get(file.data, whole)
        if there is not None:
            # All of it: where the decoder keeps no keys, this table is all that counts.
            wrong = {path: v for path, v in leaves(table) if not same(v, get(there, path))}
            ops += [Set((*whole, *path), value) for path, value in wrong.items()]
    named = get(file.data, merge.DEFAULT)
    if wanted.default is not None and named not in (None, wanted.default):
        ops.append(Set(merge.DEFAULT, wanted.default))
    if not ops or file.state is None:
        return file
    name = file.path.host
    text = tomledit.edit(tomledit.decoded(file.state.data, name), ops, name)
    state = with_text(file.state, text)
    return replace(file, state=state, data=tomledit.parse(state.data, name))


def _changes(scene: Scene, future: Mapping[str, FileState | None]) -> Iterator[Change]:
    """What has to happen to each file that is not as it will be."""
    overlay = scene.node.overlay
    for name, after in sorted(future.items()):
        path = HostPath(scene.host.agent_path(name), name)
        now = overlay[name] if name in overlay else files.read(path.agent, name)
        if (now and now.data) != (after and after.data):
            yield guarded(scene.host, scene.node, Change(path, now, after))


def guarded(host: HostRoot, node: CrioNode, change: Change) -> Change:
    """A change of a file in the drop-in directory, told that nothing may lie beside it: what
    belongs there waits beside the directory, for CRI-O reads every file in it and below."""
    if not node.directory:
        return change
    directory = host.resolve(node.directory).host
    above = os.path.dirname(directory)
    if not is_below(change.path.host, directory):
        return change
    return replace(change, outside=HostPath(host.agent_path(above), above))


def _explicit(scene: Scene, wanted: Desired, after: Effective) -> Desired:
    """The wish with what has to go said too: a default that was ours, handlers and keys of them."""
    said = scene.node.shown or {}
    running = get(said, ("runtimes",), {})
    now = scene.node.effective(scene.node.files)
    if wanted.default is None:
        shows = said.get("default_runtime")
        defaults = ((now.default, now.runtimes), (shows, running))
        if any(n and is_ours(n, t.get(n) or {}, scene.names) for n, t in defaults):
            wanted = replace(wanted, default=after.default)
    handlers = {
        name: {**table, **_gone(now.table(name), after.table(name))}
        for name, table in wanted.handlers.items()
    }
    there = {*now.runtimes, *running}
    absent = tuple(n for n in scene.names if n in there and n not in after.runtimes)
    return replace(wanted, handlers=handlers, absent=tuple(dict.fromkeys(absent)))


def _gone(now: Data, after: Data) -> Data:
    """Keys that a handler has by now and will have no more, as nothing."""
    return {key: type(value)() for key, value in now.items() if value and key not in after}


def _drop_in(
    scene: Scene, basis: tuple[ConfigFile, ...], existing: ConfigFile, wanted: Desired, *,
    fresh: bool,
) -> FileState | None:  # fmt: skip
    """Our drop-in as it should be; None where there should be none."""
    node = scene.node
    state = existing.state
    if not fresh and state is not None:
        ops = _in_place(scene, existing.data, wishes.gaps(wanted, node.by_files(basis)), wanted)
        name = node.drop_in.host
        text = tomledit.edit(tomledit.decoded(state.data, name), ops, name)
        empty = not tomledit.without_empty(tomledit.parse(tomledit.encoded(text), name))
        known = scene.memory.files.get(name)
        made = known is not None and known.digest is None and not known.edited
        return None if empty and made else with_text(state, text)
    gaps = wishes.gaps(wanted, node.by_files(basis))
    if not gaps:
        return None
    ops = [Set(merge.DEFAULT, wanted.default)] if merge.DEFAULT in gaps else []
    depth = len(merge.RUNTIMES)
    changed = {path[depth] for path in gaps if path[:depth] == merge.RUNTIMES}
    ops += [Set((*merge.RUNTIMES, n), t) for n, t in wanted.handlers.items() if n in changed]
    data: Data = tomledit.apply({}, ops)
    if state is not None and existing.data == data:
        return state
    return with_text(state or fresh_state(node.files), HEADER + tomledit.render(data))


def _in_place(
    scene: Scene, data: Data, gaps: Mapping[tuple[str, ...], Any], wanted: Desired
) -> list[Op]:
    """A file at our place that is not all our own: our keys in it, or out of it."""
    ops: list[Op] = []
    for name, table in wanted.handlers.items():
        whole = (*merge.RUNTIMES, name)
        mine = {path: value for path, value in gaps.items() if path[: len(whole)] == whole}
        if mine and get(data, whole) is None:
            ops.append(Set(whole, table))
        else:
            ops += [Set(path, value) for path, value in mine.items()]
    for name, table in (get(data, merge.RUNTIMES) or {}).items():
        if scene.decision.hook and is_ours(name, table, scene.names):
            ops.append(Unset((*merge.RUNTIMES, name)))
    if merge.DEFAULT in gaps:
        ops.append(Set(merge.DEFAULT, gaps[merge.DEFAULT]))
    return sorted(ops, key=lambda op: len(op.path))


def _check(scene: Scene, after: tuple[ConfigFile, ...], wanted: Desired) -> None:
    """See that the files say together what is wanted, and nothing else than before.

    Raises Refused, with the name of the file that is in the way.
    """
    node = scene.node
    cri = node.effective(after)
    other = merge.effective(replace(node.rules, by_key=not node.rules.by_key), after)
    if gaps := wishes.gaps(wanted, cri) or wishes.gaps(wanted, other):
        path = next(iter(gaps))
        # Any key of a handler there can take all others away.
        owner = merge.owner(after, path[: len(merge.RUNTIMES) + 1])
        raise Refused(
            f"cannot set {tomledit.dotted(path)}: {owner.path if owner else node.root.path} is "
            f"read after {node.drop_in} and overrides it; remove the key there, or give a later "
            "name with --drop-in-config"
        )
    if cri.default not in cri.runtimes:
        raise Refused(
            f"cannot edit {node.drop_in}: default_runtime is {cri.default}, and there would be no "
            "such handler; add it or correct the name"
        )
    now, then = (_strip(scene, found) for found in (node.files, after))
    difference = first_difference(now, then)
    if difference is not None:
        raise Refused(
            f"cannot edit {node.drop_in}: {tomledit.dotted(difference)} would change too; move "
            "what is not NVIDIA's in there to a file of its own"
        )


def _strip(scene: Scene, found: tuple[ConfigFile, ...]) -> Data:
    """Settings without the keys that an edit of ours may change."""
    whole = merge.merged(found, by_key=scene.node.rules.by_key)
    ours = [
        name
        for name, table in (get(whole, merge.RUNTIMES) or {}).items()
        if is_ours(name, table, scene.names)
    ]
    ops: list[Op] = [Unset((*merge.RUNTIMES, name)) for name in ours]
    return tomledit.without_empty(tomledit.apply(whole, [*ops, Unset(merge.DEFAULT)]))


def _hook(scene: Scene) -> Iterator[Change]:
    """The hook's file where it is wanted and not there. Raises Refused where it would not count."""
    if not _writes_hook(scene):
        return
    path = scene.node.hook
    hidden = hook.hidden_by(scene.node, scene.host)
    if hidden is not None:
        raise Refused(
            f"cannot use {path} as hook: CRI-O takes {hidden} in its place, which has the same "
            "name in a later directory; remove that file, or give another name with "
            "--hook-filename"
        )
    hook.require(scene.node, scene.host)
    _, now = trust.read_file(scene.host, path.host)
    data = hook.content(scene.hook_program)
    if now is None or now.data != data:
        state = new_state(data) if now is None else replace(now, data=data, links=1)
        yield Change(path, now, state)


def _writes_hook(scene: Scene) -> bool:
    """Is our own hook needed: is one wanted, and does none of NVIDIA's run already?"""
    return scene.decision.hook and not _doubles(scene)


def _doubles(scene: Scene) -> tuple[hook.Hook, ...]:
    """NVIDIA's hooks of somebody else that do what ours would do."""
    found = hook.of_others(scene.node, scene.host)
    return tuple(h for h in found if h.for_all and programs.runs(scene.host, h.program))


def _left_behind(scene: Scene) -> Iterator[tuple[HostPath, FileState | None]]:
    """Files that we wrote for another row or under another option, as they were."""
    node = scene.node
    kept = {node.drop_in.host, *((node.hook.host,) if _writes_hook(scene) else ())}
    loaded = {file.path.host for file in node.files}
    for name, original in sorted(scene.memory.files.items()):
        if name in kept or not (name in loaded or name.endswith(".json")):
            continue
        path = HostPath(scene.host.agent_path(name), name)
        now = files.read(path.agent, name)
        if now is None or now.digest != original.written or original.edited:
            continue  # gone already, or somebody else's by now: `warnings` names it
        yield path, _original(scene, original, now)


def _original(scene: Scene, original: Original, now: FileState) -> FileState | None:
    if original.digest is None:
        return None
    data = scene.store.original_bytes(original.digest)
    return FileState(data, original.mode, original.uid, original.gid, now.label)


def warnings(scene: Scene, planned: Edits) -> tuple[str, ...]:
    """What a person should know besides."""
    node = scene.node
    found = list(_of_overrides(scene))
    cri = node.effective(planned.files)
    if not scene.decision.hook:
        return (*found, *_of_base(scene, planned), *_of_hooks(scene, planned))
    if _writes_hook(scene):
        told = hook.warning(node, scene.host)
        found += [told] if told else []
    for other in hook.of_others(node, scene.host):
        found.append(
            f"{other.path} is a hook of NVIDIA's too, which runs {other.program}: "
            + ("it does what ours would do, so that ours is left out" if other.for_all
               else "containers for which it runs get their GPUs twice; remove it yourself")
        )  # fmt: skip
    for name, table in cri.runtimes.items():
        if is_ours(name, table, scene.names):
            owner = merge.owner(planned.files, (*merge.RUNTIMES, name))
            found.append(
                f"handler {name} stays: {owner.path if owner else 'a file'} defines it; take "
                "it out there, for the hook injects by itself"
            )
    return tuple(found)


def _of_overrides(scene: Scene) -> Iterator[str]:
    """That not all is known of how CRI-O was started."""
    running = scene.node.runtime.process
    if running is None:
        yield "the flags and the environment of CRI-O are not known: its process cannot be seen"
    elif not scene.node.overrides.environment:
        yield (
            f"the environment of CRI-O (pid {running.pid}) cannot be read: whether "
            "CONTAINER_DEFAULT_RUNTIME or the like fixes a setting there is not known; run as root"
        )


def _of_base(scene: Scene, planned: Edits) -> Iterator[str]:
    """That handlers stay on the low-level runtime that they have."""
    cri = scene.node.effective(planned.files)
    default = cri.table(cri.default)
    if planned.base in (None, cri.default) or is_ours(cri.default, default, scene.names):
        return
    if default.get("runtime_type") != "vm":
        yield (
            f"the handlers stay on {planned.base} while the default runtime is {cri.default}: pods "
            "that use them would be lost; `revert` and `apply` move them once there are none"
        )


def _of_hooks(scene: Scene, planned: Edits) -> Iterator[str]:
    """Hooks that inject beside the handlers."""
    node, host = scene.node, scene.host
    going = {item.path.host for item in planned.changes if item.after is None}
    nvidias = {found.path.host: found for found in hook.of_nvidia(node, host)}
    for name, found in sorted(nvidias.items()):
        if name not in going:
            which = "all containers" if found.for_all else "some containers"
            yield (
                f"{name} is an OCI hook for {which}, which contradicts row {scene.decision.row}: "
                f"{found.program} injects beside the handlers, by environment variable, or keeps "
                "containers from starting; it is not as this agent wrote it, so remove it yourself"
            )
    ours = node.hook
    read = [host.resolve(os.path.normpath(name)).host for name in node.hooks_read]
    here = os.path.dirname(ours.host) in read and os.path.lexists(ours.agent)
    if here and ours.host not in (going | nvidias.keys()):
        yield f"{ours} is not as this agent wrote it, and CRI-O reads it; remove it yourself"
