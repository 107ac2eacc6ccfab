"""The state directory: the original files, the journal of a change, and failed candidates.

Invariant: with the state directory every change can be undone. An original is stored under its own
hash, and is durable before anything refers to it. The journal is durable before the first change,
and is removed last.

    memory.json     the files that we changed, each with its original and our last version
    journal.json    the change in progress, if there is one
    failed.json     configurations that were tried and failed
    gpus.json       the GPUs as the driver's library last reported them; only saves time
    restarts.json   when `run` restarted the runtime
    originals/HASH  the original files
    switch-*        the undo by a timer on the host (see `agent.transaction.host_timer`)
    lock            see `agent.host.lock`
    aside*          how a revert gets the lock of a `run` (see `agent.transaction.stand_aside`)
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from agent.errors import Refused, reason
from agent.host import budget, files, lock, trust
from agent.host.files import FileState
from agent.host.paths import HostRoot
from agent.state import schema
from agent.state.schema import AbsolutePath, Base64, Count, Keys, Mode, ProcessId, Table, UserId

_FORMAT = 1
_FAILURES = 16  # candidates that are kept; after more changes the oldest no longer matter


@schema.stored
@dataclass(frozen=True)
class Original:
    """A file as it was before our first change, and what we wrote last.

    `digest` is None if there was no file. `written` is the digest of what we wrote last.
    `edited`: somebody changed the file between two of our changes. `made` is the number of
    directories above the file that we made for it. `keys` are the values that we gave to keys, by
    path (see `agent.runtimes.key_ownership`). `text` is what we wrote last to a file that we made.
    Older versions noted neither keys nor text.
    """

    digest: str | None
    mode: Mode
    uid: UserId
    gid: UserId
    written: str | None
    edited: bool = False
    made: Count = 0
    keys: Mapping[Keys, Any] = field(default_factory=dict)
    text: str | None = None


@schema.stored
@dataclass(frozen=True)
class Memory:
    """All that `revert` needs.

    `files` are the changed files by host path. `default` is the default runtime before our first
    change. `enabled_cdi`: we set `enable_cdi = true`. `cdi_refused` is a hash of the runtime and
    the files with which that failed. `proven` is the process that was proven last (boot id, pid,
    start time). `moved` are host paths of directories in which we installed a toolkit earlier.
    """

    files: Mapping[AbsolutePath, Original] = field(default_factory=dict)
    default: str | None = None
    enabled_cdi: bool = False
    cdi_refused: str | None = None
    proven: tuple[str, ProcessId, ProcessId] | None = None
    moved: tuple[AbsolutePath, ...] = ()


@schema.stored
@dataclass(frozen=True)
class Entry:
    """One file of a change: its digests before and after, None for no file.

    `made`, `keys` and `text` are as in `Original`. `outside` is the directory (host path) for
    temporary files that may not lie beside the file, if there is one. `agent` and `outside_agent`
    are not stored, because a container and the host have different names for one file.
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
class Failure:
    """Why a candidate failed, and when, in seconds since the epoch."""

    reason: str
    at: float


TIDYING = "tidying"
AWAITING = "awaiting-restart"


@dataclass(frozen=True)
class Journal:
    """A change in progress.

    stage: prepared, written, restarted or awaiting-restart; tidying if only some temporary files
        of ours are still to be removed.
    wanted, before: `Desired` as JSON: the state that proves the change, and the states of which one
        proves the undo.
    process: the identity of the runtime that ran with the old files.
    kind, socket: which runtime, and the host path of its socket.
    restart: how the runtime is restarted (kind, target); None if no restart is needed.
    twin, barrier: the status files before the change (base64).
    memory, old_memory: the memory after success, and before the change.
    switch: the mark of the timer on the host that undoes the change, if there is one.
    executable: the host path of the runtime's executable.
    transaction: the id under which the log has the change; None in a journal of an older version.
    stuck: set if the runtime could not be brought back: a hash of the files and the executable
        at that time, and the error.
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


class Store:
    """The state directory. Every method raises Refused if the disk refuses a read or a write."""

    def __init__(self, name: str, host: HostRoot | None = None) -> None:
        """`name` is the directory's host path, with links in it as they were given. Raises Refused
        for a dangling link."""
        self._host = host or HostRoot("/")
        self._name = name
        self.directory = self._host.resolve(name).agent

    def path(self, name: str) -> str:
        """The agent path of a name in the directory."""
        return os.path.join(self.directory, name)

    def create(self) -> None:
        """Make the directory (0700) with its parents. Raises Refused, with nothing made, if
        others could write to it."""
        purpose, above = f"use the state directory {self.directory}", os.path.dirname(self._name)
        try:
            if not os.path.isdir(self.directory):
                trust.make_directory(self._host, above, purpose, allow_sticky=True)
            trust.make_directory(self._host, self._name, purpose, 0o700)
            files.make_directories(self.path("originals"), 0o700)
        except (OSError, Refused) as error:
            why = f"cannot {purpose}: {reason(error)}" if isinstance(error, OSError) else str(error)
            raise Refused(f"{why}{hint(why)}") from error

    def take_lock(self) -> int:
        """Take the lock of the node, in the directory, which is made if it is missing. Gives the
        descriptor that holds it. Raises Locked if another process holds it, Refused."""
        self.create()
        return lock.take(self.path("lock"))

    @contextlib.contextmanager
    def hold_lock(self, inherited: int | None = None) -> Iterator[None]:
        """The same for the length of the block; `inherited` as in `lock.held`."""
        self.create()
        with lock.held(self.path("lock"), inherited):
            yield

    def read(self, name: str) -> FileState | None:
        """The file of that name, None if there is none. Raises Refused if a user other than
        root can write to the directory."""
        path = os.path.join(self._name, name)
        return trust.read_file(self._host, path, budget.STATE.size, allow_sticky=True)[1]

    def sweep(self) -> None:
        """Remove what killed processes left, and originals that nothing refers to. Call it with the
        lock held."""
        for directory in (self.directory, self.path("originals")):
            files.sweep(directory)
        with contextlib.suppress(OSError):  # older versions kept parsed files, with secrets
            files.discard(self.path("parsed.json"))
        with contextlib.suppress(Refused):  # an unreadable file is reported where it is needed
            if self.journal() is None:
                self.prune(self.memory())

    def memory(self) -> Memory:
        """The memory; an empty one if there is no file yet."""
        data = self._load("memory.json")
        return Memory() if data is None else memory_from_json(data, self.path("memory.json"))

    def remember(self, memory: Memory) -> None:
        """Replace the memory."""
        if memory == Memory():
            self._remove("memory.json")
        else:
            self._save("memory.json", memory_to_json(memory))

    def journal(self) -> Journal | None:
        """The change in progress, if there is one."""
        data = self._load("journal.json")
        if data is None:
            return None
        try:
            if isinstance(data["before"], dict):  # older versions had one state
                data["before"] = [data["before"]]
            for entry in data["entries"]:
                outside = entry.get("outside")
                entry["agent"] = self._host.agent_path(entry["host"])
                entry["outside_agent"] = self._host.agent_path(outside) if outside else None
            return schema.make(Journal, data)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise self._broken("journal.json") from error

    def write_journal(self, journal: Journal) -> None:
        """Write the journal, durably."""
        data = asdict(journal)
        for entry in data["entries"]:
            del entry["agent"], entry["outside_agent"]
        self._save("journal.json", data)

    def advance(self, journal: Journal, stage: str) -> Journal:
        """Write the journal with its next stage, durably, and give it."""
        journal = replace(journal, stage=stage)
        self.write_journal(journal)
        return journal

    def close_journal(self) -> None:
        """Remove the journal, because the change is made or undone."""
        self._remove("journal.json")

    def failures(self) -> dict[str, Failure]:
        """The candidates that failed, by fingerprint, the last one last."""
        candidates = (self._load("failed.json") or {}).get("candidates")
        try:
            return {
                # Older versions noted only the reason; such a failure is too old to count.
                str(mark): Failure(item, 0.0)
                if isinstance(item, str)
                else Failure(str(item["why"]), float(item["at"]))
                for mark, item in (candidates or {}).items()
            }
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._broken("failed.json") from error

    def remember_failure(self, fingerprint: str, failure: Failure) -> None:
        """Note a candidate that failed, so that it is not tried again unchanged."""
        known = {mark: old for mark, old in self.failures().items() if mark != fingerprint}
        latest = [*known.items(), (fingerprint, failure)][-_FAILURES:]
        data = {mark: {"why": item.reason[:1000], "at": item.at} for mark, item in latest}
        self._save("failed.json", {"candidates": data})

    def forget_failure(self) -> None:
        """Let every candidate be tried again."""
        self._remove("failed.json")

    def restarts(self, boot_id: str) -> tuple[float, ...]:
        """When `run` restarted the runtime since this boot (seconds since the boot)."""
        data = self._load("restarts.json")
        if data is None:
            return ()
        try:
            times: tuple[float, ...] = schema.fitting("tuple[Seconds, ...]", data["times"])
            return times if data["boot_id"] == boot_id else ()
        except (KeyError, ValueError) as error:
            raise self._broken("restarts.json") from error

    def note_restarts(self, boot_id: str, times: tuple[float, ...]) -> None:
        """Replace what `restarts` gives."""
        self._save("restarts.json", {"boot_id": boot_id, "times": times})

    def forget_restarts(self) -> None:
        """Let `run` restart the runtime again."""
        self._remove("restarts.json")

    def keep_original(self, data: bytes) -> str:
        """Store an original durably under its digest, and give the digest."""
        name = files.digest(data)
        found = self.read(f"originals/{name}")
        if found is None or found.digest != name:
            self._write(self.path(f"originals/{name}"), data)
        return name

    def original_bytes(self, digest: str) -> bytes:
        """A stored original. Raises Refused if it is missing or damaged."""
        path = self.path(f"originals/{digest}")
        found = self.read(f"originals/{digest}")
        if found is None or found.digest != digest:
            raise Refused(f"cannot restore: {path} is missing or damaged; restore the file by hand")
        return found.data

    def prune(self, memory: Memory) -> None:
        """Remove the originals that the memory does not refer to."""
        kept = {original.digest for original in memory.files.values()}
        try:
            for name in files.names(self.path("originals")):
                if name not in kept:
                    files.discard(self.path(f"originals/{name}"))
        except OSError as error:
            raise Refused(f"cannot tidy {self.directory}: {reason(error)}") from error

    def _load(self, name: str) -> dict[str, Any] | None:
        found = self.read(name)
        if found is None:
            return None
        try:
            data = budget.json_value(found.data, budget.STATE)
        except ValueError as error:
            raise self._broken(name) from error
        if not isinstance(data, dict) or data.pop("format", None) != _FORMAT:
            raise self._broken(name)
        return data

    def _broken(self, name: str) -> Refused:
        return Refused(
            f"cannot read {self.path(name)}: it is damaged or of another version; look at the "
            "runtime's configuration, then move the file away"
        )

    def _save(self, name: str, data: Mapping[str, Any]) -> None:
        text = json.dumps({"format": _FORMAT, **data}, indent=1) + "\n"
        if len(text) > budget.STATE.size:
            raise Refused(
                f"cannot write {self.path(name)}: {budget.too_large(budget.STATE)}, and would not "
                "be read again; make the runtime's configuration files smaller"
            )
        self._write(self.path(name), text.encode())

    def _write(self, path: str, data: bytes) -> None:
        try:
            files.write(path, files.new_state(data, 0o600))
        except OSError as error:
            raise Refused(f"cannot write {path}: {reason(error)}") from error

    def _remove(self, name: str) -> None:
        if not os.path.lexists(self.path(name)):  # checked first, because of read-only disks
            return
        try:
            files.remove(self.path(name))
        except OSError as error:
            raise Refused(f"cannot remove {self.path(name)}: {reason(error)}") from error


def memory_to_json(memory: Memory) -> dict[str, Any]:
    """A memory as plain data."""
    return {**asdict(replace(memory, files=dict(memory.files))), "moved": list(memory.moved)}


def memory_from_json(data: Mapping[str, Any], name: str) -> Memory:
    """A memory from plain data. Raises Refused, with the file `name`, if it is damaged."""
    damaged = f"cannot read {name}: it is damaged; move it away"
    if not {"files", "default"} <= data.keys():
        raise Refused(damaged)
    try:
        return schema.make(Memory, data)
    except (KeyError, ValueError) as error:
        raise Refused(damaged) from error


def parents(path: str, count: int) -> tuple[str, ...]:
    """The `count` innermost directories above a path, innermost first."""
    found = []
    for _ in range(count):
        path = os.path.dirname(path)
        found.append(path)
    return tuple(found)


def encode(data: bytes | None) -> str | None:
    """Bytes for the journal."""
    return None if data is None else base64.b64encode(data).decode("ascii")


def decode(text: str | None) -> bytes | None:
    """Bytes from the journal."""
    return None if text is None else base64.b64decode(text)


def is_written(journal: Journal) -> bool:
    """Do all files have the content that the change writes?"""
    try:
        return all(digest_of(entry.agent, entry.host) == entry.after for entry in journal.entries)
    except Refused:
        return False  # it is a link or a directory now


def hint(why: str) -> str:
    """What to do, as the end of an error of the state directory, whose cause is `why`. Another
    directory does not help a person who only lacks root."""
    if os.geteuid() != 0 and "permission denied" in why.lower():
        return ""
    return "; give another state directory with --state-dir"


def current_memory(store: Store) -> Memory:
    """The memory; if a written change only waits for its restart, the memory with that change.
    Raises Refused."""
    journal = store.journal()
    if journal is not None and journal.stage == AWAITING and is_written(journal):
        return memory_from_json(journal.memory, "the journal")
    return store.memory()


def digest_of(agent: str, host: str) -> str | None:
    """The digest of a file, None for no file. Raises Refused."""
    found = files.read(agent, host)
    return found.digest if found else None
