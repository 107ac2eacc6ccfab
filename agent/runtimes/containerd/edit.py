"""The edits that bring containerd's files to the desired state.

Invariant: an edit changes our keys and nothing else, in as few files as possible. Its effect is
computed on all files together, as this generation of containerd merges them. The edit is refused
if it would change anything that is not ours (DESIGN section 4).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agent.errors import Refused
from agent.host.files import Change, FileState
from agent.runtimes import desired_state
from agent.runtimes.base import CannotSwitch, Edits, Effective
from agent.runtimes.config_file import ConfigFile, Files, Overlay, with_text
from agent.runtimes.containerd import faults, handlers, load, merge, rendered
from agent.runtimes.containerd.generations import Generation
from agent.runtimes.containerd.overlay import (
    LEGACY,
    RUNTIMES,
    EditInput,
    drop_in_forms,
    drop_in_overlay,
    import_glob,
    owner_overlay,
)
from agent.runtimes.desired_state import Desired
from agent.runtimes.key_ownership import is_untouched
from agent.runtimes.preflight import first_difference
from agent.toml import document
from agent.toml.document import Data, Op, Path, Set, Unset, get

_SECTION_DEFAULT: Path = ("containerd", "default_runtime_name")
_SWITCH: Path = ("enable_cdi",)
_ROUNDS = 5  # one corrected difference can show another one that it has hidden


def edits(inputs: EditInput) -> Edits:
    """The changes that make the files right; none if they already are. Raises Refused."""
    _refuse_unusable_files(inputs)
    ours = _our_drop_in(inputs)
    basis = tuple(file for file in inputs.files if file is not ours)
    now, before = (merge.effective(inputs.gen, files) for files in (inputs.files, basis))
    runc = _our_runc(inputs, now, before)
    desired = inputs.derive(_with_our_runc(before, runc))
    desired = _with_kept_settings(desired, now, before, runc)
    strict = _with_stale_cleared(desired, now, before)
    right = not handlers.differences(strict, now)
    if right and not (ours and _hides_or_changes(inputs, basis, desired)):
        return Edits((), strict, inputs.files)
    if inputs.gen.merge == "replace":
        return _checked(inputs, owner_overlay(inputs, desired), desired)
    return replace(_first_possible(inputs, basis, desired), desired=strict)


def _with_kept_settings(
    desired: Desired, now: Effective, before: Effective, runc: Data | None
) -> Desired:
    """The desired state, adapted to a drop-in that we wrote for another row. `now` is the effective
    configuration, `before` the one without that drop-in, and `runc` as `_our_runc` gives it.

    Our handler is no longer the default runtime if this row does not ask for it. A runc in the
    drop-in stays, because pods may run by it, and a CDI switch that is on stays on."""
    if desired.default is None and desired_state.is_nvidia(now, now.default):
        desired = replace(desired, default=before.default)
    if runc is not None and "runc" not in desired.handlers:
        desired = replace(desired, handlers={**desired.handlers, "runc": runc})
    keeps_switch = now.enable_cdi is True and before.enable_cdi is False
    return replace(desired, enable_cdi=desired.enable_cdi or keeps_switch)


def _our_runc(inputs: EditInput, now: Effective, before: Effective) -> Data | None:
    """The table of an ordinary runc that only our own drop-in defines, None if there is none."""
    runc = now.table("runc")
    if runc == before.table("runc") or handlers.has_ordinary_runc(before, inputs.gen.missing_shims):
        return None
    return {**runc, "options": runc.get("options", {})}


def _with_our_runc(before: Effective, runc: Data | None) -> Effective:
    """The effective configuration of the other files, with the runc of our drop-in if it cannot
    be derived again: the default runtime was NVIDIA's, and a later file has changed that."""
    if runc is None or desired_state.is_nvidia(before, before.default):
        return before
    return replace(before, runtimes={**before.runtimes, "runc": runc})


def _with_stale_cleared(desired: Desired, now: Effective, before: Effective) -> Desired:
    """The desired state, with the keys that our drop-in loses set to their zero values, because the
    running containerd may still have them."""
    tables = {
        name: {**table, **_stale_keys(table, now.table(name), before.table(name))}
        for name, table in desired.handlers.items()
    }
    return replace(desired, handlers=tables)


def _stale_keys(table: Data, now: Data, before: Data) -> Data:
    """The keys of a handler that only our own drop-in has and that are not desired any more, with
    their zero values."""
    return {
        key: type(value)()
        for key, value in now.items()
        if value
        and key not in desired_state.FILLED
        and key not in table
        and before.get(key) != value
    }


_SECTION_2 = 'plugins."io.containerd.grpc.v1.cri"'


def _refuse_unusable_files(inputs: EditInput) -> None:
    """Raise Refused for files in which no edit of ours would have an effect."""
    if found := faults.ignored(inputs.gen, inputs.files):
        # Never `config migrate`: it leaves out what containerd does not read (seen with 2.1.9).
        remedy = faults.misplaced_version(inputs.files) or (
            f"it has no effect now; if it is intended, call the section {_SECTION_2} and write "
            "`version = 2` at the top of that file"
        )
        raise Refused(
            f"cannot add to {found[0].path}: {found[1]} and the version of the files do not go "
            f"together in this containerd; {remedy}"
        )
    if file := faults.ambiguous(inputs.gen, inputs.files):
        raise Refused(
            f"cannot add to {file.path}: it has both plugins.cri and its long name, and which of "
            "them containerd uses is not defined; keep only one of them"
        )
    if found := faults.disabled(inputs.gen, inputs.files):
        raise Refused(
            f"cannot use {found[0].path}: disabled_plugins names {found[1]!r}, and containerd "
            "would not serve the CRI after a restart; take it out"
        )


def _hides_or_changes(inputs: EditInput, basis: Files, desired: Desired) -> bool:
    """Does our present drop-in hide or change settings of the other files?"""
    others, together = (
        strip(merge.settings(inputs.gen, files), inputs.gen, desired)
        for files in (basis, inputs.files)
    )
    return not _contains(others, together)


def _contains(some: Any, whole: Any) -> bool:
    """Has `whole` everything that `some` has?"""
    if isinstance(some, dict) and isinstance(whole, dict):
        return all(key in whole and _contains(value, whole[key]) for key, value in some.items())
    return bool(some == whole)


def _first_possible(inputs: EditInput, basis: Files, desired: Desired) -> Edits:
    """The edits with the first form of the drop-in that reaches the desired state and changes
    nothing else.

    The usual form has the root file's version and the section name of that version. If files of
    several versions are mixed, this form can hide settings of another file, and another form may
    not.
    """
    refusal: Refused | None = None
    for form in drop_in_forms(inputs, basis):
        try:
            overlay = drop_in_overlay(inputs, basis, desired, form)
            return _checked(inputs, _override_later_files(inputs, overlay, desired), desired)
        except Refused as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _our_drop_in(inputs: EditInput) -> ConfigFile | None:
    """The loaded drop-in, if only we have written it; None otherwise."""
    for file in inputs.files[1:]:
        if file.path.host == inputs.drop_in.host and is_untouched(inputs.memory, file):
            return file
    return None


def _override_later_files(
    inputs: EditInput, overlay: dict[str, FileState | None], desired: Desired
) -> dict[str, FileState | None]:
    """The overlay, with the keys changed by which files that are loaded after ours override it."""
    for _ in range(_ROUNDS):
        files = load.load(inputs.host, inputs.gen, inputs.root.name, overlay)
        differences = handlers.differences(desired, merge.effective(inputs.gen, files))
        changed: dict[str, FileState | None] = {}
        for path, value in differences.items():
            owner = merge.owner(inputs.gen, files, path)
            if owner is None or owner[0].state is None:
                continue  # `_checked` refuses, naming the key
            file, section = owner
            state = changed.get(file.path.host) or owner[0].state
            changed[file.path.host] = _with_value(state, file, (*section, *path), value)
        if not changed:
            break
        overlay = {**overlay, **changed}
    return overlay


def _with_value(state: FileState, file: ConfigFile, key: Path, value: Any) -> FileState:
    """The file with that value. Raises Refused, or CannotSwitch if the key is the CDI switch."""
    try:
        before = document.decoded(state.data, file.path.host)
        text = document.edit(before, [Set(key, value)], file.path.host)
    except Refused as error:
        raise (CannotSwitch(error.message) if key[2:] == _SWITCH else error) from error
    return with_text(state, text)


def _checked(inputs: EditInput, overlay: Overlay, desired: Desired) -> Edits:
    """The edits. Raises Refused if their effect is not the desired one, or changes more than our
    keys."""
    after = load.load(inputs.host, inputs.gen, inputs.root.name, overlay)
    fault = faults.fatal(inputs.gen, after)
    if fault and not faults.fatal(inputs.gen, inputs.files):
        raise Refused(
            f"cannot add {inputs.drop_in} to what containerd loads: {fault}; bring the files to "
            "one version; `containerd config migrate` shows a file in the newest, without its "
            "comments and without what this containerd does not read"
        )
    effective = merge.effective(inputs.gen, after)
    if differences := handlers.differences(desired, effective):
        path = next(iter(differences))
        owner = merge.owner(inputs.gen, after, path)
        raise (CannotSwitch if path == _SWITCH else Refused)(
            f"cannot set {document.dotted(path)}: {owner[0].path if owner else inputs.root.path} "
            "overrides it; remove the key there"
        )
    if effective.default not in effective.runtimes:
        raise Refused(
            f"cannot edit {inputs.root.path}: default_runtime_name is {effective.default}, and "
            "there is no such handler; add it or correct the name"
        )
    difference = first_difference(
        strip(merge.settings(inputs.gen, inputs.files), inputs.gen, desired),
        strip(merge.settings(inputs.gen, after), inputs.gen, desired),
    )
    if difference is not None:
        raise Refused(
            f"cannot add {inputs.drop_in} to what containerd loads: {document.dotted(difference)} "
            "would change too; look at that file, or give another one with --drop-in-config"
        )
    by_host = {file.path.host: file for file in (*inputs.files, *after)}
    changes = []
    for name, state in overlay.items():
        file = by_host[name]
        before = load.load_file(inputs.host, file.name)
        if before.state is None or state is None or before.state.data != state.data:
            changes.append(Change(file.path, before.state, state))
    for change in changes:
        _refuse_rendered(inputs, by_host[change.path.host])
    # The root file last: until it imports them, nothing that was written before has an effect.
    changes.sort(key=lambda change: change.path.host == inputs.root.path.host)
    return Edits(tuple(changes), desired, after)


def _refuse_rendered(inputs: EditInput, file: ConfigFile) -> None:
    """Raise Refused for a file that another program writes again at its start. The error names the
    file to change instead."""
    found = rendered.renderer(file) if file.state else None
    if found is None:
        return
    glob = import_glob(inputs.drop_in)
    imported = inputs.gen.merge == "deep" and found.imports
    what = f'imports = ["{glob}"]' if imported else "the NVIDIA handlers"
    raise Refused(
        f"cannot edit {file.path}: {found.program} writes it anew at each start, and the change "
        f"would be lost; put {what} into {found.source} and restart {found.program}, or leave the "
        "configuration alone with --no-runtime-config"
    )


def strip(settings: Data, gen: Generation, desired: Desired) -> Data:
    """Settings without the keys that an edit of ours may change."""
    section: Path = ("plugins", "cri")
    ops: list[Op] = [Unset((*section, *RUNTIMES, name)) for name in desired.handlers]
    ops += [Unset((*section, *_SECTION_DEFAULT)), Unset((*section, "enable_cdi"))]
    # containerd 1.x's deprecated table, and what it is called once it is a handler
    ops += [Unset((*section, *path)) for path in (LEGACY, (*RUNTIMES, "default"))]
    if get(settings, (*section, *RUNTIMES, "runc")) == gen.runc:
        ops.append(Unset((*section, *RUNTIMES, "runc")))
    return document.without_empty(document.apply(settings, ops))
