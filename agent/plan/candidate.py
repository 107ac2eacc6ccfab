"""The fingerprint of a candidate, and whether the same candidate has failed before.

Invariant: the fingerprint covers everything that is known to decide whether a change succeeds: the
files, the runtime with its flags, its executable and its unit, the programs and files that the
configuration names, and the version of this agent. A failed candidate is tried again only after one
of these has changed, after a day, or on request.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from typing import Any

from agent import __version__
from agent.errors import CandidateFailed, Refused
from agent.host.paths import HostRoot
from agent.runtimes.base import ConfiguredRuntime, Edits, Runtime
from agent.runtimes.config_file import ConfigFile
from agent.state.store import Store

_DAY = 86400.0  # seconds


def known_failure(
    store: Store, node: ConfiguredRuntime, edits: Edits, now: float
) -> CandidateFailed | None:
    """The error that this candidate failed less than a day ago; None if it may be tried. `now` is
    in seconds since the epoch. Raises Refused if the record of failures cannot be read."""
    failure = store.failures().get(fingerprint(node, edits))
    if failure is None or not 0 <= now - failure.at < _DAY:
        return None
    return CandidateFailed(
        f"cannot apply: the same change failed before ({failure.reason}) and nothing that it "
        "depends on has changed since; correct the cause. It is tried again when the "
        "configuration, the unit, the executable or the agent has changed, after a day, or by "
        "`toolkit-agent apply --retry`"
    )


def loaded_digest(runtime: Runtime, files: tuple[ConfigFile, ...]) -> str:
    """A hash of a runtime's version and of its configuration files."""
    parts = [(file.name, file.state.digest if file.state else None) for file in files]
    return hashlib.sha256(json.dumps([runtime.version, parts]).encode()).hexdigest()


def fingerprint(node: ConfiguredRuntime, edits: Edits) -> str:
    """A hash of everything on which the success of these edits depends."""
    from agent.systemd.units import unit_files  # needed only before a restart

    running = node.runtime.process
    changed = [
        (item.path.host, item.before and item.before.digest, item.after and item.after.digest)
        for item in edits.changes
    ]
    named = {path for file in edits.files for path in _paths(file.data)}
    unit = running.unit if running else None
    places = sorted({*named, *unit_files(node.host, unit), node.executable or ""})
    parts = (
        __version__,
        changed,
        loaded_digest(node.runtime, edits.files),
        edits.desired.to_json(),
        running.command if running else None,
        [(path, _file_identity(node.host, path)) for path in places],
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _paths(data: Any) -> Iterator[str]:
    """Every absolute path among the values of a configuration."""
    if isinstance(data, dict):
        for value in data.values():
            yield from _paths(value)
    elif isinstance(data, list):
        for value in data:
            yield from _paths(value)
    elif isinstance(data, str) and data.startswith("/") and "\0" not in data:
        yield data


def _file_identity(host: HostRoot, path: str) -> tuple[int, ...] | None:
    """The inode, size and modification time of a regular file, None for anything else. A directory
    does not count, because its time changes with its entries."""
    try:
        status = os.stat(host.resolve(path).agent)
    except (OSError, Refused):
        return None
    regular = stat.S_ISREG(status.st_mode)
    return (status.st_ino, status.st_size, status.st_mtime_ns) if regular else None
