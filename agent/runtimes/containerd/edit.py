"""From the files as they are to the files as they should be.

Invariant: an edit changes our keys and nothing else, in as few files as possible; the plan is
computed on the whole set of files as this generation of containerd merges them, before and after,
and is refused where the two differ in anything that is not ours (DESIGN section 4).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agent.errors import Refused
from agent.host.files import Change, FileState
from agent.runtimes import desired as wishes
from agent.runtimes.base import CannotSwitch, Edits, Effective
from agent.runtimes.config_file import ConfigFile, Overlay
from agent.runtimes.containerd import faults, handlers, load, merge, rendered
from agent.runtimes.containerd.generations import Generation
from agent.runtimes.containerd.overlay import (
    LEGACY,
    RUNTIMES,
    Scene,
    drop_in_overlay,
    import_glob,
    is_untouched,
    owner_overlay,
    ways,
    with_text,
)
from agent.runtimes.desired import Desired
from agent.runtimes.preflight import first_difference
from agent.toml import edit as tomledit
from agent.toml.edit import Data, Op, Path, Set, Unset, get

_SECTION_DEFAULT: Path = ("containerd", "default_runtime_name")
_SWITCH: Path = ("enable_cdi",)
_ROUNDS = 5  # closing one gap can show another, below a table that hid it


def edits(scene: Scene) -> Edits:
    """The changes that make the files right; none where they already are. Raises Refused."""
    _refuse_hopeless(scene)
    ours = _our_drop_in(scene)
    basis = tuple(file for file in scene.files if file is not ours)
    wanted = _carried_on(scene, basis, scene.wish(_with_our_runc(scene, basis)))
    strict = _without_stale(scene, basis, wanted)
    right = not wishes.gaps(strict, merge.effective(scene.gen, scene.files))
    if right and not (ours and _disturbs(scene, basis, wanted)):
        return Edits((), strict, scene.files)
    if scene.gen.merge == "replace":
        return _checked(scene, owner_overlay(scene, wanted), wanted)
    return replace(_first_possible(scene, basis, wanted), wanted=strict)


def _carried_on(scene: Scene, basis: tuple[ConfigFile, ...], wanted: Desired) -> Desired:
    """The wish, where our own drop-in still says what another row wanted: a default of ours goes
    with that row; a runc that pods may run by stays, and a switch that is on is left on, as both
    would be in anybody else's file."""
    now, before = (merge.effective(scene.gen, files) for files in (scene.files, basis))
    if wanted.default is None and wishes.is_nvidia(now, now.default):
        wanted = replace(wanted, default=before.default)
    if "runc" not in wanted.handlers and (runc := _our_runc(scene, now, before)):
        wanted = replace(wanted, handlers={**wanted.handlers, "runc": runc})
    on = now.enable_cdi is True and before.enable_cdi is False
    return replace(wanted, enable_cdi=wanted.enable_cdi or on)


def _our_runc(scene: Scene, now: Effective, before: Effective) -> Data | None:
    """The runc that only our own drop-in made an ordinary one."""
    runc = now.table("runc")
    if runc == before.table("runc") or handlers.has_ordinary_runc(before, scene.gen.lacking):
        return None
    return {**runc, "options": runc.get("options", {})}


def _with_our_runc(scene: Scene, basis: tuple[ConfigFile, ...]) -> Effective:
    """What the other files make, with our runc where they do not say any more what it was made
    from: the default that was NVIDIA's is changed in a file that is loaded after ours."""
    now, before = (merge.effective(scene.gen, files) for files in (scene.files, basis))
    runc = _our_runc(scene, now, before)
    if runc is None or wishes.is_nvidia(before, before.default):
        return before
    return replace(before, runtimes={**before.runtimes, "runc": runc})


def _without_stale(scene: Scene, basis: tuple[ConfigFile, ...], wanted: Desired) -> Desired:
    """The wish for the running containerd, which may have what our drop-in will say no more."""
    now, before = (merge.effective(scene.gen, files) for files in (scene.files, basis))
    tables = {
        name: {**table, **_stale(table, now.table(name), before.table(name))}
        for name, table in wanted.handlers.items()
    }
    return replace(wanted, handlers=tables)


def _stale(table: Data, now: Data, before: Data) -> Data:
    """Keys of a handler that only our own drop-in has and nobody wants any more, set to nothing."""
    return {
        key: type(value)()
        for key, value in now.items()
        if value and key not in wishes.FILLED and key not in table and before.get(key) != value
    }


_SECTION_2 = 'plugins."io.containerd.grpc.v1.cri"'


def _refuse_hopeless(scene: Scene) -> None:
    """Refuse files on which no edit of ours can come into force."""
    if found := faults.ignored(scene.gen, scene.files):
        # Never `config migrate`: it leaves out what containerd does not read (seen with 2.1.9).
        remedy = faults.misplaced_version(scene.files) or (
            f"it has no effect now; if it is intended, call the section {_SECTION_2} and write "
            "`version = 2` at the top of that file"
        )
        raise Refused(
            f"cannot add to {found[0].path}: {found[1]} and the version of the files do not go "
            f"together in this containerd; {remedy}"
        )
    if file := faults.ambiguous(scene.gen, scene.files):
        raise Refused(
            f"cannot add to {file.path}: it has both plugins.cri and its long name, and which of "
            "them containerd uses is not defined; keep only one of them"
        )
    if found := faults.disabled(scene.gen, scene.files):
        raise Refused(
            f"cannot use {found[0].path}: disabled_plugins names {found[1]!r}, and containerd "
            "would not serve the CRI after a restart; take it out"
        )


def _disturbs(scene: Scene, basis: tuple[ConfigFile, ...], wanted: Desired) -> bool:
    """Does our own drop-in, as it is, hide or change what the other files say by now?"""
    said, found = (
        strip(merge.settings(scene.gen, files), scene.gen, wanted) for files in (basis, scene.files)
    )
    return not _within(said, found)


def _within(some: Any, whole: Any) -> bool:
    """Is everything in there, whatever else is?"""
    if isinstance(some, dict) and isinstance(whole, dict):
        return all(key in whole and _within(value, whole[key]) for key, value in some.items())
    return bool(some == whole)


def _first_possible(scene: Scene, basis: tuple[ConfigFile, ...], wanted: Desired) -> Edits:
    """The first way of writing the drop-in after which all is as wanted and nothing else changes.

    The usual way says the root file's version and the section name that goes with it. Where files
    of several versions are mixed, that can lose another file's settings, and another way does not.
    """
    refusal: Refused | None = None
    for way in ways(scene, basis):
        try:
            overlay = drop_in_overlay(scene, basis, wanted, way)
            return _checked(scene, _override_later_files(scene, overlay, wanted), wanted)
        except Refused as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _our_drop_in(scene: Scene) -> ConfigFile | None:
    """The loaded drop-in, where it is wholly our own work and nobody touched it since."""
    for file in scene.files[1:]:
        if file.path.host == scene.drop_in.host and is_untouched(scene.memory, file):
            return file
    return None


def _override_later_files(
    scene: Scene, overlay: dict[str, FileState | None], wanted: Desired
) -> dict[str, FileState | None]:
    """A file that is loaded after ours and says otherwise is changed in these keys."""
    for _ in range(_ROUNDS):
        files = load.load(scene.host, scene.gen, scene.root.name, overlay)
        gaps = wishes.gaps(wanted, merge.effective(scene.gen, files))
        said: dict[str, FileState | None] = {}
        for path, value in gaps.items():
            owner = merge.owner(scene.gen, files, path)
            if owner is None or owner[0].state is None:
                continue  # `_checked` refuses, naming the key
            file, section = owner
            state = said.get(file.path.host) or owner[0].state
            said[file.path.host] = _saying(state, file, (*section, *path), value)
        if not said:
            break
        overlay = {**overlay, **said}
    return overlay


def _saying(state: FileState, file: ConfigFile, key: Path, value: Any) -> FileState:
    """The file with that value. Raises CannotSwitch where the key is the switch."""
    try:
        before = tomledit.decoded(state.data, file.path.host)
        text = tomledit.edit(before, [Set(key, value)], file.path.host)
    except Refused as error:
        raise (CannotSwitch(error.message) if key[2:] == _SWITCH else error) from error
    return with_text(state, text)


def _checked(scene: Scene, overlay: Overlay, wanted: Desired) -> Edits:
    """The edits, after their effect was computed and found to be ours alone."""
    after = load.load(scene.host, scene.gen, scene.root.name, overlay)
    fault = faults.fatal(scene.gen, after)
    if fault and not faults.fatal(scene.gen, scene.files):
        raise Refused(
            f"cannot add {scene.drop_in} to what containerd loads: {fault}; bring the files to one "
            "version; `containerd config migrate` shows a file in the newest, without its "
            "comments and without what this containerd does not read"
        )
    cri = merge.effective(scene.gen, after)
    if gaps := wishes.gaps(wanted, cri):
        path = next(iter(gaps))
        owner = merge.owner(scene.gen, after, path)
        raise (CannotSwitch if path == _SWITCH else Refused)(
            f"cannot set {tomledit.dotted(path)}: {owner[0].path if owner else scene.root.path} "
            "overrides it; remove the key there"
        )
    if cri.default not in cri.runtimes:
        raise Refused(
            f"cannot edit {scene.root.path}: default_runtime_name is {cri.default}, and there is "
            "no such handler; add it or correct the name"
        )
    difference = first_difference(
        strip(merge.settings(scene.gen, scene.files), scene.gen, wanted),
        strip(merge.settings(scene.gen, after), scene.gen, wanted),
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
        before = load.load_file(scene.host, file.name)
        if before.state is None or state is None or before.state.data != state.data:
            changes.append(Change(file.path, before.state, state))
    for change in changes:
        _refuse_rendered(scene, by_host[change.path.host])
    # The root file last: until it imports them, nothing that was written before has an effect.
    changes.sort(key=lambda change: change.path.host == scene.root.path.host)
    return Edits(tuple(changes), wanted, after)


def _refuse_rendered(scene: Scene, file: ConfigFile) -> None:
    """Refuse to edit a file that another program writes anew, naming the place that lasts."""
    found = rendered.renderer(file) if file.state else None
    if found is None:
        return
    glob = import_glob(scene.drop_in)
    imported = scene.gen.merge == "deep" and found.imports
    what = f'imports = ["{glob}"]' if imported else "the NVIDIA handlers"
    raise Refused(
        f"cannot edit {file.path}: {found.program} writes it anew at each start, and the change "
        f"would be lost; put {what} into {found.source} and restart {found.program}, or leave the "
        "configuration alone with --no-runtime-config"
    )


def strip(settings: Data, gen: Generation, wanted: Desired) -> Data:
    """Settings without the keys that an edit of ours may change."""
    section: Path = ("plugins", "cri")
    ops: list[Op] = [Unset((*section, *RUNTIMES, name)) for name in wanted.handlers]
    ops += [Unset((*section, *_SECTION_DEFAULT)), Unset((*section, "enable_cdi"))]
    # containerd 1.x's deprecated table, and what it is called once it is a handler
    ops += [Unset((*section, *path)) for path in (LEGACY, (*RUNTIMES, "default"))]
    if get(settings, (*section, *RUNTIMES, "runc")) == gen.runc:
        ops.append(Unset((*section, *RUNTIMES, "runc")))
    return tomledit.without_empty(tomledit.apply(settings, ops))
