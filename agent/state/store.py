"""The state directory: the original files, the journal of a change, and failed candidates.

Invariant: with the state directory every change can be undone. An original is stored under its own
hash, and is on disk before another file refers to it. The journal is on disk before the first
change, and is removed last.

    memory.json     the files that we changed, each with its original and our last version
    journal.json    the change in progress, if there is one
    failed.json     candidates that failed
    gpus.json       the last answer of the driver's library about GPUs; only saves time
    restarts.json   the times at which `run` restarted the runtime
    originals/HASH  the original files
    switch-*        the guard of the timer on the host (`agent.transaction.host_timer`)
    lock            the node's lock (`agent.host.lock`)
    aside*          the request of a revert for the lock (`agent.transaction.stand_aside`)
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.errors import Refused, reason
from agent.host import budget, files, lock, trust
from agent.host.files import FileState
from agent.host.paths import HostRoot
from agent.state import schema
from agent.state.schema import AbsolutePath, Count, Keys, Mode, ProcessId, UserId

if TYPE_CHECKING:
    from agent.state.journal import Journal

_FORMAT = 1
_FAILURES = 16  # candidates that are kept; after more changes the oldest no longer matter


@schema.stored
@dataclass(frozen=True)
class Original:
    """A file before our first change, and our last write to it.

    `digest`: that of the original, None if the file did not exist.
    `mode`, `uid`, `gid`: those of the original.
    `written`: the digest of our last write, None if we removed the file.
    `edited`: did somebody change the file between two of our changes?
    `made`: the number of directories above the file that we made for it.
    `keys`: the values that we gave to keys, by path (`agent.runtimes.key_ownership`).
    `text`: the text of our last write, if we created the file.
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
    """The facts about earlier changes that `revert` and later changes need.

    `files`: the changed files by host path.
    `default`: the default runtime before our first change.
    `enabled_cdi`: did we set `enable_cdi = true`?
    `cdi_refused`: a hash of the runtime and the files with which that failed.
    `proven`: the process that was proven last (boot id, pid, start time).
    `moved`: the host paths of directories in which we installed the toolkit under other options.
    """

    files: Mapping[AbsolutePath, Original] = field(default_factory=dict)
    default: str | None = None
    enabled_cdi: bool = False
    cdi_refused: str | None = None
    proven: tuple[str, ProcessId, ProcessId] | None = None
    moved: tuple[AbsolutePath, ...] = ()


class Failure(NamedTuple):
    """The failure of a candidate: its reason, and its time in seconds since the epoch."""

    reason: str
    at: float


class Store:
    """The state directory. Every method raises Refused if the disk refuses a read or a write."""

    def __init__(self, name: str, host: HostRoot | None = None) -> None:
        """`name` is the host path of the directory, with its links not followed. Raises Refused for
        a dangling link."""
        self._host = host or HostRoot("/")
        self._name = name
        self.directory = self._host.resolve(name).agent

    def path(self, name: str) -> str:
        """The agent path of the file `name` in the directory."""
        return os.path.join(self.directory, name)

    def create(self) -> None:
        """Make the directory (0700) and its parents. Raises Refused, and makes nothing, if others
        could write to it."""
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
        """Make the directory if it is missing, and take the node's lock in it. Returns the
        descriptor that holds the lock. Raises Locked if another process holds it."""
        self.create()
        return lock.take(self.path("lock"))

    @contextlib.contextmanager
    def hold_lock(self, inherited: int | None = None) -> Iterator[None]:
        """As `take_lock`, during the context; `inherited` as in `lock.held`."""
        self.create()
        with lock.held(self.path("lock"), inherited):
            yield

    def read(self, name: str) -> FileState | None:
        """The state of the file `name` in the directory, None if it does not exist. Raises Refused
        if a user other than root can write to the directory."""
        path = os.path.join(self._name, name)
        return trust.read_file(self._host, path, budget.STATE.size, allow_sticky=True)[1]

    def sweep(self) -> None:
        """Remove the temporary files of killed processes, and originals that the memory does not
        need. The caller has to hold the lock."""
        for directory in (self.directory, self.path("originals")):
            files.sweep(directory)
        with contextlib.suppress(OSError):  # older versions kept parsed files, with secrets
            files.discard(self.path("parsed.json"))
        with contextlib.suppress(Refused):  # an unreadable file is reported when it is needed
            if self.journal() is None:
                self.prune(self.memory())

    def memory(self) -> Memory:
        """The memory, empty if there is no file yet."""
        data = self._load("memory.json")
        return Memory() if data is None else memory_from_json(data, self.path("memory.json"))

    def remember(self, memory: Memory) -> None:
        """Replace the memory."""
        if memory == Memory():
            self._remove("memory.json")
        else:
            self._save("memory.json", memory_to_json(memory))

    def journal(self) -> Journal | None:
        """The change in progress, None if there is none."""
        data = self._load("journal.json")
        if data is None:
            return None
        from agent.state import journal  # there is one only while a change is made

        try:
            return journal.from_json(data, self._host)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise self._broken("journal.json") from error

    def write_journal(self, journal: Journal) -> None:
        """Write the journal durably."""
        self._save("journal.json", journal.to_json())

    def advance(self, journal: Journal, stage: str) -> Journal:
        """Write the journal durably with its next stage, and return it."""
        journal = replace(journal, stage=stage)
        self.write_journal(journal)
        return journal

    def close_journal(self) -> None:
        """Remove the journal, because the change is made or undone."""
        self._remove("journal.json")

    def failures(self) -> dict[str, Failure]:
        """The failures of candidates by fingerprint, the latest last."""
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
        """Forget all failures, so that every candidate is tried again."""
        self._remove("failed.json")

    def restarts(self, boot_id: str) -> tuple[float, ...]:
        """The times at which `run` restarted the runtime in this boot, in seconds since boot."""
        data = self._load("restarts.json")
        if data is None:
            return ()
        try:
            times: tuple[float, ...] = schema.fitting("tuple[Seconds, ...]", data["times"])
            return times if data["boot_id"] == boot_id else ()
        except (KeyError, ValueError) as error:
            raise self._broken("restarts.json") from error

    def note_restarts(self, boot_id: str, times: tuple[float, ...]) -> None:
        """Replace the times that `restarts` returns for this boot."""
        self._save("restarts.json", {"boot_id": boot_id, "times": times})

    def forget_restarts(self) -> None:
        """Forget all restarts, so that `run` may restart the runtime again."""
        self._remove("restarts.json")

    def keep_original(self, data: bytes) -> str:
        """Store an original durably under its digest, and return the digest."""
        name = files.digest(data)
        stored = self.read(f"originals/{name}")
        if stored is None or stored.digest != name:
            self._write(self.path(f"originals/{name}"), data)
        return name

    def original_bytes(self, digest: str) -> bytes:
        """The bytes of a stored original. Raises Refused if it is missing or damaged."""
        path = self.path(f"originals/{digest}")
        stored = self.read(f"originals/{digest}")
        if stored is None or stored.digest != digest:
            raise Refused(f"cannot restore: {path} is missing or damaged; restore the file by hand")
        return stored.data

    def prune(self, memory: Memory) -> None:
        """Remove the originals that this memory does not need."""
        kept = {original.digest for original in memory.files.values()}
        try:
            for name in files.names(self.path("originals")):
                if name not in kept:
                    files.discard(self.path(f"originals/{name}"))
        except OSError as error:
            raise Refused(f"cannot tidy {self.directory}: {reason(error)}") from error

    def _load(self, name: str) -> dict[str, Any] | None:
        state = self.read(name)
        if state is None:
            return None
        try:
            data = budget.json_value(state.data, budget.STATE)
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
    """A memory as plain data for JSON."""
    return {**asdict(replace(memory, files=dict(memory.files))), "moved": list(memory.moved)}


def memory_from_json(data: Mapping[str, Any], name: str) -> Memory:
    """A memory from plain data. Raises Refused, which names the file `name`, if it is damaged."""
    damaged = f"cannot read {name}: it is damaged; move it away"
    if not {"files", "default"} <= data.keys():
        raise Refused(damaged)
    try:
        return schema.make(Memory, data)
    except (KeyError, ValueError) as error:
        raise Refused(damaged) from error


def hint(why: str) -> str:
    """The remedy, as the end of an error about the state directory with the cause `why`; empty if
    only the rights of root are missing, because then another directory does not help."""
    if os.geteuid() != 0 and "permission denied" in why.lower():
        return ""
    return "; give another state directory with --state-dir"


def current_memory(store: Store) -> Memory:
    """The memory; if a written change waits only for its restart, the memory after that change.
    Raises Refused."""
    journal = store.journal()
    if journal is not None and journal.is_awaited:
        return memory_from_json(journal.memory, "the journal")
    return store.memory()
