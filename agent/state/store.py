"""What the agent remembers on the host: originals, the journal of a change, and what failed.

Invariant: the state directory can always undo. Originals are bytes under their own hash, durable
before anything refers to them; the journal is durable before the first change and is removed last.

    memory.json     files that we changed, each with its original and what we last wrote
    journal.json    the change in progress, if any
    failed.json     candidates that failed
    originals/HASH  bytes
    lock
    aside*          how a revert gets the lock of a `run` (see `aside`)
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from agent.errors import Refused, reason
from agent.host import budget, files, trusted
from agent.host.files import FileState
from agent.host.paths import HostRoot
from agent.state import checked

_FORMAT = 1
_FAILURES = 16  # candidates; more are made by more changes, after which old ones say little


@dataclass(frozen=True, slots=True)
class Original:
    """A file as it was before we first changed it, and our last word on it.

    `digest` is None where there was no file. `written` is the digest of what we wrote last;
    `edited`: somebody changed the file between two of our changes. `made`: how many of the
    directories above it, innermost first, we made for it. `keys` are the values that we gave to
    keys of it, by path (see `ownership`), and `text` is what we wrote last, of a file that we made;
    an older version noted neither.
    """

    digest: str | None
    mode: int
    uid: int
    gid: int
    written: str | None
    edited: bool = False
    made: int = 0
    keys: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Everything needed for `revert`, by host path; the default runtime of before our first
    change; whether `enable_cdi = true` is our doing; a hash of the runtime and the files on
    which that could not be had; the process that was proven last (boot id, pid, start); and
    directories (host paths) in which we installed a toolkit that has another one by now."""

    files: Mapping[str, Original] = field(default_factory=dict)
    default: str | None = None
    enabled_cdi: bool = False
    cdi_refused: str | None = None
    proven: tuple[str, int, int] | None = None
    moved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a change: digests before and after, None for "no file"; `made`, `keys` and
    `text` as above;
    `outside` the directory (host path) for what may not lie beside it, if that is so.

    `agent` and `outside_agent` are not stored: a container and the host see the same file under
    different names.
    """

    host: str
    agent: str
    before: str | None
    after: str | None
    mode: int
    uid: int
    gid: int
    made: int = 0
    outside: str | None = None
    outside_agent: str | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None

    @property
    def made_directories(self) -> tuple[str, ...]:
        """Agent paths of the directories that we made for it."""
        return parents(self.agent, self.made)

    @property
    def undo(self) -> str:
        """Where the original waits beside the file, or outside, so that a full disk cannot stop an
        undo."""
        return self._near("undo", self.outside_agent)

    @property
    def new(self) -> str:
        """Where the new content is before it gets its name."""
        return self._near("new")

    @property
    def unfinished(self) -> str:
        """Where it is while it is written; the same, but for what is read under any name."""
        return self._near("new", self.outside_agent)

    def _near(self, what: str, directory: str | None = None) -> str:
        beside, name = os.path.split(self.agent)
        return os.path.join(directory or beside, f".{name}.toolkit-agent-{what}~")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a candidate failed, and when, in seconds since the epoch."""

    why: str
    at: float


TIDYING = "tidying"
AWAITING = "awaiting-restart"


@dataclass(frozen=True, slots=True)
class Journal:
    """A change in progress. `stage` is prepared, written, restarted or awaiting-restart; tidying
    where all is done but for files of ours that could not be removed yet.

    `wanted` and `before` are `Desired` as JSON: what proves the change, and what proves the undo,
    of which one has to hold;
    `process` is the Identity of the runtime that ran on the old files, `kind` and `socket` (host
    path) where it listens, `restart` (kind, target) how it is restarted, None where nothing has to
    be. `twin` and `barrier` are the status files of before (base64), `memory` is what to
    remember after success, `old_memory` what was remembered before. `switch` marks the dead man's
    switch on the host, if there is one. `executable` is the runtime's (host path). `stuck` is set
    where the runtime could not be brought back: a hash of files and executable at that time, and
    what was said.
    """

    purpose: str
    boot_id: str
    stage: str
    entries: tuple[Entry, ...]
    wanted: Mapping[str, Any]
    before: tuple[Mapping[str, Any], ...]
    process: tuple[int, int] | None
    kind: str
    socket: str
    restart: tuple[str, str] | None
    memory: Mapping[str, Any]
    old_memory: Mapping[str, Any]
    fingerprint: str
    twin: str | None = None
    barrier: str | None = None
    switch: str | None = None
    executable: str | None = None
    stuck: tuple[str, str] | None = None


class Store:
    """The state directory. Every method raises Refused where the disk does not play along."""

    def __init__(self, name: str, host: HostRoot | None = None) -> None:
        """`name` is the directory's host path, links in it as they were given. Raises Refused
        where they lead nowhere."""
        self._host = host or HostRoot("/")
        self._name = name
        self.directory = self._host.resolve(name).agent

    def path(self, name: str) -> str:
        """The agent path of a name in the directory."""
        return os.path.join(self.directory, name)

    def create(self) -> None:
        """Make the directory (0700) with its parents. Raises Refused, with nothing made, where it
        would not be root's alone."""
        purpose, above = f"use the state directory {self.directory}", os.path.dirname(self._name)
        try:
            if not os.path.isdir(self.directory):
                trusted.directory(self._host, above, purpose, sticky_is_fine=True)
            trusted.directory(self._host, self._name, purpose, 0o700)
            files.make_directories(self.path("originals"), 0o700)
        except (OSError, Refused) as error:
            why = f"cannot {purpose}: {reason(error)}" if isinstance(error, OSError) else str(error)
            raise Refused(f"{why}; or give another one with --state-dir") from error

    def read(self, name: str) -> FileState | None:
        """The file of that name, None where there is none; of anybody's directory it would be
        anybody's word."""
        path = os.path.join(self._name, name)
        return trusted.read(self._host, path, budget.STATE.size, sticky_is_fine=True)[1]

    def sweep(self) -> None:
        """Remove what killed processes left, stored bytes that nothing refers to included; for the
        holder of the lock."""
        for directory in (self.directory, self.path("originals")):
            files.sweep(directory)
        with contextlib.suppress(OSError):  # earlier versions kept parsed files, secrets included
            files.discard(self.path("parsed.json"))
        with contextlib.suppress(Refused):  # what cannot be read or removed is told by others
            if self.journal() is None:
                self.prune(self.memory())

    def memory(self) -> Memory:
        """What is remembered; nothing where there is no file yet."""
        data = self._load("memory.json")
        return Memory() if data is None else memory_from_json(data, self.path("memory.json"))

    def remember(self, memory: Memory) -> None:
        """Replace what is remembered."""
        if memory == Memory():
            self._remove("memory.json")
        else:
            self._save("memory.json", memory_to_json(memory))

    def journal(self) -> Journal | None:
        """The unfinished change, if any."""
        data = self._load("journal.json")
        if data is None:
            return None
        try:
            checked.require(data, checked.JOURNAL)
            entries = tuple(self._entry(entry) for entry in data.pop("entries"))
            pairs: dict[str, Any] = {
                key: tuple(value) if (value := data.pop(key)) else None
                for key in ("process", "restart")
            }
            stuck = data.pop("stuck", None)  # earlier versions had none
            pairs["stuck"] = tuple(stuck) if stuck else None
            before = data.pop("before")  # earlier versions had one state
            states = (before,) if isinstance(before, dict) else tuple(before)
            return Journal(entries=entries, before=states, **pairs, **data)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise self._broken("journal.json") from error

    def _entry(self, data: Mapping[str, Any]) -> Entry:
        checked.require(data, checked.FILE)
        outside = data.get("outside")
        where = self._host.agent_path(outside) if outside else None
        agent = self._host.agent_path(data["host"])
        return Entry(agent=agent, outside_agent=where, **data)

    def write_journal(self, journal: Journal) -> None:
        """Make the journal durable."""
        data = asdict(journal)
        for entry in data["entries"]:
            del entry["agent"], entry["outside_agent"]
        self._save("journal.json", data)

    def advance(self, journal: Journal, stage: str) -> Journal:
        """The journal at its next stage, durable."""
        journal = replace(journal, stage=stage)
        self.write_journal(journal)
        return journal

    def close_journal(self) -> None:
        """The change is over, one way or the other."""
        self._remove("journal.json")

    def failed(self) -> dict[str, Failure]:
        """The candidates that failed, by their marks, the last one last."""
        candidates = (self._load("failed.json") or {}).get("candidates")
        try:
            return {
                # Earlier versions had the reason alone: it is too old to count.
                str(mark): Failure(item, 0.0)
                if isinstance(item, str)
                else Failure(str(item["why"]), float(item["at"]))
                for mark, item in (candidates or {}).items()
            }
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._broken("failed.json") from error

    def remember_failure(self, fingerprint: str, failure: Failure) -> None:
        """Keep a candidate from being tried again as it is."""
        known = {mark: old for mark, old in self.failed().items() if mark != fingerprint}
        latest = [*known.items(), (fingerprint, failure)][-_FAILURES:]
        data = {mark: {"why": item.why[:1000], "at": item.at} for mark, item in latest}
        self._save("failed.json", {"candidates": data})

    def forget_failure(self) -> None:
        """Any candidate may be tried."""
        self._remove("failed.json")

    def keep(self, data: bytes) -> str:
        """Store bytes durably under their digest."""
        name = files.digest(data)
        found = self.read(f"originals/{name}")
        if found is None or found.digest != name:
            self._write(self.path(f"originals/{name}"), data)
        return name

    def bytes_of(self, digest: str) -> bytes:
        """Stored bytes. Raises Refused where they are gone or are not what they were."""
        path = self.path(f"originals/{digest}")
        found = self.read(f"originals/{digest}")
        if found is None or found.digest != digest:
            raise Refused(f"cannot restore: {path} is missing or damaged; restore the file by hand")
        return found.data

    def prune(self, memory: Memory) -> None:
        """Drop stored bytes that nothing refers to."""
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
        if not os.path.lexists(self.path(name)):  # looked at first, for a read-only disk
            return
        try:
            files.remove(self.path(name))
        except OSError as error:
            raise Refused(f"cannot remove {self.path(name)}: {reason(error)}") from error


def memory_to_json(memory: Memory) -> dict[str, Any]:
    """Plain data of a memory."""
    return {**asdict(replace(memory, files=dict(memory.files))), "moved": list(memory.moved)}


def memory_from_json(data: Mapping[str, Any], name: str) -> Memory:
    """The memory of plain data. Raises Refused, naming the file, where it is none."""
    try:
        checked.require(data, checked.MEMORY)
        for item in data["files"].values():
            checked.require(item, checked.FILE)
        originals = {host: Original(**item) for host, item in data["files"].items()}
        proven = data.get("proven")
        return Memory(
            originals, data["default"], data["enabled_cdi"], data["cdi_refused"],
            (str(proven[0]), int(proven[1]), int(proven[2])) if proven else None,
            tuple(map(str, data.get("moved", ()))),
        )  # fmt: skip
    except (TypeError, KeyError, AttributeError, IndexError, ValueError, OverflowError) as error:
        raise Refused(f"cannot read {name}: it is damaged; move it away") from error


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
    """Are all files as the change wanted them?"""
    try:
        return all(digest_of(entry.agent, entry.host) == entry.after for entry in journal.entries)
    except Refused:
        return False  # a link or a directory by now


def current_memory(store: Store) -> Memory:
    """What is remembered; where a written change waits for its restart, that change included: its
    files are as we wrote them. Raises Refused."""
    journal = store.journal()
    if journal is not None and journal.stage == AWAITING and is_written(journal):
        return memory_from_json(journal.memory, "the journal")
    return store.memory()


def digest_of(agent: str, host: str) -> str | None:
    """Digest of a file that is there, None for none. Raises Refused."""
    found = files.read(agent, host)
    return found.digest if found else None
