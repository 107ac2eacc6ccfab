"""The edits that bring containerd's files to the desired state.

Invariant: an edit changes our keys and nothing else, in as few files as possible. Its effect is
computed on all files together, as this generation of containerd merges them. The edit is refused
if it would change anything that is not ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from agent.errors import Refused
from agent.host.files import Change, FileState, new_state
from agent.host.paths import HostPath
from agent.runtimes import desired_state
from agent.runtimes.base import CannotSwitch, EditRequest, Edits
from agent.runtimes.config_file import ConfigFile, Files, Overlay, fresh_state, with_text
from agent.runtimes.containerd import faults, handlers, load, merge, rendered
from agent.runtimes.containerd.generations import CRI_V3, Generation, section_name
from agent.runtimes.containerd.handlers import LEGACY, RUNTIMES, Features
from agent.runtimes.containerd.load import import_pattern, matches
from agent.runtimes.desired_state import (
    Desired,
    Effective,
    first_difference,
    leaves,
    operations,
)
from agent.runtimes.key_ownership import HEADER, is_untouched
from agent.state.store import Memory
from agent.toml import document
from agent.toml.document import Append, Data, Op, Path, Set, Unset, get

if TYPE_CHECKING:
    from agent.runtimes.containerd.adapter import ContainerdNode

_SWITCH: Path = ("enable_cdi",)
# The version of a drop-in (None if it has none), and whether the drop-in uses the section name of
# version 3 although its version is lower.
Form: TypeAlias = tuple[int | None, bool]
_ROUNDS = 5  # a corrected difference can uncover another one


def edits(node: ContainerdNode, request: EditRequest, features: Features) -> Edits:
    """The changes that bring the files to the desired state, none if they have it. Raises
    Refused."""
    for defect in faults.unusable(node.gen, node.files):
        raise Refused(f"cannot edit the configuration: {defect.text}; {defect.remedy}")
    memory = request.memory
    drop_ins = (file for file in node.files[1:] if file.path.host == node.drop_in.host)
    ours = next((file for file in drop_ins if is_untouched(memory, file)), None)
    basis = tuple(file for file in node.files if file is not ours)
    now, before = node.effective(node.files), node.effective(basis)
    runc = _our_runc(node, now, before)
    desired = handlers.derive_desired(_with_our_runc(before, runc), request, features)
    desired = _with_kept_settings(desired, now, before, runc)
    # The running containerd may still have settings that our drop-in loses with this edit.
    tables = {
        name: {**table, **_stale_keys(table, now.table(name), before.table(name))}
        for name, table in desired.handlers.items()
    }
    strict = replace(desired, handlers=tables)
    right = not handlers.differences(strict, now)
    if right and not (ours and _hides_or_changes(node, basis, desired)):
        return Edits((), strict, node.files)
    if node.gen.merge == "replace":
        return _checked(node, owner_overlay(node, desired), desired)
    return replace(_first_possible(node, memory, basis, desired), desired=strict)


def _with_kept_settings(
    desired: Desired, now: Effective, before: Effective, runc: Data | None
) -> Desired:
    """The desired state, adapted to a drop-in that we wrote for another row. `now` is the effective
    configuration, `before` the one without that drop-in, and `runc` is the result of `_our_runc`.

    Our handler is no longer the default runtime if this row does not ask for it. A runc in the
    drop-in stays, because pods may run by it, and a CDI switch that is on stays on."""
    if desired.default is None and desired_state.is_nvidia(now, now.default):
        desired = replace(desired, default=before.default)
    if runc is not None and "runc" not in desired.handlers:
        desired = replace(desired, handlers={**desired.handlers, "runc": runc})
    keeps_switch = now.enable_cdi is True and before.enable_cdi is False
    return replace(desired, enable_cdi=desired.enable_cdi or keeps_switch)


def _our_runc(node: ContainerdNode, now: Effective, before: Effective) -> Data | None:
    """The table of an ordinary runc that only our own drop-in defines, None if no such table
    exists."""
    runc, other = now.table("runc"), before.table("runc")
    is_ordinary = (
        handlers.defines_runc(before)
        and handlers.why_unusable(other, node.gen.missing_shims) is None
        and not desired_state.is_nvidia(before, "runc", ())
    )
    return None if runc == other or is_ordinary else {**runc, "options": runc.get("options", {})}


def _with_our_runc(before: Effective, runc: Data | None) -> Effective:
    """The effective configuration of the other files, with the runc of our drop-in if that runc
    cannot be derived again: it was made because the default runtime was NVIDIA's, and a later file
    has changed the default."""
    if runc is None or desired_state.is_nvidia(before, before.default):
        return before
    return replace(before, runtimes={**before.runtimes, "runc": runc})


def _stale_keys(table: Data, now: Data, before: Data) -> Data:
    """The keys of a handler that only our own drop-in sets and that are no longer desired, with
    their zero values."""
    return {
        key: type(value)()
        for key, value in now.items()
        if value
        and key not in desired_state.FILLED
        and key not in table
        and before.get(key) != value
    }


def _hides_or_changes(node: ContainerdNode, basis: Files, desired: Desired) -> bool:
    """Does our present drop-in hide or change settings of the other files?"""
    others, together = (
        strip(merge.settings(node.gen, files), node.gen, desired) for files in (basis, node.files)
    )
    return any(get(together, path) != value for path, value in leaves(others))


def _first_possible(node: ContainerdNode, memory: Memory, basis: Files, desired: Desired) -> Edits:
    """The edits with the first form of the drop-in that reaches the desired state and changes
    nothing else.

    The usual form has the root file's version and the section name of that version. If files of
    several versions are mixed, this form can hide settings of another file, and another form may
    not.
    """
    refusal: Refused | None = None
    for form in drop_in_forms(node, basis):
        try:
            overlay = drop_in_overlay(node, memory, basis, desired, form)
            return _checked(node, _override_later_files(node, overlay, desired), desired)
        except Refused as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def drop_in_forms(node: ContainerdNode, basis: Files) -> Iterator[Form]:
    """The possible forms of a drop-in beside these files, the usual one first."""
    gen, root = node.gen, node.root
    first = next((file.version for file in basis if file.version), gen.unversioned)
    versions = [gen.highest if root.state is None else root.version or first]
    if gen.reads == "set":
        read = merge.version_of(gen, basis)
        versions = [read if versions[0] < gen.lowest else versions[0], read]
    for version in dict.fromkeys(versions):
        yield version, False
        if version >= 2:
            yield version, True


def drop_in_overlay(
    node: ContainerdNode, memory: Memory, basis: Files, desired: Desired, form: Form
) -> dict[str, FileState | None]:
    """The future files of containerd 2.x: a minimal drop-in of this form and, if nothing imports
    the drop-in yet, the root file with a narrow import. `basis` are the files without our drop-in.
    Raises Refused."""
    version, new_name = form
    differences = handlers.differences(desired, node.effective(basis))
    known = (file for file in node.files if file.path.host == node.drop_in.host)
    existing = next(known, None) or load.load_file(node.host, node.drop_in.host)
    fresh = existing.state is None or is_untouched(memory, existing)
    is_unloaded = existing.state is not None and all(f.path != existing.path for f in node.files)
    if is_unloaded and existing.version not in (None, version):
        raise Refused(
            f"cannot add {node.drop_in}: it says version {existing.version}, and "
            f"{node.root.path} version {version}; remove that file, which nothing loads, or "
            "give another one with --drop-in-config"
        )
    state = existing.state or fresh_state(node.files)
    text, data = document.decoded(state.data, node.drop_in.host), existing.data
    if fresh:
        data = {"version": version} if version else {}
        text = HEADER + document.render(data)
    file = replace(existing, state=state, data=data)
    others = tuple(item for item in basis if item.path != file.path)

    def section_of(path: Path) -> Path:
        files = (*others, file)
        new = new_name and CRI_V3 in merge.names(node.gen, files, file)
        return ("plugins", CRI_V3 if new else merge.place(node.gen, files, file, path))

    ops = operations(desired, differences, RUNTIMES, data, section_of)
    text = document.edit(text, ops, node.drop_in.host)
    overlay: dict[str, FileState | None] = {node.drop_in.host: with_text(state, text)}
    if not any(_imports(node, file) for file in basis):
        overlay[node.root.path.host] = _root_with_import(node)
    return overlay


def _imports(node: ContainerdNode, file: ConfigFile) -> bool:
    """Do the imports of this file match the path of our drop-in, which need not exist yet?"""
    patterns = (import_pattern(node.gen, file.name, item) for item in file.data.get("imports", []))
    return any(p is not None and matches(p, node.drop_in.host) for p in patterns)


def _root_with_import(node: ContainerdNode) -> FileState:
    """The root file with one more import. The import is a glob, so that containerd also starts
    without the drop-in; the glob is narrow, so that no forgotten file is loaded."""
    glob = import_glob(node.drop_in)
    root = node.root
    if root.state is None:
        text = f'{HEADER}version = {node.gen.highest}\nimports = ["{glob}"]\n'
        return new_state(text.encode())
    name = root.path.host
    before = document.decoded(root.state.data, name)
    text = document.edit(before, [Append(("imports",), glob)], name)
    return with_text(root.state, text)


def import_glob(drop_in: HostPath) -> str:
    """The import that we write for a drop-in."""
    stem, suffix = os.path.splitext(drop_in.host)
    return f"{stem}*{suffix}"


def owner_overlay(node: ContainerdNode, desired: Desired) -> dict[str, FileState | None]:
    """The future file of containerd 1.x: the last file with the CRI section, edited in place."""
    gen, files = node.gen, node.files
    owner = next((f for f in reversed(files) if merge.has_section(gen, files, f)), node.root)
    effective = node.effective(files)
    differences = handlers.differences(desired, effective)
    if owner.state is None:
        text, data = f"{HEADER}version = {gen.highest}\n", {}
        section: Path = ("plugins", section_name(gen.highest))
    else:
        text, data = document.decoded(owner.state.data, owner.path.host), owner.data
        section = ("plugins", merge.cri_name(gen, files))
    ops: list[Op] = []
    if get(data, (*section, *RUNTIMES)) is None:
        # `runtimes` in a file replaces the built-in table, and the CRI plugin does not load
        # without the default runtime's (observed on 1.6 and 1.7).
        ops.append(Set((*section, *RUNTIMES, "runc"), gen.runc))
    ops += _without_legacy_default(section, data, effective) if desired.default is not None else []
    ops += operations(desired, differences, RUNTIMES, data, lambda _: section)
    state = owner.state or fresh_state(files)
    return {owner.path.host: with_text(state, document.edit(text, ops, owner.path.host))}


def _without_legacy_default(section: Path, data: Data, effective: Effective) -> list[Op]:
    """The operations that remove the deprecated table `default_runtime`, because it would win over
    the name that we set.

    containerd shows that table as a handler called "default". If it is not NVIDIA's, it is kept as
    an ordinary handler of that name.
    """
    legacy = (*section, *LEGACY)
    table = get(data, legacy) or {}
    if not table.get("runtime_type"):
        return []
    named = (*section, *RUNTIMES, "default")
    keeps_table = not desired_state.is_nvidia(effective, "default") and get(data, named) is None
    return [*([Set(named, table)] if keeps_table else []), Unset(legacy)]


def _override_later_files(
    node: ContainerdNode, overlay: dict[str, FileState | None], desired: Desired
) -> dict[str, FileState | None]:
    """The overlay, with corrected keys in the files that are loaded after our drop-in and override
    it."""
    for _ in range(_ROUNDS):
        files = node.load(overlay)
        differences = handlers.differences(desired, node.effective(files))
        changed: dict[str, FileState | None] = {}
        for path, value in differences.items():
            owner = merge.owner(node.gen, files, path)
            if owner is None or owner[0].state is None:
                continue  # `_checked` refuses this key
            file, section = owner
            state = changed.get(file.path.host) or owner[0].state
            changed[file.path.host] = _with_value(state, file, (*section, *path), value)
        if not changed:
            break
        overlay = {**overlay, **changed}
    return overlay


def _with_value(state: FileState, file: ConfigFile, key: Path, value: Any) -> FileState:
    """The file with another value at a key. Raises Refused, or CannotSwitch if the key is the CDI
    switch."""
    try:
        before = document.decoded(state.data, file.path.host)
        text = document.edit(before, [Set(key, value)], file.path.host)
    except Refused as error:
        raise (CannotSwitch(error.message) if key[2:] == _SWITCH else error) from error
    return with_text(state, text)


def _checked(node: ContainerdNode, overlay: Overlay, desired: Desired) -> Edits:
    """The edits that lead to the files in `overlay`. Raises Refused if these files do not have the
    desired state, or if more than our keys would change."""
    after = node.load(overlay)
    fault = faults.fatal_fault(node.gen, after)
    if fault and not faults.fatal_fault(node.gen, node.files):
        raise Refused(
            f"cannot add {node.drop_in} to what containerd loads: {fault}; bring the files to "
            "one version; `containerd config migrate` shows a file in the newest, without its "
            "comments and without what this containerd does not read"
        )
    effective = node.effective(after)
    if differences := handlers.differences(desired, effective):
        path = next(iter(differences))
        owner = merge.owner(node.gen, after, path)
        raise (CannotSwitch if path == _SWITCH else Refused)(
            f"cannot set {document.dotted(path)}: {owner[0].path if owner else node.root.path} "
            "overrides it; remove the key there"
        )
    desired_state.require_default(effective, handlers.DEFAULT[-1], node.root.path)
    difference = first_difference(
        strip(merge.settings(node.gen, node.files), node.gen, desired),
        strip(merge.settings(node.gen, after), node.gen, desired),
    )
    if difference is not None:
        raise Refused(
            f"cannot add {node.drop_in} to what containerd loads: {document.dotted(difference)} "
            "would change too; look at that file, or give another one with --drop-in-config"
        )
    by_host = {file.path.host: file for file in (*node.files, *after)}
    changes = []
    for name, state in overlay.items():
        file = by_host[name]
        before = load.load_file(node.host, file.name)
        if before.state is None or state is None or before.state.data != state.data:
            changes.append(Change(file.path, before.state, state))
    for change in changes:
        _refuse_rendered(node, by_host[change.path.host])
    # The root file last: until it imports them, nothing that was written before has an effect.
    changes.sort(key=lambda change: change.path.host == node.root.path.host)
    return Edits(tuple(changes), desired, after)


def _refuse_rendered(node: ContainerdNode, file: ConfigFile) -> None:
    """Raise Refused for a file that another program writes anew at each start. The error names the
    file to change instead."""
    renderer = rendered.renderer(file) if file.state else None
    if renderer is None:
        return
    program, source = renderer.program, renderer.source
    imported = node.gen.merge == "deep" and renderer.imports
    setting = f'imports = ["{import_glob(node.drop_in)}"]' if imported else "the NVIDIA handlers"
    raise Refused(
        f"cannot edit {file.path}: {program} writes it anew at each start, and the change would be "
        f"lost; put {setting} into {source} and restart {program}, or leave the configuration "
        "alone with --no-runtime-config"
    )


def strip(settings: Data, gen: Generation, desired: Desired) -> Data:
    """Settings without the keys that an edit of ours may change."""
    section: Path = ("plugins", "cri")
    runc = (*section, *RUNTIMES, "runc")
    if get(settings, runc) == gen.runc:
        settings = document.apply(settings, [Unset(runc)])
    return document.without_empty(handlers.without_own_keys(settings, section, desired.handlers))
