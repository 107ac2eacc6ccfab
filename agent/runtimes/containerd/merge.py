"""The rules by which containerd merges its configuration files.

Invariant: pure, and arguments are never changed. One model of merging serves three questions: which
settings are in force, which other settings an edit would change, and in which file and section a
key takes effect. Every rule that differs between versions is a field of `Generation`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from agent.runtimes.config_file import ConfigFile, Files
from agent.runtimes.containerd.generations import (
    CRI_V1,
    CRI_V2,
    CRI_V3,
    IMAGE_KEYS,
    IMAGES,
    SANDBOX_IMAGE,
    SNAPSHOTS,
    STREAMING,
    TWO_LEVELS,
    Generation,
    section_name,
)
from agent.runtimes.desired_state import Effective
from agent.toml.document import Data, Path, deep_merge, get

# Deprecated tables that containerd 1.x turns into handlers of these names.
LEGACY = {"default_runtime": "default", "untrusted_workload_runtime": "untrusted"}
# The v1.linux shim's plugin, in files of version 2 and 1.
LINUX_PLUGIN = ("io.containerd.runtime.v1.linux", "linux")
_MISSING = object()


def effective(gen: Generation, files: Files) -> Effective:
    """The effective configuration of containerd after a start on these files."""
    sections = plugins(gen, files)
    section = _table(sections.get(cri_name(gen, files)))
    named = get(section, ("containerd", "runtimes"))
    runtimes: dict[str, Data] = dict(named or {})
    if gen.merge == "deep" or named is None:
        runtimes["runc"] = deep_merge(gen.runc, runtimes.get("runc", {}))
    default = get(section, ("containerd", "default_runtime_name")) or "runc"
    for key, name in LEGACY.items() if gen.merge == "replace" else ():
        legacy = _table(get(section, ("containerd", key)))
        if legacy.get("runtime_type"):
            runtimes[name] = legacy
            default = name if name == "default" else default
    switch = section.get("enable_cdi", gen.enable_cdi) if gen.enable_cdi is not None else None
    linux = next((_table(sections.get(name)) for name in LINUX_PLUGIN if name in sections), {})
    return Effective(default, runtimes, switch, section, str(linux.get("runtime") or ""))


def _table(value: Any) -> Data:
    return value if isinstance(value, dict) else {}


def version_of(gen: Generation, files: Iterable[ConfigFile]) -> int:
    """The file version that counts for all files together, if `gen.reads` is "set".

    Observed on 1.6.20, 1.7.24 and 2.1.9: the version in a later file replaces the version in an
    earlier file. With a drop-in of version 3, 2.1.9 ignores the CRI section of a root file of
    version 2. With a drop-in of version 2, it migrates all files, and the root file's own section
    names win.
    """
    named = [file.version for file in files if (file.version or 0) >= gen.lowest and file.version]
    return min(named[-1], gen.highest) if named else gen.unversioned


def names(gen: Generation, files: Files, file: ConfigFile) -> tuple[str, ...]:
    """The names of the sections with CRI settings in `file`. The name that wins comes first."""
    if gen.reads == "file":
        return gen.names[min(file.version or 0, gen.highest)]
    sections = gen.names[version_of(gen, files)]
    renamed = gen.renames and (file.version or 0) < gen.lowest and CRI_V2 in sections
    return (*sections, CRI_V1) if renamed else sections


def plugins(gen: Generation, files: Files) -> Data:
    """The sections of all plugins, merged and migrated. The CRI section has the name `cri_name`."""
    merged: Data = {}
    for file in files:
        given = _renamed(gen, file)
        if gen.reads == "file":
            given = _migrated(given, gen.names[min(file.version or 0, gen.highest)])
        merged = deep_merge(merged, given) if gen.merge == "deep" else {**merged, **given}
    if gen.reads == "set":
        merged = _migrated(merged, gen.names[version_of(gen, files)])
    return merged


def cri_name(gen: Generation, files: Files) -> str:
    """The name of the CRI section after the migration of all files."""
    return CRI_V3 if gen.merge == "deep" else gen.names[version_of(gen, files)][0]


def _renamed(gen: Generation, file: ConfigFile) -> Data:
    """The plugin sections of a file, with long names in place of short ones if this generation
    renames them."""
    given = file.data.get("plugins", {})
    if not gen.renames or (file.version or 0) >= gen.lowest or CRI_V1 not in given:
        return dict(given)
    rest = {key: value for key, value in given.items() if key != CRI_V1}
    return deep_merge({CRI_V2: given[CRI_V1]}, rest)


def _migrated(given: Data, order: tuple[str, ...]) -> Data:
    """The plugin sections, with those under older names moved to the names of version 3. `order`
    has the names of the CRI section; the name that wins comes first."""
    if CRI_V3 not in order:
        return given
    result = dict(given)
    for name in order[1:]:
        old = result.pop(name, None)
        if isinstance(old, dict):
            result[CRI_V3] = _names_merged(result.get(CRI_V3, {}), _runtime_part(old))
            if images := _image_part(old):
                # The old name's keys win, and only `pinned_images` are merged.
                new = result.get(IMAGES, {})
                pinned = {**new.get("pinned_images", {}), **images.get("pinned_images", {})}
                both = {**new, **images}
                result[IMAGES] = {**both, "pinned_images": pinned} if pinned else both
            streaming = {key: value for key, value in old.items() if key in STREAMING}
            if streaming:
                result[CRI_V2] = streaming
    return result


def _names_merged(new: Data, old: Data) -> Data:
    """The CRI section under its new name merged with that under its old name. A key under the new
    name wins, and so does the whole table `runtimes`."""
    result = {**old, **new}
    for key in TWO_LEVELS:
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            result[key] = {**old[key], **new[key]}
    return result


def _runtime_part(old: Data) -> Data:
    elsewhere = {*STREAMING, *IMAGE_KEYS, SANDBOX_IMAGE}
    part = {key: value for key, value in old.items() if key not in elsewhere}
    if isinstance(part.get("containerd"), dict):
        below = {k: v for k, v in part["containerd"].items() if k not in SNAPSHOTS}
        if isinstance(below.get("runtimes"), dict):
            below["runtimes"] = {n: _with_sandboxer(t) for n, t in below["runtimes"].items()}
        part["containerd"] = below
    return part


def _with_sandboxer(handler: Any) -> Any:
    """The handler with `sandboxer`, the name of `sandbox_mode` in version 3. If both keys are set,
    `sandboxer` wins."""
    if not isinstance(handler, dict) or "sandbox_mode" not in handler:
        return handler
    rest = {key: value for key, value in handler.items() if key != "sandbox_mode"}
    return {"sandboxer": handler["sandbox_mode"], **rest}


def _image_part(old: Data) -> Data:
    """The settings that move to the plugin for images. Observed on 2.1.9: the snapshotter and
    similar keys are lost if the same table has no `runtimes`."""
    part = {key: value for key, value in old.items() if key in IMAGE_KEYS}
    if SANDBOX_IMAGE in old:
        part["pinned_images"] = {"sandbox": old[SANDBOX_IMAGE]}
    below = old.get("containerd")
    if isinstance(below, dict) and "runtimes" in below:
        part |= {key: value for key, value in below.items() if key in SNAPSHOTS}
    return part


def settings(gen: Generation, files: Files) -> Data:
    """All merged settings of the files, with the CRI section as `plugins.cri`. They show whether an
    edit changes more than our keys."""
    whole: Data = {}
    for file in files:
        without = ("imports", "version", "plugins")
        rest = {key: value for key, value in file.data.items() if key not in without}
        whole = deep_merge(whole, rest) if gen.merge == "deep" else {**whole, **rest}
    sections = plugins(gen, files)
    sections["cri"] = sections.pop(cri_name(gen, files), {})
    return {**whole, "plugins": sections}


def owner(gen: Generation, files: Files, path: Path) -> tuple[ConfigFile, Path] | None:
    """The file whose value of a CRI key is in force, and the path of the CRI section in that file.
    None if no file sets the key. `path` is relative to the CRI section."""
    for file in reversed(files):
        name = place(gen, files, file, path)
        if get(file.data, ("plugins", name, *path), _MISSING) is not _MISSING:
            return file, ("plugins", name)
    return None


def place(gen: Generation, files: Files, file: ConfigFile, path: Path) -> str:
    """The name of the section of `file` in which a CRI key takes effect, whether or not the key
    exists."""
    order = names(gen, files, file)
    given = file.data.get("plugins", {})
    sections: Data = given
    if gen.reads == "set":
        sections = functools.reduce(deep_merge, (_renamed(gen, other) for other in files), {})
    level = 2 if path[0] in TWO_LEVELS else 1
    for name in order:
        if get(sections, (name, *path[:level]), _MISSING) is not _MISSING:
            # A file of version 1 may call this section `cri`.
            short = name == CRI_V2 and CRI_V1 in order and CRI_V2 not in given
            return CRI_V1 if short else name
    usual = section_name(file.version or version_of(gen, files))
    present = next((name for name in order if name in given), None)
    return present or (usual if usual in order else order[0])


def has_section(gen: Generation, files: Files, file: ConfigFile) -> bool:
    """Does `file` have a section in which containerd looks for CRI settings?"""
    given = file.data.get("plugins", {})
    return any(isinstance(given.get(name), dict) for name in names(gen, files, file))
