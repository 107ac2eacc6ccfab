"""Read a configuration file and its imports, and merge them as that generation of containerd does.

The result still has plugin sections as the files gave them, in the section names of the newest
version; `populate` turns them into what the plugins see. Rules were observed on 1.6.20, 1.7.24,
2.0.11, 2.1.9, 2.2.7 and 2.3.4, and read in containerd's `server/config`.
"""

from __future__ import annotations

import copy
import glob
import os
from dataclasses import dataclass
from pathlib import Path

from tests.doubles.containerd.generation import GRPC_CRI, Generation, Table
from tests.doubles.containerd.migrate import migrate_names, migrate_sections
from tests.doubles.runtime import toml

_LISTS = ("imports", "disabled_plugins", "required_plugins")
_BY_KEY = ("timeouts", "stream_processors", "proxy_plugins")


class RefusedError(Exception):
    """What the daemon says on standard error before it exits with `status`."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Node:
    """The machine that the double believes to be on: this one, or a directory that plays one.

    With a `root`, absolute names are looked up below it, unless they lie there already.
    """

    root: str = ""

    def real(self, name: str) -> str:
        """Where a file of the node is on this machine."""
        inside = name == self.root or name.startswith(f"{self.root}/")
        return name if not self.root or not name.startswith("/") or inside else self.root + name

    def glob(self, pattern: str) -> list[str]:
        """Match like Go: sorted, names with a leading dot included, no recursion."""
        real = self.real(pattern)
        added = len(self.root) if real != pattern else 0
        return [found[added:] for found in sorted(glob.glob(real, include_hidden=True))]


@dataclass(frozen=True)
class Loaded:
    """Merged files.

    `document` is the whole configuration, its "plugins" only what the files say; `files` are those
    that were read, in order. `missing` is set where a named file is not there: the daemon does not
    start, but `config dump` of 2.x prints what was merged before.
    """

    document: Table
    files: tuple[str, ...]
    missing: str | None = None


def load(generation: Generation, path: str, node: Node) -> Loaded:
    """Load `path` and what it imports, breadth first; raises RefusedError."""
    document = built_in(generation)
    pending, files, missing = [path], [], None
    root_version = 0
    while pending:
        name = pending.pop(0)
        if name in files:
            continue
        try:
            table = _read(generation, name, node)
        except FileNotFoundError:
            where = "" if generation.deep else f"failed to load TOML: {name}: "
            missing = f"{where}open {name}: no such file or directory"
            break
        root_version = root_version or table.get("version", 0)
        if generation.per_file and table.get("version", 0) > root_version:
            raise RefusedError(
                f"drop-in config version {table['version']} higher than "
                f"root config version {root_version}"
            )
        _bring_up(generation, table, document)
        _merge(document, table, generation.deep)
        files.append(name)
        pending += _imports(generation, name, table.get("imports", []), node)
    _check(generation, document, (files or [path])[-1])
    if generation.deep and document["version"] < generation.config_version:
        _migrate(document["plugins"])
    return Loaded(document, tuple(files), missing)


def built_in(generation: Generation) -> Table:
    """Give the configuration of a daemon without any file."""
    document = copy.deepcopy({**generation.defaults(), "plugins": {}})
    if not generation.deep:
        document["version"] = 1  # what a file without a version counts as
    return document


def _read(generation: Generation, name: str, node: Node) -> Table:
    """Parse one file; FileNotFoundError if it is not there."""
    place = f"failed to load TOML: {name}:"
    if generation.deep:
        place = f"failed to unmarshal TOML: {name}: toml:"
    try:
        text = Path(node.real(name)).read_bytes().decode()
        table = toml.loads(text, toml_11=generation.deep)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RefusedError(f"{place} read {name}: {str(error.strerror).lower()}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise RefusedError(f"{place} {error}") from error
    known = {**generation.defaults(), "plugins": {}}
    for key, value in table.items():
        if key in known and type(value) is not type(known[key]):
            raise RefusedError(
                f"failed to unmarshal TOML: {name}: cannot decode {type(value).__name__} "
                f"into {key} of type {type(known[key]).__name__}"
            )
    return {key: value for key, value in table.items() if key in known}


def _bring_up(generation: Generation, table: Table, document: Table) -> None:
    """Give a file's sections the names that the merge expects."""
    version = table.get("version", 0)
    if not generation.deep:
        return  # 1.x looks sections up by the names of the version that is effective in the end
    if version == 0 and generation.per_file and "cri" in table.get("plugins", {}):
        # The step from 0 to 1 moves the long name away before that from 1 to 2 makes it anew.
        _migrate(table["plugins"])
        table["plugins"].pop(GRPC_CRI, None)
    if version < 2:
        migrate_names(table)
        # Raised to what is effective so far. 2.0 to 2.2 do no more: that is 3 for a root file, so
        # it skips the step from 2 to 3 that would move its CRI section.
        table["version"] = document["version"]
    if generation.per_file and version < generation.config_version:
        _migrate(table.setdefault("plugins", {}))
        _move_servers(table)
        table["version"] = generation.config_version


def _migrate(plugins: Table) -> None:
    try:
        migrate_sections(plugins)
    except TypeError as error:
        raise RefusedError(f"panic: {error}", status=2) from error


def _move_servers(table: Table) -> None:
    """Move the addresses to where version 4 has them."""
    for key in ("grpc", "ttrpc"):
        address = table.pop(key, {}).get("address")
        if address:
            table["plugins"].setdefault(f"io.containerd.server.v1.{key}", {"address": address})


def _merge(document: Table, table: Table, deep: bool) -> None:
    """Merge one file into what is effective so far. Empty and zero top-level values do nothing."""
    for key, value in table.items():
        if key == "plugins":
            for section, content in value.items():
                _merge_section(document["plugins"], section, content, deep)
        elif key in _LISTS:
            document[key] += [item for item in value if not deep or item not in document[key]]
        elif key in _BY_KEY:
            document[key] |= value
        elif isinstance(value, dict):
            document[key] |= {name: given for name, given in value.items() if given}
        elif value:
            document[key] = value


def _merge_section(into: Table, key: str, value: object, deep: bool) -> None:
    old = into.get(key)
    if deep and isinstance(old, dict) and isinstance(value, dict):
        for inner, given in value.items():
            _merge_section(old, inner, given, deep)
    else:
        into[key] = copy.deepcopy(value)


def _imports(generation: Generation, parent: str, imports: list[str], node: Node) -> list[str]:
    found = []
    for name in imports:
        is_glob = "*" in name
        if not name.startswith("/") and (generation.relative_globs or not is_glob):
            name = os.path.join(os.path.dirname(parent), os.path.normpath(name))
        found += node.glob(name) if is_glob else [os.path.normpath(name)]
    return found


def _check(generation: Generation, document: Table, path: str) -> None:
    """Refuse what `ValidateV2` and `ValidateVersion` refuse."""
    version, highest = document["version"], generation.highest
    place = f"failed to load TOML from {path}:"
    if highest is not None and version > highest:
        if generation.deep:
            raise RefusedError(
                f"{place} expected containerd config version equal to or less than `{highest}`, "
                f"got `{version}`"
            )
        raise RefusedError(f"{place} unsupported config version `{version}`")
    names = {f"{kind} plugin": document[f"{kind}_plugins"] for kind in ("disabled", "required")}
    if not generation.deep:
        names["plugin key"] = document["plugins"]
    for kind, plugins in names.items() if version >= 2 else ():
        for plugin in plugins:
            if "." not in plugin:
                raise RefusedError(
                    f'{place} invalid {kind} URI "{plugin}" expect io.containerd.x.vx'
                )
