"""Faults in containerd's files: those that keep it from starting or from serving the CRI, and
settings that it ignores.

Invariant: pure. Each finding names the file to repair.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from agent.runtimes.base import Defect
from agent.runtimes.config_file import ConfigFile, Files
from agent.runtimes.containerd.generations import (
    CRI_V1,
    CRI_V2,
    CRI_V3,
    IMAGES,
    STREAMING,
    Generation,
)
from agent.runtimes.containerd.merge import has_section, names, version_of
from agent.runtimes.desired_state import (
    LINUX,
    OUR_NAMES,
    Effective,
    binaries,
    is_runc,
    is_sandbox,
    leaves,
)
from agent.toml import dialect, document
from agent.toml.dialect import GO_TOML_1, GO_TOML_2
from agent.toml.document import Data, Path, get
from agent.toolkit.programs import is_nvidia

_LISTS = ("disabled_plugins", "required_plugins")


def ignored_section(gen: Generation, files: Files) -> tuple[ConfigFile, str] | None:
    """The first file with a section of CRI settings that this containerd does not read because the
    file has version 1 or none, and the name of that section. None if there is no such file.

    2.0 to 2.2 do not read such a section, unless a later file has version 2. containerd 1.x is not
    checked: it never read names of version 2 in such a file, so no setting was lost.
    """
    if gen.merge == "replace":
        return None
    for file in files:
        order = names(gen, files, file)
        for name in (CRI_V1, CRI_V2) if (file.version or 1) == 1 else ():
            section = get(file.data, ("plugins", name))
            if name not in order and isinstance(section, dict) and not section.keys() <= STREAMING:
                return file, f'plugins."{name}"'
    return None


def misplaced_version(files: Files) -> Defect | None:
    """The defect of a file whose `version` is in a table, although it was meant for the whole file.
    A line at the end of a file belongs to the file's last table, so the sections of version 2 are
    not read (containerd#3843)."""
    for file in files:
        given = file.data.get("plugins", {})
        if file.version is not None or file.state is None or not {CRI_V2, CRI_V3} & given.keys():
            continue
        from agent.toml import scan  # slow to load, and rarely needed

        text = document.decoded(file.state.data, file.path.host)
        with contextlib.suppress(scan.Unreadable):
            for one in scan.statements(text):
                value = get(file.data, one.path)
                if len(one.path) > 1 and one.path[-1] == "version" and type(value) is int:
                    line = text.count("\n", 0, one.start) + 1
                    table = document.dotted(one.path[:-1])
                    return Defect(
                        f"`version` on line {line} stands in the table [{table}], and {file.path} "
                        "has no version of its own",
                        "move that line to the top of the file",
                    )
    return None


def doubtful(gen: Generation, files: Files) -> Iterator[Defect]:
    """The defects of files on which this containerd starts, but which it may read differently than
    their author meant."""
    if (defect := misplaced_version(files)) and not ignored_section(gen, files):
        yield defect
    for text in hidden_settings(gen, files):
        remedy = "put all settings of the section into the last file, or use one file"
        yield Defect(text, remedy, harmful=False)
    for file in files if gen.toml == GO_TOML_1 else ():
        text = document.decoded(file.state.data, file.path.host) if file.state else ""
        if odd := dialect.first_rejected(text, GO_TOML_2):
            yield Defect(f"{file.path}: {odd.words}; {odd.readers}", odd.remedy, harmful=False)


def unusable(gen: Generation, files: Files) -> Iterator[Defect]:
    """The defects of files in which the effect of an edit would be nothing, or not certain."""
    if disabling := disabling_entry(gen, files):
        text = f"disabled_plugins in {disabling[0].path} names {disabling[1]!r}"
        remedy = "take that name out of the list, and restart containerd"
        yield Defect(f"{text}: the CRI is switched off", remedy, deadly=True)
    if unread := ignored_section(gen, files):
        file, section = unread
        # Never `config migrate`: it leaves out what containerd does not read (seen with 2.1.9).
        yield misplaced_version(files) or Defect(
            f"containerd does not read {section} of {file.path}, whose version is "
            f"{file.version or 'missing'}",
            f'if it is intended, call the section plugins."{CRI_V2}" and write `version = 2` at '
            "the top of that file",
        )
    if (file_with_both := ambiguous_file(gen, files)) is not None:
        text = (
            f"{file_with_both.path} has the CRI section under two names, and chance decides which "
            "counts"
        )
        yield Defect(text, "keep one of the sections")


def ambiguous_file(gen: Generation, files: Files) -> ConfigFile | None:
    """The first file with the CRI section under both its short and its long name, None if there is
    none. containerd merges the two sections, and chance decides which value counts."""
    for file in files if gen.merge == "deep" else ():
        renamed = gen.renames or file.version is not None
        given = file.data.get("plugins", {})
        if renamed and (file.version or 0) < 2 and CRI_V1 in given and CRI_V2 in given:
            return file
    return None


def disabling_entry(gen: Generation, files: Files) -> tuple[ConfigFile, str] | None:
    """The file and the entry of `disabled_plugins` that disable the CRI, None if none does."""
    needed = {CRI_V2, CRI_V3, IMAGES}
    if gen.merge == "replace":
        needed = set(gen.names[version_of(gen, files)])
    for file in files:
        for entry in _entries(file, "disabled_plugins"):
            if _uri(gen, file, entry) in needed:
                return file, entry
    return None


def hidden_settings(gen: Generation, files: Files) -> tuple[str, ...]:
    """Warnings about settings that containerd 1.x ignores because a later file replaces the whole
    CRI section (observed on 1.6 and 1.7)."""
    owners = [file for file in files if has_section(gen, files, file)]
    if gen.merge == "deep" or len(owners) < 2:
        return ()
    name = names(gen, files, owners[-1])[0]
    section = owners[-1].data["plugins"][name]
    return tuple(
        f"{owners[-1].path} hides {'.'.join(path)} of {file.path}: containerd 1.x takes all of "
        f"plugins.{name} from the last file that has it"
        for file in owners[:-1]
        for path in _hidden_keys(file.data["plugins"][name], section)[:1]
    )


def _hidden_keys(table: Data, other: Data) -> list[Path]:
    """The paths of the values in a table that another table does not have."""
    missing = object()
    return [path for path, value in leaves(table) if value and get(other, path, missing) is missing]


def fatal_fault(gen: Generation, files: Files) -> str | None:
    """The reason why this containerd does not start on these files, None if no reason is known."""
    numbered = [file for file in files if file.version]
    counted = [file for file in numbered if (file.version or 0) >= gen.lowest]
    for file in (counted[-1:] if gen.reads == "set" else counted) if gen.strict else ():
        if (file.version or 0) > gen.highest:
            return (
                f"{file.path} says version {file.version}, and this containerd reads files up to "
                f"version {gen.highest}"
            )
    for file in numbered if gen.reads == "file" else ():
        if (file.version or 0) > (numbered[0].version or 0):
            return (
                f"{file.path} says version {file.version}, which is higher than version "
                f"{numbered[0].version} of {numbered[0].path}"
            )
    return next(_short_names(gen, files), None)


def _short_names(gen: Generation, files: Files) -> Iterator[str]:
    """Errors for plugins without a full name, which only files of version 1 may have."""
    if gen.reads == "set" and version_of(gen, files) < 2:
        return
    for file in files:
        lists = [(key, entry) for key in _LISTS for entry in _entries(file, key)]
        if gen.merge == "replace":
            lists += [("plugins", name) for name in file.data.get("plugins", {})]
        for key, entry in lists:
            if "." not in _uri(gen, file, entry):
                from agent.toml.masking import masked

                name = masked(repr(entry))  # the entry can be any text, also a secret
                yield f"{file.path} has {name} in {key}, which is no full name of a plugin"


def _entries(file: ConfigFile, key: str) -> list[str]:
    value = file.data.get(key)
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _uri(gen: Generation, file: ConfigFile, entry: str) -> str:
    """The full name of a plugin. containerd 2.x knows short names in files of version 1 or none."""
    old = gen.merge == "deep" and (file.version or 0) < 2
    if "." in entry or not old:
        return entry
    return CRI_V2 if entry == CRI_V1 else f"io.containerd.{entry}"


def defects(
    gen: Generation, files: Files, effective: Effective, lacking: Sequence[str]
) -> Iterator[Defect]:
    """All defects that this module knows, and handlers that cannot run pods, the worst first.
    `effective` is the configuration of these files, `lacking` are runtime types without a shim."""
    if why := fatal_fault(gen, files):
        remedy = "give it the version of the root file" if "says version" in why else "repair it"
        yield Defect(why, f"{remedy}, then restart containerd", deadly=True)
    yield from unusable(gen, files)
    for name, table in effective.runtimes.items():
        yield from _handler_defects(name, table, lacking)
        if table.get("runtime_type") in lacking and is_sandbox(table):
            text = (
                f"handler {name} has runtime_type {table['runtime_type']}, whose shim is not there"
            )
            remedy = "install that shim in the runtime's PATH, or remove the handler"
            yield Defect(text, remedy, harmful=name in (effective.default, *OUR_NAMES))
    yield from doubtful(gen, files)


def _handler_defects(name: str, table: Data, lacking: Sequence[str]) -> Iterator[Defect]:
    """The defects of a handler whose pods are not created, or are run by another program than the
    file seems to name. Each was observed; neither Status nor the dump shows it."""
    kind = table.get("runtime_type")
    if not kind:
        text = f'handler {name} has no runtime_type: "container.Runtime.Name must be set"'
        remedy = f'set runtime_type = "io.containerd.runc.v2" in the table of {name}'
        yield Defect(text, remedy)
    elif kind in lacking and not is_sandbox(table):
        text = f"handler {name} has runtime_type {kind}, for which this containerd has no shim"
        yield Defect(text, 'set runtime_type = "io.containerd.runc.v2"')
    path = table.get("runtime_path")
    if isinstance(path, str) and is_nvidia(path):
        text = f"handler {name} has runtime_path = {path}, which containerd takes for a shim"
        yield Defect(text, "remove that key, and write the path as BinaryName into its options")
    spelled = dict(binaries(table))
    if len(spelled) > 1 and is_runc(table):
        pairs = " and ".join(f"{key} = {value}" for key, value in spelled.items())
        text = f"handler {name} names its program twice: {pairs}"
        yield Defect(text, "keep BinaryName, and remove the other spelling")


def cgroup_driver(table: Data) -> str | None:
    """The cgroup driver of a handler of runc's shim, "systemd" or "cgroupfs"; None for another
    shim."""
    if not is_runc(table) or table.get("runtime_type") == LINUX:
        return None
    options = table.get("options") or {}
    on = any(value is True for key, value in options.items() if key.lower() == "systemdcgroup")
    return "systemd" if on else "cgroupfs"
