"""The new texts of files: a drop-in of ours (containerd 2.x), or the owner's section (1.x).

Invariant: nothing is judged here. What comes out says what is wanted, in as few keys as possible;
whether it counts, and what else it would change, the plan computes on all files together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent.errors import Refused
from agent.host.files import FileState, new_state
from agent.host.paths import HostPath, HostRoot
from agent.runtimes import desired as wishes
from agent.runtimes.base import Effective
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.containerd import load, merge
from agent.runtimes.containerd.generations import CRI_V3, Generation, section_name
from agent.runtimes.containerd.load import import_pattern, matches
from agent.runtimes.desired import Desired
from agent.runtimes.key_ownership import HEADER, condition
from agent.state.store import Memory
from agent.toml import edit as tomledit
from agent.toml.edit import Append, Data, Op, Path, Set, Unset, get

LEGACY: Path = ("containerd", "default_runtime")
RUNTIMES: Path = ("containerd", "runtimes")


@dataclass(frozen=True, slots=True)
class Scene:
    """What a plan is made from. `wish` derives the wanted state from effective settings."""

    host: HostRoot
    gen: Generation
    files: tuple[ConfigFile, ...]
    drop_in: HostPath
    memory: Memory
    wish: Callable[[Effective], Desired]

    @property
    def root(self) -> ConfigFile:
        """The root file."""
        return self.files[0]


@dataclass(frozen=True, slots=True)
class Way:
    """How a drop-in speaks: its version (None: it names none), and whether by the new section name
    whatever its version is."""

    version: int | None
    new_name: bool = False


def ways(scene: Scene, basis: tuple[ConfigFile, ...]) -> Iterator[Way]:
    """Ways to write a drop-in beside these files, the usual one first."""
    gen, root = scene.gen, scene.root
    versions = [gen.root_version if root.state is None else root.version or _least(gen, basis)]
    if gen.reads == "set":
        read = merge.version_of(gen, basis)
        versions = [read if versions[0] < gen.lowest else versions[0], read]
    for version in dict.fromkeys(versions):
        yield Way(version)
        if version >= 2:
            yield Way(version, new_name=True)


def _least(gen: Generation, basis: tuple[ConfigFile, ...]) -> int:
    """The highest version that a drop-in of a version-less root file can have."""
    return next((file.version for file in basis if file.version), gen.unversioned)


def is_untouched(memory: Memory, file: ConfigFile) -> bool:
    """Was this file made by us, and not edited since?"""
    known = memory.files.get(file.path.host)
    if known is None or known.digest is not None:
        return False
    return condition(known, file.state) == "as written"


def drop_in_overlay(
    scene: Scene, basis: tuple[ConfigFile, ...], wanted: Desired, way: Way
) -> dict[str, FileState | None]:
    """containerd 2.x: a minimal drop-in and, where nothing imports it yet, a narrow import."""
    gaps = wishes.gaps(wanted, merge.effective(scene.gen, basis))
    known = (file for file in scene.files if file.path.host == scene.drop_in.host)
    existing = next(known, None) or load.load_file(scene.host, scene.drop_in.host)
    fresh = existing.state is None or is_untouched(scene.memory, existing)
    asleep = existing.state is not None and all(f.path != existing.path for f in scene.files)
    if asleep and existing.version not in (None, way.version):
        raise Refused(
            f"cannot add {scene.drop_in}: it says version {existing.version}, and "
            f"{scene.root.path} version {way.version}; remove that file, which nothing loads, or "
            "give another one with --drop-in-config"
        )
    state = existing.state or fresh_state(scene.files)
    text, data = tomledit.decoded(state.data, scene.drop_in.host), existing.data
    if fresh:
        data = {"version": way.version} if way.version else {}
        text = HEADER + tomledit.render(data)
    file = replace(existing, state=state, data=data)
    others = tuple(item for item in basis if item.path != file.path)

    def placed(path: Path) -> Path:
        files = (*others, file)
        new = way.new_name and CRI_V3 in merge.names(scene.gen, files, file)
        return ("plugins", CRI_V3 if new else merge.place(scene.gen, files, file, path))

    text = tomledit.edit(text, _ops(placed, data, gaps, wanted), scene.drop_in.host)
    overlay: dict[str, FileState | None] = {scene.drop_in.host: with_text(state, text)}
    if not any(_imports(scene, file) for file in basis):
        overlay[scene.root.path.host] = _root_with_import(scene)
    return overlay


def _imports(scene: Scene, file: ConfigFile) -> bool:
    """Does this file's `imports` cover our drop-in, also when it is not there yet?"""
    patterns = (import_pattern(scene.gen, file.name, item) for item in file.data.get("imports", []))
    return any(p is not None and matches(p, scene.drop_in.host) for p in patterns)


def _root_with_import(scene: Scene) -> FileState:
    """The root file with one more import: a glob, so that a deleted drop-in does not keep
    containerd from starting, and a narrow one, so that it wakes no forgotten files."""
    glob = import_glob(scene.drop_in)
    root = scene.root
    if root.state is None:
        text = f'{HEADER}version = {scene.gen.root_version}\nimports = ["{glob}"]\n'
        return new_state(text.encode())
    name = root.path.host
    before = tomledit.decoded(root.state.data, name)
    text = tomledit.edit(before, [Append(("imports",), glob)], name)
    return with_text(root.state, text)


def import_glob(drop_in: HostPath) -> str:
    """The import that we write for a drop-in."""
    stem, suffix = os.path.splitext(drop_in.host)
    return f"{stem}*{suffix}"


def fresh_state(loaded: Iterable[ConfigFile]) -> FileState:
    """A file that is not there yet. Our handlers repeat what others have in these files, an
    environment with a password included; so nobody can read it that cannot read all of them."""
    mode = 0o644
    for file in loaded:
        mode &= file.state.mode if file.state else mode
    return new_state(mode=mode | 0o600)


def with_text(state: FileState, text: str) -> FileState:
    """The file with another text, and owner, mode and label as they are."""
    return FileState(tomledit.encoded(text), state.mode, state.uid, state.gid, state.label)


def _ops(
    placed: Callable[[Path], Path], data: Data, gaps: Mapping[Path, Any], wanted: Desired
) -> list[Op]:
    """Operations on one file that close these gaps: whole tables where a handler is new to the
    file, single keys where it is not. `placed` gives the section that a key belongs to."""
    ops: list[Op] = []
    for name, table in wanted.handlers.items():
        mine = {path: value for path, value in gaps.items() if path[:3] == (*RUNTIMES, name)}
        whole = (*placed((*RUNTIMES, name)), *RUNTIMES, name)
        if mine and get(data, whole) is None:
            ops.append(Set(whole, table))
        else:
            ops += [Set((*placed(path), *path), value) for path, value in mine.items()]
    for path, value in gaps.items():
        if path[:2] != RUNTIMES:
            ops.append(Set((*placed(path), *path), value))
    return sorted(ops, key=lambda op: len(op.path))  # keys before the tables below them


def owner_overlay(scene: Scene, wanted: Desired) -> dict[str, FileState | None]:
    """containerd 1.x: the last file that has the CRI section owns it, and is edited in place."""
    gen, files = scene.gen, scene.files
    owner = next((f for f in reversed(files) if merge.has_section(gen, files, f)), scene.root)
    cri = merge.effective(gen, files)
    gaps = wishes.gaps(wanted, cri)
    if owner.state is None:
        text, data = f"{HEADER}version = {gen.root_version}\n", {}
        section: Path = ("plugins", section_name(gen.root_version))
    else:
        text, data = tomledit.decoded(owner.state.data, owner.path.host), owner.data
        section = ("plugins", merge.cri_name(gen, files))
    ops: list[Op] = []
    if get(data, (*section, *RUNTIMES)) is None:
        # `runtimes` in a file replaces the built-in table, and the CRI plugin does not load
        # without the default runtime's (observed on 1.6 and 1.7).
        ops.append(Set((*section, *RUNTIMES, "runc"), gen.runc))
    ops += _without_legacy_default(section, data, cri) if wanted.default is not None else []
    ops += _ops(lambda _: section, data, gaps, wanted)
    state = owner.state or fresh_state(files)
    return {owner.path.host: with_text(state, tomledit.edit(text, ops, owner.path.host))}


def _without_legacy_default(section: Path, data: Data, cri: Effective) -> list[Op]:
    """The deprecated `default_runtime` table taken out, for it would win over the name that we set.

    containerd shows it as a handler called "default"; somebody else's goes on as just that.
    """
    legacy = (*section, *LEGACY)
    table = get(data, legacy) or {}
    if not table.get("runtime_type"):
        return []
    named = (*section, *RUNTIMES, "default")
    keep = not wishes.is_nvidia(cri, "default") and get(data, named) is None
    return [*([Set(named, table)] if keep else []), Unset(legacy)]
