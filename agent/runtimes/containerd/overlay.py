"""The new texts of files: our drop-in (containerd 2.x), or the file with the CRI section (1.x).

Invariant: a text has the desired state, in as few keys as possible. Whether it takes effect, and
what else it would change, is judged in `edit` on all files together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent.errors import Refused
from agent.host.files import FileState, new_state
from agent.host.paths import HostPath, HostRoot
from agent.runtimes import desired_state
from agent.runtimes.base import Effective
from agent.runtimes.config_file import ConfigFile, Files, fresh_state, with_text
from agent.runtimes.containerd import handlers, load, merge
from agent.runtimes.containerd.generations import CRI_V3, Generation, section_name
from agent.runtimes.containerd.load import import_pattern, matches
from agent.runtimes.desired_state import Desired
from agent.runtimes.key_ownership import HEADER, is_untouched
from agent.state.store import Memory
from agent.toml import document
from agent.toml.document import Append, Data, Op, Path, Set, Unset, get

LEGACY: Path = ("containerd", "default_runtime")
RUNTIMES: Path = ("containerd", "runtimes")


@dataclass(frozen=True)
class EditInput:
    """What an edit is made from. `derive` derives the desired state from the effective
    configuration without our drop-in."""

    host: HostRoot
    gen: Generation
    files: Files
    drop_in: HostPath
    memory: Memory
    derive: Callable[[Effective], Desired]

    @property
    def root(self) -> ConfigFile:
        """The root file."""
        return self.files[0]


@dataclass(frozen=True)
class DropInForm:
    """The form of a drop-in: its version (None if it has none), and whether it uses the section
    name of version 3 whatever its version is."""

    version: int | None
    new_name: bool = False


def drop_in_forms(inputs: EditInput, basis: Files) -> Iterator[DropInForm]:
    """The possible forms of a drop-in beside these files, the usual one first."""
    gen, root = inputs.gen, inputs.root
    first = next((file.version for file in basis if file.version), gen.unversioned)
    versions = [gen.root_version if root.state is None else root.version or first]
    if gen.reads == "set":
        read = merge.version_of(gen, basis)
        versions = [read if versions[0] < gen.lowest else versions[0], read]
    for version in dict.fromkeys(versions):
        yield DropInForm(version)
        if version >= 2:
            yield DropInForm(version, new_name=True)


def drop_in_overlay(
    inputs: EditInput, basis: Files, desired: Desired, form: DropInForm
) -> dict[str, FileState | None]:
    """containerd 2.x: a minimal drop-in and, if nothing imports it yet, a narrow import."""
    differences = handlers.differences(desired, merge.effective(inputs.gen, basis))
    known = (file for file in inputs.files if file.path.host == inputs.drop_in.host)
    existing = next(known, None) or load.load_file(inputs.host, inputs.drop_in.host)
    fresh = existing.state is None or is_untouched(inputs.memory, existing)
    is_unloaded = existing.state is not None and all(f.path != existing.path for f in inputs.files)
    if is_unloaded and existing.version not in (None, form.version):
        raise Refused(
            f"cannot add {inputs.drop_in}: it says version {existing.version}, and "
            f"{inputs.root.path} version {form.version}; remove that file, which nothing loads, or "
            "give another one with --drop-in-config"
        )
    state = existing.state or fresh_state(inputs.files)
    text, data = document.decoded(state.data, inputs.drop_in.host), existing.data
    if fresh:
        data = {"version": form.version} if form.version else {}
        text = HEADER + document.render(data)
    file = replace(existing, state=state, data=data)
    others = tuple(item for item in basis if item.path != file.path)

    def section_of(path: Path) -> Path:
        files = (*others, file)
        new = form.new_name and CRI_V3 in merge.names(inputs.gen, files, file)
        return ("plugins", CRI_V3 if new else merge.place(inputs.gen, files, file, path))

    text = document.edit(text, _ops(section_of, data, differences, desired), inputs.drop_in.host)
    overlay: dict[str, FileState | None] = {inputs.drop_in.host: with_text(state, text)}
    if not any(_imports(inputs, file) for file in basis):
        overlay[inputs.root.path.host] = _root_with_import(inputs)
    return overlay


def _imports(inputs: EditInput, file: ConfigFile) -> bool:
    """Does this file's `imports` cover our drop-in, also when it is not there yet?"""
    patterns = (
        import_pattern(inputs.gen, file.name, item) for item in file.data.get("imports", [])
    )
    return any(p is not None and matches(p, inputs.drop_in.host) for p in patterns)


def _root_with_import(inputs: EditInput) -> FileState:
    """The root file with one more import. It is a glob, so that containerd starts also without the
    drop-in, and a narrow one, so that no forgotten file is loaded."""
    glob = import_glob(inputs.drop_in)
    root = inputs.root
    if root.state is None:
        text = f'{HEADER}version = {inputs.gen.root_version}\nimports = ["{glob}"]\n'
        return new_state(text.encode())
    name = root.path.host
    before = document.decoded(root.state.data, name)
    text = document.edit(before, [Append(("imports",), glob)], name)
    return with_text(root.state, text)


def import_glob(drop_in: HostPath) -> str:
    """The import that we write for a drop-in."""
    stem, suffix = os.path.splitext(drop_in.host)
    return f"{stem}*{suffix}"


def _ops(
    section_of: Callable[[Path], Path],
    data: Data,
    differences: Mapping[Path, Any],
    desired: Desired,
) -> list[Op]:
    """The operations on one file that remove these differences: a whole table if a handler is
    new to the file, single keys if it is not. `section_of` returns the section of a key."""
    ops: list[Op] = []
    for name, table in desired.handlers.items():
        own_differences = {
            path: value for path, value in differences.items() if path[:3] == (*RUNTIMES, name)
        }
        whole = (*section_of((*RUNTIMES, name)), *RUNTIMES, name)
        if own_differences and get(data, whole) is None:
            ops.append(Set(whole, table))
        else:
            ops += [
                Set((*section_of(path), *path), value) for path, value in own_differences.items()
            ]
    for path, value in differences.items():
        if path[:2] != RUNTIMES:
            ops.append(Set((*section_of(path), *path), value))
    return sorted(ops, key=lambda op: len(op.path))  # keys before the tables below them


def owner_overlay(inputs: EditInput, desired: Desired) -> dict[str, FileState | None]:
    """containerd 1.x: the last file that has the CRI section owns it, and is edited in place."""
    gen, files = inputs.gen, inputs.files
    owner = next((f for f in reversed(files) if merge.has_section(gen, files, f)), inputs.root)
    effective = merge.effective(gen, files)
    differences = handlers.differences(desired, effective)
    if owner.state is None:
        text, data = f"{HEADER}version = {gen.root_version}\n", {}
        section: Path = ("plugins", section_name(gen.root_version))
    else:
        text, data = document.decoded(owner.state.data, owner.path.host), owner.data
        section = ("plugins", merge.cri_name(gen, files))
    ops: list[Op] = []
    if get(data, (*section, *RUNTIMES)) is None:
        # `runtimes` in a file replaces the built-in table, and the CRI plugin does not load
        # without the default runtime's (observed on 1.6 and 1.7).
        ops.append(Set((*section, *RUNTIMES, "runc"), gen.runc))
    ops += _without_legacy_default(section, data, effective) if desired.default is not None else []
    ops += _ops(lambda _: section, data, differences, desired)
    state = owner.state or fresh_state(files)
    return {owner.path.host: with_text(state, document.edit(text, ops, owner.path.host))}


def _without_legacy_default(section: Path, data: Data, effective: Effective) -> list[Op]:
    """The operations that take out the deprecated `default_runtime` table, because it would win
    over the name that we set.

    containerd shows it as a handler called "default". A handler of others is kept under this name.
    """
    legacy = (*section, *LEGACY)
    table = get(data, legacy) or {}
    if not table.get("runtime_type"):
        return []
    named = (*section, *RUNTIMES, "default")
    keeps_table = not desired_state.is_nvidia(effective, "default") and get(data, named) is None
    return [*([Set(named, table)] if keeps_table else []), Unset(legacy)]
