"""Asking CRI-O's own executable, before anything is changed, what it makes of the candidate.

Invariant: nothing is written. The files as they will be are handed over in memory, the drop-ins as
one that says what all of them say together; the executable reads the files as they are by itself,
so that a difference in anything but our keys shows where our idea of its merging is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor

from agent import tomledit
from agent.engine.crio.node import CrioNode
from agent.engine.plan import first_difference
from agent.engine.preflight import Candidate, Preflight, memory_file
from agent.errors import Refused
from agent.host.paths import HostRoot
from agent.observe import command
from agent.observe.command import Dump
from agent.runtimes import crio
from agent.runtimes.containerd import ConfigFile
from agent.tomledit import Data, Op, Unset, get
from agent.tomledit import Set as SetKey

_AFTER_HANDLERS = frozenset({"hostnetwork_disable_selinux", "disable_hostport_mapping", "timezone"})


def check(host: HostRoot, node: CrioNode, candidate: Candidate) -> Preflight:
    """Compare what the executable shows of the files as they are and as they will be.

    Raises Refused where it turns the candidate down, or where more would change than our keys.
    """
    if node.executable is None:
        return Preflight(False, "the runtime's executable cannot be told; give --executable-path")
    with ThreadPoolExecutor(1) as other:
        first = other.submit(_as_it_is, host, node, node.executable)
        after = _as_it_will_be(host, node, node.executable, candidate.files)
        before = first.result()
    if before.data is None and not before.rejected:
        return Preflight(False, f"the runtime's executable cannot be asked: {before.error}")
    if before.data is None:
        raise Refused(
            f"cannot use {node.root.path}: {node.executable} rejects it as it is "
            f"({before.error[:300]}); repair it first"
        )
    if after.data is None:
        raise Refused(
            f"cannot apply: {node.executable} rejects the new configuration "
            f"({after.error[:300]}); nothing was changed"
        )
    runtimes = get(after.data, crio.RUNTIMES) or {}
    missing = next((name for name in candidate.present if name not in runtimes), None)
    if missing:
        raise Refused(
            f"cannot apply: the runtime would not have the handler {missing}; nothing was changed"
        )
    both = {*(get(before.data, crio.RUNTIMES) or {})} & runtimes.keys() - {*candidate.ours}
    difference = first_difference(_strip(before.data, both), _strip(after.data, both))
    if difference is not None:
        raise Refused(
            f"cannot apply: {tomledit.dotted(difference)} would change too, says the runtime's own "
            "view of it; nothing was changed; please report this with the output of `plan`"
        )
    return Preflight(True, f"{node.executable} accepts the new configuration")


def _as_it_is(host: HostRoot, node: CrioNode, executable: str) -> Dump:
    root = node.root.name if node.root.state is not None else None
    return command.crio_config(host, executable, root, node.directory)


def _as_it_will_be(
    host: HostRoot, node: CrioNode, executable: str, files: tuple[ConfigFile, ...]
) -> Dump:
    root, others = files[0], crio.merged(files[1:], by_key=node.rules.by_key)
    texts = [root.state.data if root.state else b"", tomledit.render(others).encode()]
    staged = [memory_file(text) for text in texts]
    try:
        names = [f"/proc/self/fd/{fd}" for fd in staged]
        return command.crio_config(host, executable, names[0], names[1], staged)
    finally:
        for fd in staged:
            os.close(fd)


def _strip(data: Data, handlers: Set[str]) -> Data:
    """What must not differ: all settings, and those handlers.

    What CRI-O shows is a template (template.go of 1.24 to 1.36). It leaves handlers out where they
    are those that are built in, all or none; and settings of `crio.runtime` that it has after them
    end up in the last one.
    """
    section = get(data, crio.RUNTIME) or {}
    tables = get(data, crio.RUNTIMES) or {}
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
    ops: list[Op] = [SetKey(crio.RUNTIME, whole), Unset(crio.DEFAULT)]
    return tomledit.without_empty(tomledit.apply(data, ops))
