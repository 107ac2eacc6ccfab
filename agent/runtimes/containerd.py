"""How each generation of containerd reads its configuration files, as data.

Invariant: what differs between versions is a field of `Generation`; the functions below have no
version numbers in them. The rules were observed on 1.6.20, 1.7.24, 2.0.11, 2.1.9, 2.2.7 and 2.3.4.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from agent.data import dataclass
from agent.errors import Refused
from agent.host.files import FileState
from agent.host.paths import HostPath
from agent.runtimes.versions import Version
from agent.tomledit import Data, Path, get

CRI_V1 = "cri"
CRI_V2 = "io.containerd.grpc.v1.cri"
CRI_V3 = "io.containerd.cri.v1.runtime"

# What containerd 2.x still reads below the old name in a version 3 file: the streaming server.
_STREAMING = frozenset({
    "disable_tcp_service", "enable_tls_streaming", "stream_idle_timeout", "stream_server_address",
    "stream_server_port", "x509_key_pair_streaming",
})  # fmt: skip

_SNAPSHOTS = frozenset({"snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers"})

# The `runc` handler that containerd has when no file defines any (`containerd config default`).
_RUNC_1X: Data = {
    "runtime_type": "io.containerd.runc.v2",
    "options": {
        "BinaryName": "", "CriuImagePath": "", "CriuPath": "", "CriuWorkPath": "", "IoGid": 0,
        "IoUid": 0, "NoNewKeyring": False, "NoPivotRoot": False, "Root": "", "ShimCgroup": "",
        "SystemdCgroup": False,
    },
}  # fmt: skip
_RUNC_17: Data = {**_RUNC_1X, "sandbox_mode": "podsandbox"}
_RUNC_2X: Data = {"runtime_type": "io.containerd.runc.v2"}


@dataclass(frozen=True, slots=True)
class Generation:
    """The rules of a range of versions.

    `since`: the first version. `merge`: what a later file does to a plugin's section.
    `unversioned`: the version that files without one are read as. `per_file`: each file is read by
    its own version, rather than all by the highest. `relative_globs`: globs are taken relative to
    the importing file, not to the daemon's working directory. `root_version`: of a file we create.
    `enable_cdi`: the default of the key, None where there is no such key. `brittle_cdi`: a spec
    whose vendor or class is one letter makes it panic.
    """

    name: str
    since: Version
    merge: Literal["replace", "deep"]
    unversioned: int
    per_file: bool
    relative_globs: bool
    highest: int
    root_version: int
    enable_cdi: bool | None
    runc: Data
    brittle_cdi: bool = True


GENERATIONS = (
    Generation("1.6", (0, 0, 0), "replace", 1, False, False, 2, 2, None, _RUNC_1X),
    Generation("1.7", (1, 7, 0), "replace", 1, False, True, 2, 2, False, _RUNC_17),
    Generation("2.0", (2, 0, 0), "deep", 3, False, True, 3, 3, True, _RUNC_2X),
    Generation("2.3", (2, 3, 0), "deep", 3, True, True, 4, 3, True, _RUNC_2X),
    Generation("2.4", (2, 4, 0), "deep", 3, True, True, 4, 3, True, _RUNC_2X, brittle_cdi=False),
)


def generation(version: Version) -> Generation:
    """The newest generation that a version has reached."""
    return max((g for g in GENERATIONS if version >= g.since), key=lambda g: g.since)


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """One loaded file. `name` is how the daemon finds it, `path` where it lies once links are
    followed; `state` is None and `data` {} where it is missing (the root file may be)."""

    name: str
    path: HostPath
    state: FileState | None
    data: Data

    @property
    def version(self) -> int | None:
        found = self.data.get("version")
        return found if isinstance(found, int) else None


@dataclass(frozen=True, slots=True)
class Cri:
    """The effective CRI section: built-in defaults and all files, as the daemon merges them."""

    default: str
    runtimes: Mapping[str, Data]
    enable_cdi: bool | None
    section: Data

    def table(self, name: str) -> Data:
        return self.runtimes.get(name) or {}


def check_shape(file: ConfigFile) -> None:
    """Refuse wrong types where we are going to read: containerd would not start on them."""
    expected: tuple[tuple[str, type], ...] = (
        ("version", int),
        ("imports", list),
        ("plugins", dict),
    )
    for key, kind in expected:
        value = file.data.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise _wrong(file, key, kind.__name__)
    if any(not isinstance(item, str) for item in file.data.get("imports", [])):
        raise _wrong(file, "imports", "list of strings")
    for name in (CRI_V1, CRI_V2, CRI_V3):
        section = get(file.data, ("plugins", name))
        for path, kind in _SHAPE:
            value = section if not path else get(section, path)
            if value is not None and not isinstance(value, kind):
                raise _wrong(file, ".".join(("plugins", name, *path)), kind.__name__)
        for handler, table in (get(section, ("containerd", "runtimes")) or {}).items():
            if not isinstance(table, dict):
                raise _wrong(file, f"runtimes.{handler}", "dict")
            if not isinstance(table.get("options", {}), dict):
                raise _wrong(file, f"runtimes.{handler}.options", "dict")


_SHAPE: tuple[tuple[Path, type], ...] = (
    ((), dict),
    (("enable_cdi",), bool),
    (("containerd",), dict),
    (("containerd", "runtimes"), dict),
    (("containerd", "default_runtime_name"), str),
)


def _wrong(file: ConfigFile, key: str, kind: str) -> Refused:
    names = {"dict": "table", "str": "string", "int": "whole number", "bool": "true or false"}
    return Refused(f"cannot use {file.path}: {key} is not a {names.get(kind, kind)}; repair it")


def effective_version(gen: Generation, files: Iterable[ConfigFile]) -> int:
    """The version by which all files are read: the highest that one of them names.

    Observed: a version 3 drop-in makes containerd 2.0 to 2.2 drop a version 2 root file's CRI
    section, and the other way round the drop-in; version 1 they read as none at all. 1.6 takes a
    higher number than it knows for its own highest.
    """
    found = max((f.version for f in files if f.version), default=0)
    return gen.unversioned if found <= 1 else min(found, gen.highest)


def section_name(version: int) -> str:
    """The plugin whose section holds handlers and `enable_cdi` in a file of this version."""
    return CRI_V1 if version <= 1 else CRI_V2 if version == 2 else CRI_V3


def section_path(gen: Generation, files: Iterable[ConfigFile], file: ConfigFile) -> Path:
    """Where in `file` the CRI section is, as this daemon reads the whole set of files."""
    if not gen.per_file:
        return ("plugins", section_name(effective_version(gen, files)))
    if file.version is None:  # every generation of names is honoured then (observed on 2.3.4)
        plugins = file.data.get("plugins", {})
        return (
            "plugins",
            next((name for name in (CRI_V3, CRI_V2, CRI_V1) if name in plugins), CRI_V3),
        )
    return ("plugins", section_name(file.version))


def load_section(gen: Generation, files: tuple[ConfigFile, ...], file: ConfigFile) -> Data | None:
    """The CRI section of one file, None where the daemon sees none in it."""
    found = get(file.data, section_path(gen, files, file))
    return found if isinstance(found, dict) else None


def merged_section(gen: Generation, files: tuple[ConfigFile, ...]) -> Data:
    """The CRI section that the files make together, without built-in defaults."""
    result: Data = {}
    for file in files:
        section = load_section(gen, files, file)
        if section is None:
            continue
        result = copy.deepcopy(section) if gen.merge == "replace" else deep_merge(result, section)
    return _with_new_name(result, _new_name(files)) if _migrates(gen, files) else result


def _migrates(gen: Generation, files: tuple[ConfigFile, ...]) -> bool:
    """Does this daemon move the merged version 2 section to the version 3 name as a whole?"""
    return gen.merge == "deep" and not gen.per_file and effective_version(gen, files) == 2


def _new_name(files: tuple[ConfigFile, ...]) -> Data:
    """What version 2 files say under the version 3 name, which containerd 2.0 to 2.2 honour."""
    result: Data = {}
    for file in files:
        section = get(file.data, ("plugins", CRI_V3))
        result = deep_merge(result, section) if isinstance(section, dict) else result
    return result


def _with_new_name(old: Data, new: Data) -> Data:
    """The migration: the new name's own keys win, whole `containerd.runtimes` included."""
    if not new:
        return old
    below = {**old.get("containerd", {}), **new.get("containerd", {})}
    return {**old, **new, **({"containerd": below} if below else {})}


def drop_in_section(gen: Generation, files: tuple[ConfigFile, ...], version: int) -> str:
    """The plugin name under which a new drop-in beside these files has to speak.

    Observed on 2.1.9: a version 2 section without `runtimes` loses `containerd.snapshotter` and
    its siblings in the migration, and a drop-in that adds `runtimes` under the old name brings
    them back, which changes the node's snapshotter. Under the new name it does not.
    """
    if _migrates(gen, files):
        section: Data = {}
        for file in files:
            section = deep_merge(section, load_section(gen, files, file) or {})
        below = section.get("containerd", {})
        if "runtimes" not in below and below.keys() & _SNAPSHOTS:
            return CRI_V3
    return section_name(version)


def deep_merge(below: Data, above: Mapping[str, Any]) -> Data:
    """Tables merge key by key; everything else is replaced (containerd 2.x)."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            result[key] = deep_merge(old, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def effective(gen: Generation, files: tuple[ConfigFile, ...]) -> Cri:
    """What the daemon makes of these files at its next start."""
    section = merged_section(gen, files)
    named = get(section, ("containerd", "runtimes"))
    runtimes: dict[str, Data] = dict(named or {})
    if gen.merge == "deep" or named is None:
        runtimes["runc"] = deep_merge(gen.runc, runtimes.get("runc", {}))
    default = get(section, ("containerd", "default_runtime_name")) or "runc"
    legacy = get(section, ("containerd", "default_runtime"))
    if gen.merge == "replace" and isinstance(legacy, dict) and legacy.get("runtime_type"):
        # containerd 1.x turns the deprecated table into a handler named "default".
        runtimes["default"], default = legacy, "default"
    switch = section.get("enable_cdi", gen.enable_cdi) if gen.enable_cdi is not None else None
    return Cri(default, runtimes, switch, section)


def settings_apart_from(gen: Generation, files: tuple[ConfigFile, ...]) -> Data:
    """Everything that the files say together, sections of the CRI by their merged content.

    Used to see that an edit changes nothing but what it is meant to change.
    """
    whole: Data = {}
    for file in files:
        rest = {key: value for key, value in file.data.items() if key not in ("imports", "version")}
        if gen.merge == "deep":
            whole = deep_merge(whole, rest)
        else:
            plugins = {**whole.get("plugins", {}), **rest.get("plugins", {})}
            whole = {**whole, **rest, "plugins": plugins}
    plugins = dict(whole.get("plugins", {}))
    for file in files:
        plugins.pop(section_path(gen, files, file)[1], None)
    if _migrates(gen, files):
        plugins.pop(CRI_V3, None)
    plugins["cri"] = merged_section(gen, files)
    whole["plugins"] = plugins
    return whole


def misnamed_section(gen: Generation, files: tuple[ConfigFile, ...]) -> tuple[str, str] | None:
    """(file, section) of CRI settings whose name and version do not go together.

    containerd 2.0 to 2.2 ignore them in version-less and version 1 files; version 1 names beside a
    version 2 file make 1.x refuse to start or win over everything, by where they stand (observed).
    """
    if gen.per_file:
        return None
    version = effective_version(gen, files)
    for file in files:
        names = (CRI_V1, CRI_V2) if version > 2 and (file.version or 1) == 1 else (CRI_V1,)
        for name in names if version > 1 else ():
            section = get(file.data, ("plugins", name))
            if isinstance(section, dict) and not section.keys() <= _STREAMING:
                return str(file.path), f'plugins."{name}"'
    return None


def import_pattern(gen: Generation, importing: str, pattern: str) -> str | None:
    """The absolute host pattern of one import, or None where it depends on the daemon's cwd."""
    if os.path.isabs(pattern):
        return os.path.normpath(pattern)
    if "*" in pattern and not gen.relative_globs:
        return None
    return os.path.normpath(os.path.join(os.path.dirname(importing), pattern))


def matches(pattern: str, path: str) -> bool:
    """Go's filepath.Match for absolute patterns: `*` stops at a slash and takes dot files."""
    return re.fullmatch(_expression(pattern), path, re.DOTALL) is not None


def _expression(pattern: str) -> str:
    """The regular expression of a pattern: `*`, `?`, `[set]`, `[^set]` and backslash."""
    result, rest = "", pattern
    while rest:
        found = re.match(r"\\(.)|(\*)|(\?)|\[(\^?)((?:\\.|[^\]\\])+)\]|(.)", rest, re.DOTALL)
        if found is None:
            return "(?!)"  # malformed: Go matches nothing
        escaped, star, mark, negated, members, plain = found.groups()
        if star or mark:
            result += "[^/]*" if star else "[^/]"
        elif members:
            result += f"(?!/)[{negated}{members.replace('[', chr(92) + '[')}]"
        else:
            result += re.escape(escaped or plain)
        rest = rest[found.end() :]
    return result
