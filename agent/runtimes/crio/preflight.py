"""The check of a candidate by CRI-O's own executable, before anything is changed.

Invariant: nothing is written. The executable gets the flags of the running CRI-O that set handlers.
The future files are handed over in memory, with all drop-ins merged into one. The executable reads
the present files by itself. So a difference in any other key than ours shows that our model of its
merging is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

from agent.runtimes import command, preflight
from agent.runtimes.command import Dump
from agent.runtimes.config_file import ConfigFile, Files
from agent.runtimes.crio import merge
from agent.runtimes.preflight import (
    UNKNOWN,
    Candidate,
    Preflight,
    ask,
    compare,
    first_unread,
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
    """Compare what the executable shows of the files as they are and as they will be.

    Raises Refused if it rejects the candidate, or if more would change than our keys.
    """
    executable = node.executable
    if executable is None:
        return Preflight(False, UNKNOWN)
    if late := _late(node, candidate):
        raise unread_refusal(late, f"it is read after {node.drop_in} and can have the last word")
    # The candidate is handed over without what we cannot parse; so are the files as they are.
    before = _as_it_will_be if first_unread(node.files) else _as_it_is
    asked = ask(
        executable,
        node.root.path,
        lambda: before(node, executable, node.files),
        lambda: _as_it_will_be(node, executable, candidate.files),
    )
    if isinstance(asked, str):
        return Preflight(False, asked)
    tables, runtimes = (get(data, merge.RUNTIMES) or {} for data in asked)
    missing = next((name for name in candidate.present if name not in runtimes), None)
    both = {*tables} & runtimes.keys() - {*candidate.ours}
    return compare(executable, missing, *(_strip(data, both) for data in asked))


def _late(node: CrioNode, candidate: Candidate) -> ConfigFile | None:
    """A file that we cannot parse and that can win over what is new in our drop-in."""
    names = [file.path.host for file in candidate.files]
    if not candidate.present or candidate.files == node.files or node.drop_in.host not in names:
        return None
    return first_unread(candidate.files[names.index(node.drop_in.host) :])


def require_harmless(node: CrioNode) -> None:
    """As `runtimes.preflight.require_harmless`."""
    preflight.require_harmless(
        node.files,
        node.executable,
        lambda executable: _as_it_is(node, executable, node.files),
        lambda executable: _as_it_will_be(node, executable, node.files),
        _ours,
    )


def _ours(data: Data) -> Data:
    """The part of CRI-O's view from which a plan is made."""
    section = get(data, merge.RUNTIME) or {}
    keys = (merge.DEFAULT[-1], merge.SPEC_DIRS[-1], "hooks_dir")
    tables = {
        name: {key: value for key, value in table.items() if key not in _AFTER_HANDLERS}
        for name, table in (get(data, merge.RUNTIMES) or {}).items()
    }
    return {**{key: section[key] for key in keys if key in section}, "runtimes": tables}


def _as_it_is(node: CrioNode, executable: str, files: Files) -> Dump:
    """What CRI-O shows of these files, which are those on disk."""
    root = node.root.name if node.root.state is not None else None
    return _dump(node, (executable, root or os.devnull, node.directory), (), files)


def _as_it_will_be(node: CrioNode, executable: str, files: Files) -> Dump:
    """What CRI-O shows of these files, with all drop-ins merged into one."""
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
    """`crio -c FILE -d DIRECTORY FLAGS config`: all settings that differ from the default. `names`
    are those of the executable, the root file, which has to exist, and the directory."""
    executable, root, directory = names
    words = [executable, "-c", root, "-d", directory, *node.overrides.flags, "config"]
    return command.dump(node.host, words, descriptors, [file.source for file in files])


def _strip(data: Data, handlers: Set[str]) -> Data:
    """What must not differ: all settings, and those handlers.

    What CRI-O shows is a template (template.go of 1.24 to 1.36). It leaves handlers out if they
    are those that are built in, all or none; and settings of `crio.runtime` that it has after them
    end up in the last one.
    """
    section = get(data, merge.RUNTIME) or {}
    tables = get(data, merge.RUNTIMES) or {}
    moved = {
        key: value
        for table in tables.values()
        for key, value in table.items()
        if key in _AFTER_HANDLERS
    }
    kept = {
        name: {key: value for key, value in tables[name].items() if key not in _AFTER_HANDLERS}
        for name in handlers
    }
    whole = {**section, **moved, "runtimes": kept}
    ops: list[Op] = [SetKey(merge.RUNTIME, whole), Unset(merge.DEFAULT)]
    return document.without_empty(document.apply(data, ops))
