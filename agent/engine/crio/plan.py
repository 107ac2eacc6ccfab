"""From CRI-O's files as they are to the files as they should be.

Invariant: one drop-in and one hook are ours, and nothing else is ever written: `crio.conf` and the
files of others stay. The effect is computed on all files together as CRI-O merges them, and where a
file that is read after ours undoes it, the plan is refused with its name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from agent import tomledit
from agent.data import dataclass, replace
from agent.decide import Decision
from agent.engine.crio import hook
from agent.engine.crio import wanted as wishes
from agent.engine.crio.node import CrioNode, shown
from agent.engine.overlay import is_untouched, with_text
from agent.engine.ownership import HEADER
from agent.engine.plan import Change, Edits, first_difference
from agent.engine.state import Memory, Original, Store
from agent.engine.wanted import OUR_NAMES, Binary, Wanted, is_ours
from agent.errors import Refused
from agent.host import files
from agent.host.files import FileState, new_state
from agent.host.paths import HostPath, HostRoot, is_below
from agent.runtimes import crio
from agent.runtimes.containerd import ConfigFile
from agent.runtimes.merge import Cri
from agent.settings import Settings
from agent.tomledit import Data, Op, Set, Unset, get


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
    node, decision = scene.node, scene.decision
    gone = tuple(_left_behind(scene))
    rest = node.load(scene.host, {item.path.host: item.after for item in gone})
    existing = next((f for f in rest[1:] if f.path.host == node.drop_in.host), None)
    fresh = existing is None or is_untouched(scene.memory, existing)
    basis = tuple(file for file in rest if not (fresh and file is existing))
    cri = node.effective(basis)
    name = scene.settings.runtime_name
    wanted = wishes.want(cri, decision, scene.available, name, scene.memory.default)
    after = _drop_in(scene, basis, existing, wanted, fresh=fresh)
    before = existing.state if existing else None
    changes = list(gone)
    if (before and before.data) != (after and after.data):
        changes.append(Change(node.drop_in, before, after, outside(scene.host, node)))
    result = node.load(scene.host, {item.path.host: item.after for item in changes})
    _check(scene, result, wanted)
    wanted = _explicit(scene, wanted, node.effective(result))
    changes += _hook(scene)
    changes.sort(key=lambda item: item.path.host == node.drop_in.host)
    return Edits(tuple(changes), wanted, result)


def outside(host: HostRoot, node: CrioNode) -> HostPath:
    """Where what belongs into the drop-in directory can wait: beside it, for CRI-O reads every file
    in it and below."""
    above = os.path.dirname(host.resolve(node.directory).host)
    return HostPath(host.agent_path(above), above)


def guarded(host: HostRoot, node: CrioNode, change: Change) -> Change:
    """A change of a file in the drop-in directory, told that nothing may lie beside it."""
    inside = is_below(change.path.host, host.resolve(node.directory).host)
    return replace(change, outside=outside(host, node)) if inside else change


def _explicit(scene: Scene, wanted: Wanted, after: Cri) -> Wanted:
    """The wish with what has to go said too: a default that was ours, handlers and keys of them."""
    said = shown(scene.node.runtime) or {}
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
    scene: Scene, basis: tuple[ConfigFile, ...], existing: ConfigFile | None, wanted: Wanted, *,
    fresh: bool,
) -> FileState | None:  # fmt: skip
    """Our drop-in as it should be; None where there should be none."""
    node = scene.node
    state = existing.state if existing else None
    if not fresh and existing is not None and state is not None:
        ops = _in_place(scene, existing.data, wishes.gaps(wanted, node.effective(basis)), wanted)
        text = tomledit.edit(state.data.decode(), ops, node.drop_in.host)
        empty = not tomledit.without_empty(tomledit.parse(text.encode(), node.drop_in.host))
        known = scene.memory.files.get(node.drop_in.host)
        made = known is not None and known.digest is None and not known.edited
        return None if empty and made else with_text(state, text)
    gaps = wishes.gaps(wanted, node.effective(basis))
    if not gaps:
        return None
    ops = [Set(crio.DEFAULT, wanted.default)] if crio.DEFAULT in gaps else []
    depth = len(crio.RUNTIMES)
    changed = {path[depth] for path in gaps if path[:depth] == crio.RUNTIMES}
    ops += [Set((*crio.RUNTIMES, n), t) for n, t in wanted.handlers.items() if n in changed]
    data: Data = tomledit.apply({}, ops)
    if existing is not None and existing.data == data:
        return state
    return with_text(state or new_state(), HEADER + tomledit.render(data))


def _in_place(
    scene: Scene, data: Data, gaps: Mapping[tuple[str, ...], Any], wanted: Wanted
) -> list[Op]:
    """A file at our place that is not all our own: our keys in it, or out of it."""
    ops: list[Op] = []
    for name, table in wanted.handlers.items():
        whole = (*crio.RUNTIMES, name)
        mine = {path: value for path, value in gaps.items() if path[: len(whole)] == whole}
        if mine and get(data, whole) is None:
            ops.append(Set(whole, table))
        else:
            ops += [Set(path, value) for path, value in mine.items()]
    for name, table in (get(data, crio.RUNTIMES) or {}).items():
        if scene.decision.hook and is_ours(name, table, scene.names):
            ops.append(Unset((*crio.RUNTIMES, name)))
    if crio.DEFAULT in gaps:
        ops.append(Set(crio.DEFAULT, gaps[crio.DEFAULT]))
    return sorted(ops, key=lambda op: len(op.path))


def _check(scene: Scene, after: tuple[ConfigFile, ...], wanted: Wanted) -> None:
    """See that the files say together what is wanted, and nothing else than before.

    Raises Refused, with the name of the file that is in the way.
    """
    node = scene.node
    cri = node.effective(after)
    other = crio.effective(replace(node.rules, by_key=not node.rules.by_key), after)
    if gaps := wishes.gaps(wanted, cri) or wishes.gaps(wanted, other):
        path = next(iter(gaps))
        # Any key of a handler there can take all others away.
        owner = crio.owner(after, path[: len(crio.RUNTIMES) + 1])
        raise Refused(
            f"cannot set {tomledit.dotted(path)}: {owner.path if owner else node.root.path} is "
            f"read after {node.drop_in} and has the last word on it; remove the key there, or give "
            "a later name with --drop-in-config"
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
    whole = crio.merged(found, by_key=scene.node.rules.by_key)
    ours = [
        name
        for name, table in (get(whole, crio.RUNTIMES) or {}).items()
        if is_ours(name, table, scene.names)
    ]
    ops: list[Op] = [Unset((*crio.RUNTIMES, name)) for name in ours]
    return tomledit.without_empty(tomledit.apply(whole, [*ops, Unset(crio.DEFAULT)]))


def _hook(scene: Scene) -> Iterator[Change]:
    """The hook's file where it is wanted and not there."""
    if not scene.decision.hook:
        return
    path = scene.node.hook
    now = files.read(path.agent, path.host)
    data = hook.content(scene.hook_program)
    if now is None or now.data != data:
        state = new_state(data) if now is None else replace(now, data=data, links=1)
        yield Change(path, now, state)


def _left_behind(scene: Scene) -> Iterator[Change]:
    """Files that we wrote for another row or under another option, back to what they were."""
    node = scene.node
    directory = scene.host.resolve(node.directory).host
    kept = {node.drop_in.host, *((node.hook.host,) if scene.decision.hook else ())}
    for name, original in sorted(scene.memory.files.items()):
        dropped = is_below(name, directory)
        if name in kept or not (dropped or name.endswith(".json")):
            continue
        path = HostPath(scene.host.agent_path(name), name)
        now = files.read(path.agent, name)
        if now is None or now.digest != original.written or original.edited:
            continue  # gone already, or somebody else's by now: `warnings` names it
        yield Change(
            path, now, _original(scene, original, now),
            outside(scene.host, node) if dropped else None,
        )  # fmt: skip


def _original(scene: Scene, original: Original, now: FileState) -> FileState | None:
    if original.digest is None:
        return None
    data = scene.store.bytes_of(original.digest)
    return FileState(data, original.mode, original.uid, original.gid, now.label)


def warnings(scene: Scene, planned: Edits) -> tuple[str, ...]:
    """What a person should know besides."""
    found = []
    if scene.decision.hook:
        told = hook.warning(scene.node, scene.host)
        found += [told] if told else []
        cri = scene.node.effective(planned.files)
        for name, table in cri.runtimes.items():
            if is_ours(name, table, scene.names):
                owner = crio.owner(planned.files, (*crio.RUNTIMES, name))
                found.append(
                    f"handler {name} stays: {owner.path if owner else 'a file'} defines it; take "
                    "it out there, for the hook injects by itself"
                )
        return tuple(found)
    going = {item.path.host for item in planned.changes if item.after is None}
    hook_file = scene.node.hook
    read = [scene.host.resolve(os.path.normpath(name)).host for name in scene.node.hooks_read]
    here = os.path.dirname(hook_file.host) in read and os.path.lexists(hook_file.agent)
    if here and hook_file.host not in going:
        found.append(
            f"{hook_file} injects too, into every container that asks for GPUs by environment "
            "variable; it is not as this agent wrote it, so remove it yourself"
        )
    return tuple(found)
