"""From the files as they are to the files as they should be.

Invariant: an edit changes our keys and nothing else, in as few files as possible; the plan is
computed on the whole set of files as this generation of containerd merges them, before and after,
and is refused where the two differ in anything that is not ours (DESIGN section 4).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from agent import tomledit
from agent.data import dataclass
from agent.engine import wanted as wishes
from agent.engine.state import Memory
from agent.engine.wanted import Wanted
from agent.errors import Refused
from agent.host.files import FileState, new_state
from agent.host.paths import HostPath, HostRoot
from agent.observe import config
from agent.observe.config import Overlay
from agent.runtimes import containerd
from agent.runtimes.containerd import ConfigFile, Cri, Generation
from agent.tomledit import Append, Data, Op, Path, Set, Unset, get

_HEADER = (
    "# Written by toolkit-agent: the NVIDIA container runtime for this node.\n"
    "# `toolkit-agent plan` shows what is in force and why; `toolkit-agent revert` undoes it.\n"
)
_SECTION_DEFAULT: Path = ("containerd", "default_runtime_name")
_LEGACY: Path = ("containerd", "default_runtime")
_SWITCH: Path = ("enable_cdi",)
_RUNTIMES: Path = ("containerd", "runtimes")


class CannotSwitch(Refused):
    """`enable_cdi` cannot be set where it would count; everything else may still be possible."""


@dataclass(frozen=True, slots=True)
class Change:
    """One file: what it is and what it becomes, None where it is not there."""

    path: HostPath
    before: FileState | None
    after: FileState | None


@dataclass(frozen=True, slots=True)
class Edits:
    """What has to be written, in that order, so that `wanted` holds at the next start."""

    changes: tuple[Change, ...]
    wanted: Wanted
    files: tuple[ConfigFile, ...]  # as they will be


@dataclass(frozen=True, slots=True)
class Scene:
    """What a plan is made from. `wish` derives the wanted state from effective settings."""

    host: HostRoot
    gen: Generation
    files: tuple[ConfigFile, ...]
    drop_in: HostPath
    memory: Memory
    wish: Callable[[Cri], Wanted]

    @property
    def root(self) -> ConfigFile:
        """The root file."""
        return self.files[0]


def edits(scene: Scene) -> Edits:
    """The changes that make the files right; none where they already are. Raises Refused."""
    if lost := containerd.misnamed_section(scene.gen, scene.files):
        raise Refused(
            f"cannot add to {lost[0]}: {lost[1]} and the version of the files do not go together "
            "in this containerd; run `containerd config migrate` and put the result in place"
        )
    ours = _our_drop_in(scene)
    basis = tuple(file for file in scene.files if file is not ours)
    wanted = scene.wish(containerd.effective(scene.gen, basis))
    right = not wishes.gaps(wanted, containerd.effective(scene.gen, scene.files))
    if right and not (ours and _speaks_otherwise(scene, ours, basis)):
        return Edits((), wanted, scene.files)
    if scene.gen.merge == "deep":
        overlay = _override_later_files(scene, _drop_in_overlay(scene, basis, wanted), wanted)
    else:
        overlay = _owner_overlay(scene, wanted)
    return _checked(scene, overlay, wanted)


def _our_drop_in(scene: Scene) -> ConfigFile | None:
    """The loaded drop-in, where it is wholly our own work and nobody touched it since."""
    for file in scene.files[1:]:
        if file.path.host == scene.drop_in.host and _is_untouched(scene.memory, file):
            return file
    return None


def _speaks_otherwise(scene: Scene, ours: ConfigFile, basis: tuple[ConfigFile, ...]) -> bool:
    """Does our drop-in use a plugin name that the other files no longer allow?"""
    if scene.gen.merge == "replace" or scene.gen.per_file:
        return False
    version = _drop_in_version(scene, basis)
    name = containerd.drop_in_section(scene.gen, basis, version)
    return name not in ours.data.get("plugins", {})


def _is_untouched(memory: Memory, file: ConfigFile) -> bool:
    known = memory.files.get(file.path.host)
    digest = file.state.digest if file.state else None
    return bool(known and known.digest is None and known.written == digest and not known.edited)


def _drop_in_overlay(
    scene: Scene, basis: tuple[ConfigFile, ...], wanted: Wanted
) -> dict[str, FileState | None]:
    """containerd 2.x: a minimal drop-in and, where nothing imports it yet, a narrow import."""
    gaps = wishes.gaps(wanted, containerd.effective(scene.gen, basis))
    existing = config.load_file(scene.host, scene.drop_in.host)
    fresh = existing.state is None or _is_untouched(scene.memory, existing)
    version = _drop_in_version(scene, basis)
    asleep = existing.state is not None and all(f.path != existing.path for f in scene.files)
    if asleep and existing.version not in (None, version):
        raise Refused(
            f"cannot add {scene.drop_in}: it says version {existing.version}, and "
            f"{scene.root.path} version {version}; remove that file, which nothing loads, or give "
            "another one with --drop-in-config"
        )
    state = existing.state or new_state()
    text = f"{_HEADER}version = {version}\n" if fresh else state.data.decode()
    data = {} if fresh else existing.data
    number = version if fresh else (existing.version or version)
    speaks = (
        containerd.section_name(number)
        if scene.gen.per_file
        else containerd.drop_in_section(scene.gen, basis, version)
    )
    section = ("plugins", speaks)
    text = tomledit.edit(text, _ops(section, data, gaps, wanted), scene.drop_in.host)
    overlay: dict[str, FileState | None] = {scene.drop_in.host: _with(state, text)}
    if not any(_imports(scene, file) for file in basis):
        overlay[scene.root.path.host] = _root_with_import(scene, version)
    return overlay


def _drop_in_version(scene: Scene, basis: tuple[ConfigFile, ...]) -> int:
    """The root file's version, as this daemon reads it; never that of a dump."""
    root = scene.root
    if root.state is None:
        return scene.gen.root_version
    if scene.gen.per_file:
        return root.version or scene.gen.unversioned
    return containerd.effective_version(scene.gen, basis)


def _imports(scene: Scene, file: ConfigFile) -> bool:
    """Does this file's `imports` cover our drop-in, also when it is not there yet?"""
    patterns = (
        containerd.import_pattern(scene.gen, file.name, item)
        for item in file.data.get("imports", [])
    )
    return any(p is not None and containerd.matches(p, scene.drop_in.host) for p in patterns)


def _root_with_import(scene: Scene, version: int) -> FileState:
    """The root file with one more import: a glob, so that a deleted drop-in does not keep
    containerd from starting, and a narrow one, so that it wakes no forgotten files."""
    glob = import_glob(scene.drop_in)
    root = scene.root
    if root.state is None:
        text = f'{_HEADER}version = {version}\nimports = ["{glob}"]\n'
        return new_state(text.encode())
    text = tomledit.edit(root.state.data.decode(), [Append(("imports",), glob)], root.path.host)
    return _with(root.state, text)


def import_glob(drop_in: HostPath) -> str:
    """The import that we write for a drop-in."""
    stem, suffix = os.path.splitext(drop_in.host)
    return f"{stem}*{suffix}"


def _with(state: FileState, text: str) -> FileState:
    return FileState(text.encode(), state.mode, state.uid, state.gid, state.label)


def _ops(section: Path, data: Data, gaps: Mapping[Path, Any], wanted: Wanted) -> list[Op]:
    """Operations on one file that close these gaps: whole tables where a handler is new to the
    file, single keys where it is not."""
    ops: list[Op] = []
    for name, table in wanted.handlers.items():
        mine = {path: value for path, value in gaps.items() if path[:3] == (*_RUNTIMES, name)}
        if mine and get(data, (*section, *_RUNTIMES, name)) is None:
            ops.append(Set((*section, *_RUNTIMES, name), table))
        else:
            ops += [Set((*section, *path), value) for path, value in mine.items()]
    for path, value in gaps.items():
        if path[:2] != _RUNTIMES:
            ops.append(Set((*section, *path), value))
    return sorted(ops, key=lambda op: len(op.path))  # keys before the tables below them


def _override_later_files(
    scene: Scene, overlay: dict[str, FileState | None], wanted: Wanted
) -> dict[str, FileState | None]:
    """A file that is loaded after ours and says otherwise is changed in that key."""
    for _ in range(len(scene.files) + 1):
        files = config.load(scene.host, scene.gen, scene.root.name, overlay)
        gaps = wishes.gaps(wanted, containerd.effective(scene.gen, files))
        if not gaps:
            return overlay
        path, value = next(iter(gaps.items()))
        owner = _last_with(scene, files, path)
        if owner is None or owner.state is None:
            return overlay  # `_checked` refuses, naming the key
        section = containerd.section_path(scene.gen, files, owner)
        try:
            text = tomledit.edit(
                owner.state.data.decode(), [Set((*section, *path), value)], owner.path.host
            )
        except Refused as error:
            raise (CannotSwitch(error.message) if path == _SWITCH else error) from error
        overlay[owner.path.host] = _with(owner.state, text)
    return overlay


def _last_with(scene: Scene, files: tuple[ConfigFile, ...], path: Path) -> ConfigFile | None:
    """The file whose value of this key is in force."""
    missing = object()
    for file in reversed(files):
        section = containerd.load_section(scene.gen, files, file)
        if get(section, path, missing) is not missing:
            return file
    return None


def _owner_overlay(scene: Scene, wanted: Wanted) -> dict[str, FileState | None]:
    """containerd 1.x: the last file that has the CRI section owns it, and is edited in place."""
    gen, files = scene.gen, scene.files
    owner = next(
        (f for f in reversed(files) if containerd.load_section(gen, files, f) is not None),
        scene.root,
    )
    cri = containerd.effective(gen, files)
    gaps = wishes.gaps(wanted, cri)
    if owner.state is None:
        text, data = f"{_HEADER}version = {gen.root_version}\n", {}
        section: Path = ("plugins", containerd.section_name(gen.root_version))
    else:
        text, data = owner.state.data.decode(), owner.data
        section = containerd.section_path(gen, files, owner)
    ops: list[Op] = []
    if get(data, (*section, *_RUNTIMES)) is None:
        # `runtimes` in a file replaces the built-in table, and the CRI plugin does not load
        # without the default runtime's (observed on 1.6 and 1.7).
        ops.append(Set((*section, *_RUNTIMES, "runc"), gen.runc))
    ops += _without_legacy_default(section, data) if wanted.default is not None else []
    ops += _ops(section, data, gaps, wanted)
    state = owner.state or new_state()
    return {owner.path.host: _with(state, tomledit.edit(text, ops, owner.path.host))}


def _without_legacy_default(section: Path, data: Data) -> list[Op]:
    """The deprecated `default_runtime` table taken out, for it would win over the name that we set.

    containerd shows it as a handler called "default"; somebody else's goes on as just that.
    """
    legacy = (*section, *_LEGACY)
    table = get(data, legacy) or {}
    if not table.get("runtime_type"):
        return []
    named = (*section, *_RUNTIMES, "default")
    keep = not wishes.is_ours("default", table) and get(data, named) is None
    return [*([Set(named, table)] if keep else []), Unset(legacy)]


def _checked(scene: Scene, overlay: Overlay, wanted: Wanted) -> Edits:
    """The edits, after their effect was computed and found to be ours alone."""
    after = config.load(scene.host, scene.gen, scene.root.name, overlay)
    cri = containerd.effective(scene.gen, after)
    if gaps := wishes.gaps(wanted, cri):
        path = next(iter(gaps))
        owner = _last_with(scene, after, path)
        raise (CannotSwitch if path == _SWITCH else Refused)(
            f"cannot set {tomledit.dotted(path)}: {owner.path if owner else scene.root.path} has "
            "the last word on it; remove the key there"
        )
    if cri.default not in cri.runtimes:
        raise Refused(
            f"cannot edit {scene.root.path}: default_runtime_name is {cri.default}, and there is "
            "no such handler; add it or correct the name"
        )
    difference = first_difference(
        strip(containerd.settings_apart_from(scene.gen, scene.files), scene.gen, wanted),
        strip(containerd.settings_apart_from(scene.gen, after), scene.gen, wanted),
    )
    if difference is not None:
        raise Refused(
            f"cannot add {scene.drop_in} to what containerd loads: {tomledit.dotted(difference)} "
            "would change too; look at that file, or give another one with --drop-in-config"
        )
    by_host = {file.path.host: file for file in (*scene.files, *after)}
    changes = []
    for name, state in overlay.items():
        file = by_host[name]
        before = config.load_file(scene.host, file.name)
        if before.state is None or state is None or before.state.data != state.data:
            changes.append(Change(file.path, before.state, state))
    # The root file last: until it imports them, nothing that was written before has an effect.
    changes.sort(key=lambda change: change.path.host == scene.root.path.host)
    return Edits(tuple(changes), wanted, after)


def strip(settings: Data, gen: Generation, wanted: Wanted) -> Data:
    """Settings without the keys that an edit of ours may change."""
    section: Path = ("plugins", "cri")
    ops: list[Op] = [Unset((*section, *_RUNTIMES, name)) for name in wanted.handlers]
    ops += [Unset((*section, *_SECTION_DEFAULT)), Unset((*section, "enable_cdi"))]
    # containerd 1.x's deprecated table, and what it is called once it is a handler
    ops += [Unset((*section, *path)) for path in (_LEGACY, (*_RUNTIMES, "default"))]
    if get(settings, (*section, *_RUNTIMES, "runc")) == gen.runc:
        ops.append(Unset((*section, *_RUNTIMES, "runc")))
    return tomledit.without_empty(tomledit.apply(settings, ops))


def _first_leaf(value: Any) -> Path:
    """The path of the first value in a table, so that a message can name a setting."""
    if isinstance(value, dict) and value:
        key, below = next(iter(value.items()))
        return (key, *_first_leaf(below))
    return ()


def first_difference(one: Any, other: Any, above: Path = ()) -> Path | None:
    """The path of the first key in which two sets of data differ; None where they are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            if key not in one or key not in other:
                return (*above, key, *_first_leaf(one.get(key, other.get(key))))
            found = first_difference(one[key], other[key], (*above, key))
            if found is not None:
                return found
        return None
    return None if one == other and type(one) is type(other) else above
