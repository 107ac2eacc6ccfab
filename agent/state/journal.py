"""The journal of a change in progress, as data. `Store` reads and writes it.

Invariant: it has all that is needed to finish or to undo the change.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from agent.errors import Refused
from agent.host import files
from agent.host.paths import HostRoot
from agent.state import schema
from agent.state.schema import AbsolutePath, Base64, Count, Keys, Mode, ProcessId, Table, UserId

TIDYING = "tidying"  # a stage of the journal: only temporary files remain to be removed
AWAITING = "awaiting-restart"  # a stage: somebody else has to restart the runtime


@schema.stored
@dataclass(frozen=True)
class Entry:
    """One file of a change: its host path, its agent path, and its digests before and after (None:
    no file).

    `made`, `keys` and `text` are as in `Original`. `outside` is the directory (host path) for
    temporary files that must not be beside the file, None if they may be there. `agent` and
    `outside_agent` are not stored, because agent paths differ between a container and the host.
    """

    host: AbsolutePath
    agent: str
    before: str | None
    after: str | None
    mode: Mode
    uid: UserId
    gid: UserId
    made: Count = 0
    outside: AbsolutePath | None = None
    outside_agent: str | None = None
    keys: Mapping[Keys, Any] = field(default_factory=dict)
    text: str | None = None

    @property
    def made_directories(self) -> tuple[str, ...]:
        """Agent paths of the directories that we made for the file."""
        return parents(self.agent, self.made)

    @property
    def undo(self) -> str:
        """The path of a copy of the original, made before the change so that a full disk cannot
        prevent an undo."""
        return self._near("undo", self.outside_agent)

    @property
    def new(self) -> str:
        """The path of the new content before it gets its final name."""
        return self._near("new")

    @property
    def unfinished(self) -> str:
        """The path of the new content while it is incomplete."""
        return self._near("new", self.outside_agent)

    def _near(self, what: str, directory: str | None = None) -> str:
        beside, name = os.path.split(self.agent)
        return os.path.join(directory or beside, f".{name}.toolkit-agent-{what}~")


@dataclass(frozen=True)
class Journal:
    """A change in progress.

    `purpose`: "apply" or "revert". `boot_id`: that of the boot in which the change began.
    `stage`: prepared, written, restarted, awaiting-restart or tidying.
    `wanted`, `before`: `Desired` as JSON: the state that proves the change, and the states of which
    one proves the undo.
    `process`: the identity of the process that ran on the old files.
    `kind`, `socket`: the kind of the runtime, and the host path of its socket.
    `restart`: the kind and the target of the restart, None if no restart is needed.
    `memory`, `old_memory`: the memory after a success, and before the change.
    `fingerprint`: that of the candidate.
    `twin`, `barrier`: the status files before the change (base64).
    `switch`: the identifier of the timer on the host that undoes the change, None without one.
    `executable`: the host path of the runtime's executable.
    `stuck`: a hash of the files and the executable, and the error, if the runtime could not be
    brought back.
    `transaction`: the id of the change in the log; None in a journal of an older version.
    """

    purpose: str
    boot_id: str
    stage: str
    entries: tuple[Entry, ...]
    wanted: Table
    before: tuple[Table, ...]
    process: tuple[ProcessId, ProcessId] | None
    kind: str
    socket: AbsolutePath
    restart: tuple[str, str] | None
    memory: Table
    old_memory: Table
    fingerprint: str
    twin: Base64 | None = None
    barrier: Base64 | None = None
    switch: str | None = None
    executable: AbsolutePath | None = None
    stuck: tuple[str, str] | None = None
    transaction: str | None = None

    @property
    def is_awaited(self) -> bool:
        """Does the written change only wait for a restart?"""
        return self.stage == AWAITING and is_written(self)

    def to_json(self) -> dict[str, Any]:
        """The journal as plain data."""
        data = asdict(self)
        for entry in data["entries"]:
            del entry["agent"], entry["outside_agent"]
        return data


def from_json(data: dict[str, Any], host: HostRoot) -> Journal:
    """A journal from plain data. Raises TypeError, KeyError, AttributeError or ValueError."""
    if isinstance(data["before"], dict):  # older versions had one state
        data["before"] = [data["before"]]
    for entry in data["entries"]:
        outside = entry.get("outside")
        entry["agent"] = host.agent_path(entry["host"])
        entry["outside_agent"] = host.agent_path(outside) if outside else None
    return schema.make(Journal, data)


def parents(path: str, count: int) -> tuple[str, ...]:
    """The `count` innermost directories above a path, the innermost first."""
    above = []
    for _ in range(count):
        path = os.path.dirname(path)
        above.append(path)
    return tuple(above)


def encode(data: bytes | None) -> str | None:
    """Bytes as base64, for the journal."""
    return None if data is None else base64.b64encode(data).decode("ascii")


def decode(text: str | None) -> bytes | None:
    """The bytes of base64 in the journal."""
    return None if text is None else base64.b64decode(text)


def is_written(journal: Journal) -> bool:
    """Do all files have the content that the change writes?"""
    try:
        return all(digest_of(entry.agent, entry.host) == entry.after for entry in journal.entries)
    except Refused:
        return False  # a link or a directory is in place of the file


def digest_of(agent: str, host: str) -> str | None:
    """The digest of the file at an agent path, None if it does not exist. `host` is its path in
    messages. Raises Refused."""
    state = files.read(agent, host)
    return state.digest if state else None
