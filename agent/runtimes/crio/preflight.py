"""The check of a candidate by CRI-O's own executable, before anything is changed.

Invariant: nothing is written. The executable gets the flags of the running CRI-O that set handlers.
The future files are handed over in memory, with all drop-ins merged into one. The executable reads
the present files by itself. So a difference in any other key than ours shows that our model of its
merging is wrong.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from agent.host.paths import HostRoot
from agent.runtimes import command, preflight
from agent.runtimes.command import Dump
from agent.runtimes.config_file import ConfigFile, Files
from agent.runtimes.crio import merge
from agent.runtimes.preflight import (
    Candidate,
    Preflight,
    first_unread,
    memory_file,
    require_same_effect,
    unread_refusal,
)
from agent.toml import document
from agent.toml.document import Data, Op, Set, Unset, get

if TYPE_CHECKING:
    from agent.runtimes.crio.adapter import CrioNode

_AFTER_HANDLERS = frozenset({"hostnetwork_disable_selinux", "disable_hostport_mapping", "timezone"})


def check(host: HostRoot, node: CrioNode, candidate: Candidate) -> Preflight:
    """Compare what the executable shows of the files as they are and as they will be.

    Raises Refused if it rejects the candidate, or if more would change than our keys.
    """
    if node.executable is None:
        return Preflight(False, preflight.UNKNOWN)
    if late := _late(node, candidate):
        raise unread_refusal(late, f"it is read after {node.drop_in} and can have the last word")
    # The candidate is handed over without what we cannot parse; so are the files as they are.
    apart = first_unread(node.files) is not None
    asked = preflight.ask(
        node.executable,
        node.root.path,
        functools.partial(_as_it_will_be, host, node, node.executable, node.files)
        if apart
        else functools.partial(_as_it_is, host, node, node.executable),
        functools.partial(_as_it_will_be, host, node, node.executable, candidate.files),
    )
    if isinstance(asked, str):
        return Preflight(False, asked)
    before, after = asked
    if before.data is None:
        raise preflight.rejected_already(node.executable, node.root.path, before)
    runtimes = get(after, merge.RUNTIMES) or {}
    preflight.refuse_missing(next((n for n in candidate.present if n not in runtimes), None))
    both = {*(get(before.data, merge.RUNTIMES) or {})} & runtimes.keys() - {*candidate.ours}
    preflight.refuse_difference(_strip(before.data, both), _strip(after, both), "view of it")
    return preflight.accepted(node.executable)


def _late(node: CrioNode, candidate: Candidate) -> ConfigFile | None:
    """A file that we cannot parse and that can win over what is new in our drop-in."""
    names = [file.path.host for file in candidate.files]
    if not candidate.present or candidate.files == node.files or node.drop_in.host not in names:
        return None
    return first_unread(candidate.files[names.index(node.drop_in.host) :])


def require_harmless(host: HostRoot, node: CrioNode) -> None:
    """See that the drop-ins that we cannot parse have no effect on our keys. Raises Refused."""
    file, executable = first_unread(node.files), node.executable
    if file is None:
        return
    if executable is None:
        raise unread_refusal(file, preflight.UNSEEN)
    whole = _as_it_is(host, node, executable)
    rest = _as_it_will_be(host, node, executable, node.files)
    require_same_effect(file, executable, (whole, rest), _ours)


def _ours(data: Data) -> Data:
    """The part of CRI-O's view from which a plan is made."""
    section = get(data, merge.RUNTIME) or {}
    keys = (merge.DEFAULT[-1], merge.SPEC_DIRS[-1], "hooks_dir")
    tables = {
        name: {key: value for key, value in table.items() if key not in _AFTER_HANDLERS}
        for name, table in (get(data, merge.RUNTIMES) or {}).items()
    }
    return {**{key: section[key] for key in keys if key in section}, "runtimes": tables}


def _as_it_is(host: HostRoot, node: CrioNode, executable: str) -> Dump:
    root = node.root.name if node.root.state is not None else None
    flags, sources = node.overrides.flags, [file.source for file in node.files]
    return command.crio_config(host, executable, root, node.directory, flags=flags, sources=sources)


def _as_it_will_be(host: HostRoot, node: CrioNode, executable: str, files: Files) -> Dump:
    root, others = files[0], merge.merged(files[1:], by_key=node.rules.by_key)
    texts = [root.state.data if root.state else b"", document.render(others).encode()]
    staged = [memory_file(text) for text in texts]
    try:
        names = [f"/proc/self/fd/{fd}" for fd in staged]
        flags = node.overrides.flags
        sources = [file.source for file in files]
        return command.crio_config(host, executable, names[0], names[1], staged, flags, sources)
    finally:
        for fd in staged:
            os.close(fd)


def _strip(data: Data, handlers: Collection[str]) -> Data:
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
    ops: list[Op] = [Set(merge.RUNTIME, whole), Unset(merge.DEFAULT)]
    return document.without_empty(document.apply(data, ops))
