"""The check of a candidate by CRI-O's own executable, before anything is changed.

Invariant: nothing is written. The executable gets the flags of the running CRI-O that set handlers.
It reads the present files from disk, and the future files from memory, where all drop-ins are
merged into one. So a difference in a key that is not ours shows that our model of its merging is
wrong.
"""

from __future__ import annotations

import os
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

from agent.runtimes import command, preflight
from agent.runtimes.command import Dump
from agent.runtimes.config_file import ConfigFile, Files, first_unread
from agent.runtimes.crio import merge
from agent.runtimes.preflight import (
    UNKNOWN,
    Candidate,
    Preflight,
    compare,
    dump_both,
    memory_file,
    unread_refusal,
)
from agent.toml import document
from agent.toml.document import Data, Op, Unset, get
from agent.toml.document import Set as SetKey

if TYPE_CHECKING:
    from agent.runtimes.crio.adapter import CrioNode

_AFTER_HANDLERS = frozenset({"hostnetwork_disable_selinux", "disable_hostport_mapping", "timezone"})


def check(node: CrioNode, candidate: Candidate) -> Preflight:
    """Compare the executable's dumps of the present and of the future files.

    Raises Refused if the executable rejects the candidate, or if more than our keys would change.
    """
    executable = node.executable
    if executable is None:
        return Preflight(False, UNKNOWN)
    if late := _late(node, candidate):
        raise unread_refusal(late, f"it is read after {node.drop_in} and can override it")
    # The future files are dumped without those that we cannot parse; then so are the present ones.
    before = _dump_merged if first_unread(node.files) else _dump_on_disk
    dumps = dump_both(
        executable,
        node.root.path,
        lambda: before(node, executable, node.files),
        lambda: _dump_merged(node, executable, candidate.files),
    )
    if isinstance(dumps, str):
        return Preflight(False, dumps)
    tables, runtimes = (get(data, merge.RUNTIMES) or {} for data in dumps)
    missing = next((name for name in candidate.present if name not in runtimes), None)
    both = {*tables} & runtimes.keys() - {*candidate.ours}
    return compare(executable, missing, *(_strip(data, both) for data in dumps))


def _late(node: CrioNode, candidate: Candidate) -> ConfigFile | None:
    """A file that we cannot parse and that can override new keys in our drop-in, None if there is
    none."""
    names = [file.path.host for file in candidate.files]
    if not candidate.present or candidate.files == node.files or node.drop_in.host not in names:
        return None
    return first_unread(candidate.files[names.index(node.drop_in.host) :])


def require_harmless(node: CrioNode) -> None:
    """As `runtimes.preflight.require_harmless`. Raises Refused."""
    preflight.require_harmless(
        node.files,
        node.executable,
        lambda executable: _dump_on_disk(node, executable, node.files),
        lambda executable: _dump_merged(node, executable, node.files),
        _used_keys,
    )


def _used_keys(data: Data) -> Data:
    """The part of a dump that a plan uses."""
    section = get(data, merge.RUNTIME) or {}
    keys = (merge.DEFAULT[-1], merge.SPEC_DIRS[-1], "hooks_dir")
    return {**{key: section[key] for key in keys if key in section}, "runtimes": _handlers(data)}


def _handlers(data: Data) -> dict[str, Data]:
    """The handlers in CRI-O's view, without settings that are none of a handler (see `_strip`)."""
    return {
        name: {key: value for key, value in table.items() if key not in _AFTER_HANDLERS}
        for name, table in (get(data, merge.RUNTIMES) or {}).items()
    }


def _dump_on_disk(node: CrioNode, executable: str, files: Files) -> Dump:
    """The executable's dump of the files on disk, which `files` are."""
    root = node.root.name if node.root.state is not None else None
    return _dump(node, (executable, root or os.devnull, node.directory), (), files)


def _dump_merged(node: CrioNode, executable: str, files: Files) -> Dump:
    """The executable's dump of `files`, with all drop-ins merged into one by our own model."""
    root, others = files[0], merge.merged(files[1:], by_key=node.rules.by_key)
    texts = [root.state.data if root.state else b"", document.render(others).encode()]
    staged = [memory_file(text) for text in texts]
    try:
        first, second = (f"/proc/self/fd/{fd}" for fd in staged)
        return _dump(node, (executable, first, second), staged, files)
    finally:
        for fd in staged:
            os.close(fd)


def _dump(
    node: CrioNode, names: tuple[str, str, str], descriptors: Sequence[int], files: Files
) -> Dump:
    """The output of `crio -c FILE -d DIRECTORY FLAGS config`: all settings that differ from the
    default. `names` are the host paths of the executable, of the root file, which has to exist, and
    of the drop-in directory."""
    executable, root, directory = names
    words = [executable, "-c", root, "-d", directory, *node.overrides.flags, "config"]
    return command.dump(node.host, words, descriptors, [file.source for file in files])


def _strip(data: Data, handlers: Set[str]) -> Data:
    """The settings in a dump that must not differ: all but our keys, and of the handlers only those
    in `handlers`.

    CRI-O prints its settings with a template (template.go of 1.24 to 1.36). The template leaves all
    handlers out if they equal the built-in ones. It prints some keys of `crio.runtime` after the
    handlers, where they belong to the table of the last handler.
    """
    section = get(data, merge.RUNTIME) or {}
    tables = get(data, merge.RUNTIMES) or {}
    moved = {
        key: value
        for table in tables.values()
        for key, value in table.items()
        if key in _AFTER_HANDLERS
    }
    kept = {name: table for name, table in _handlers(data).items() if name in handlers}
    whole = {**section, **moved, "runtimes": kept}
    ops: list[Op] = [SetKey(merge.RUNTIME, whole), Unset(merge.DEFAULT)]
    return document.without_empty(document.apply(data, ops))
