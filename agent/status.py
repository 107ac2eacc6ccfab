"""The status file: how the decision reaches the device plugin.

Invariant: a file is either whole or absent, `toolkit-ready` never exists without its twin having
been written for the same proof, and equal content is never rewritten (DESIGN section 7).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

from agent.errors import AgentError, Refused, reason
from agent.host import budget, files, trusted
from agent.host.files import FileState
from agent.host.paths import HostRoot

VERSION = 1
READY = "toolkit-ready"
TWIN = ".toolkit-ctr-ready"
ERROR = ".toolkit-ctr-error"

_OTHER = re.compile(r"[^A-Za-z0-9_./:,@%+=-]")
_LINE = re.compile(r"[A-Z_][A-Z0-9_]*=[A-Za-z0-9_./:,@%+=-]*")
_MOMENT = frozenset({"TOOLKIT_BOOT_ID", "TOOLKIT_TIMESTAMP"})  # not part of the decision

_LIMIT = budget.STATUS_FILE.size
_T = TypeVar("_T")

Lines: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is published, in the words of the contract. `annotation_prefix` is None where CDI is
    off; a path is None where there is no hook, no driver."""

    runtime: str
    runtime_version: str
    socket: str
    cdi_enabled: bool
    native: bool
    source: str
    reason: str
    spec_dirs: Sequence[str]
    cri_field: bool
    runtime_name: str
    mode: str
    is_default: bool
    strategy: Sequence[str]
    annotation_prefix: str | None
    hook_path: str | None
    driver_root: str | None = None
    dev_root: str | None = None


def lines(facts: Facts, boot_id: str, now: float) -> Lines:
    """The file's keys and values in their order; `now` in seconds since the epoch."""
    decided: list[tuple[str, str]] = [
        ("TOOLKIT_CONTAINER_RUNTIME", facts.runtime),
        ("TOOLKIT_CONTAINER_RUNTIME_VERSION", facts.runtime_version),
        ("TOOLKIT_CRI_SOCKET", facts.socket),
        ("TOOLKIT_CDI_ENABLED", _bool(facts.cdi_enabled)),
        ("TOOLKIT_NATIVE_CDI", _bool(facts.native)),
        ("TOOLKIT_NATIVE_CDI_SOURCE", facts.source),
        ("TOOLKIT_NATIVE_CDI_REASON", facts.reason),
        ("TOOLKIT_CDI_SPEC_DIRS", ",".join(facts.spec_dirs)),
        ("TOOLKIT_CRI_CDI_FIELD", _bool(facts.cri_field)),
        ("TOOLKIT_RUNTIME_NAME", facts.runtime_name),
        ("TOOLKIT_RUNTIME_MODE", facts.mode),
        ("TOOLKIT_RUNTIME_IS_DEFAULT", _bool(facts.is_default)),
    ]
    plugin = [("DEVICE_LIST_STRATEGY", ",".join(facts.strategy))]
    if facts.annotation_prefix is not None:
        plugin.append(("CDI_ANNOTATION_PREFIX", facts.annotation_prefix))
    plugin += [(key, path) for key, path in paths(facts) if path is not None and can_say(path)]
    version = ("TOOLKIT_STATUS_VERSION", str(VERSION))
    hashed = _clean([version, *decided, *plugin])
    checksum = hashlib.sha256(_text(hashed)).hexdigest()
    moment = [("TOOLKIT_BOOT_ID", boot_id), ("TOOLKIT_TIMESTAMP", str(int(now)))]
    summary = ("TOOLKIT_CONFIG_HASH", f"sha256:{checksum}")
    return _clean([version, *moment, *decided, summary, *plugin])


def paths(facts: Facts) -> tuple[tuple[str, str | None], ...]:
    """Host paths that the device plugin works with, by the names of its own variables."""
    return (
        ("NVIDIA_CDI_HOOK_PATH", facts.hook_path),
        ("NVIDIA_DRIVER_ROOT", facts.driver_root),
        ("NVIDIA_DEV_ROOT", facts.dev_root),
    )


def can_say(path: str) -> bool:
    """Can a path stand in a status file as it is? With another character in it, it would be that of
    another file there."""
    return not _OTHER.search(path)


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _clean(pairs: Sequence[tuple[str, str]]) -> Lines:
    return tuple((key, _OTHER.sub("_", value)) for key, value in pairs)


def _text(pairs: Lines) -> bytes:
    return "".join(f"{key}={value}\n" for key, value in pairs).encode("ascii")


def parse(data: bytes, path: str) -> dict[str, str]:
    """Keys and values of the bytes of the status file at `path`. Raises Refused for a line that is
    none."""
    values = {}
    for line in data.decode("ascii", "replace").removesuffix("\n").split("\n"):
        if not _LINE.fullmatch(line):
            raise Refused(f"cannot use {path}: it has a line that is not KEY=value")
        key, _, value = line.partition("=")
        values[key] = value
    return values


@dataclass(frozen=True, slots=True)
class Saved:
    """Bytes of the twin and of the barrier as they were; None where there was no file."""

    twin: bytes | None = None
    barrier: bytes | None = None


@dataclass(frozen=True, slots=True)
class Publisher:
    """Writes the contract's files into `directory` (a host path, see `trusted.system_name`).

    `foreign_barrier`: gpu-operator's validator owns `toolkit-ready`; we fill it when it is there
    and never create it.

    Containers may mount the directory, or one above it, as gpu-operator's do. So no link in it or
    on the way is followed, and a directory that is not root's alone is refused: nothing is written
    there and nothing that is read there counts.
    """

    directory: str
    foreign_barrier: bool = False
    host: HostRoot = field(default_factory=lambda: HostRoot("/"))

    def path(self, name: str) -> str:
        """The agent path of a file."""
        return os.path.join(self.host.agent_path(self.directory), name)

    def require(self) -> None:
        """See that the directory is root's alone, or can be made so. Raises Refused."""
        there = os.path.lexists(self.host.agent_path(self.directory))
        trusted.require(
            self.host, self.directory, self._purpose, sticky_is_fine=not there, links=False
        )

    @property
    def _purpose(self) -> str:
        return f"write the status file in {self.directory}"

    def _make(self) -> None:
        trusted.directory(self.host, self.directory, self._purpose, links=False)

    def sweep(self) -> None:
        """Remove what killed processes left; for the holder of the lock."""
        with contextlib.suppress(Refused):
            self.require()
            files.sweep(self.host.agent_path(self.directory), (TWIN, READY, ERROR))

    def publish(self, content: Lines, *, barrier_was_there: bool = False) -> bool:
        """Tell success; returns whether anything was written. Raises Refused."""
        return self._guard(lambda: self._publish(content, barrier_was_there))

    def _publish(self, content: Lines, barrier_was_there: bool) -> bool:
        self._make()
        old = self._look(TWIN)
        keep = old is not None and _same(old.data, content)
        twin = old.data if old is not None and keep else _text(content)
        changed = self._put(TWIN, twin)
        if self._there(ERROR):  # before the barrier: who waits for that finds no failure beside it
            files.remove(self.path(ERROR))
            changed = True
        if not self.foreign_barrier or barrier_was_there or self._there(READY):
            changed |= self._put(READY, twin)
        return changed

    def check(self) -> None:
        """See that there is room to publish, before anything is changed. Raises Refused."""

        def probe() -> None:
            self._make()
            state = files.new_state(b"\n", 0o600)
            files.discard(files.stage(self.path(TWIN), state))

        self._guard(probe)

    def save(self) -> Saved:
        """What is published now, to be brought back if a change has to be undone."""
        twin, barrier = self._look(TWIN), self._look(READY)
        return Saved(twin.data if twin else None, barrier.data if barrier else None)

    def withdraw(self) -> None:
        """Take readiness back, the barrier first. Raises Refused."""

        def remove() -> None:
            self.require()
            for name in (READY, TWIN):
                if self._there(name):
                    files.remove(self.path(name))

        self._guard(remove)

    def forgive(self) -> None:
        """No failure any more. Raises Refused."""
        if self._there(ERROR):
            self.require()
            self._guard(lambda: files.remove(self.path(ERROR)))

    def restore(self, saved: Saved) -> None:
        """Bring back what was published before, the barrier last. Raises Refused."""

        def write() -> None:
            for name, data in ((TWIN, saved.twin), (READY, saved.barrier)):
                if data is not None:
                    self._make()
                    self._put(name, data)

        self._guard(write)

    def fail(self, error: AgentError) -> None:
        """Tell a failure beside the status file, which stays as it is. Raises Refused."""
        content = _clean([
            ("TOOLKIT_ERROR_CODE", error.status_code),
            ("TOOLKIT_ERROR_EXIT", str(error.exit_code)),
            ("TOOLKIT_ERROR_REASON", error.message[:1000]),
        ])  # fmt: skip

        def write() -> None:
            self._make()
            self._put(ERROR, _text(content))

        self._guard(write)

    def _put(self, name: str, data: bytes) -> bool:
        """Write a file unless it is as it should be, in mode and owner too."""
        wanted = files.new_state(data)
        old = self._look(name)
        if old is not None and replace(old, gid=wanted.gid, label=None) == wanted:
            return False
        files.write(self.path(name), wanted)
        return True

    def _there(self, name: str) -> bool:
        return os.path.lexists(self.path(name))

    def _look(self, name: str) -> FileState | None:
        try:
            return _read(self.host, self.directory, name)
        except Refused:
            return None  # whatever has our name there is replaced

    def _guard(self, action: Callable[[], _T]) -> _T:
        try:
            return action()
        except OSError as error:
            raise Refused(
                f"cannot write the status file in {self.directory}: {reason(error)}"
            ) from error


def _same(old: bytes, new: Lines) -> bool:
    """Equal but for the timestamp."""
    try:
        before = parse(old, TWIN)
    except Refused:
        return False
    return list(before.items()) == [
        (key, before.get(key, "") if key == "TOOLKIT_TIMESTAMP" else value) for key, value in new
    ]


def _read(host: HostRoot, directory: str, name: str) -> FileState | None:
    """A file of the contract. Raises Refused where it is not root's alone, or has a link on its
    way."""
    path = os.path.join(directory, name)
    return trusted.read(host, path, _LIMIT, sticky_is_fine=True, links=False)[1]


def read_valid(host: HostRoot, directory: str, boot_id: str) -> dict[str, str]:
    """The decision, as a reader may believe it; `directory` as in `Publisher`. Raises Refused with
    what is wrong with it.

    Rejected: a missing or empty file, one that is not root's or that others can write, a directory
    of that kind, a link on the way, a higher version, one written before this boot.
    """
    path = os.path.join(directory, TWIN)
    found = _read(host, directory, TWIN)
    if found is None:
        raise Refused(f"cannot read {path}: it is not there (yet)")
    values = parse(found.data, path)
    version = values.get("TOOLKIT_STATUS_VERSION", "")
    if not version.isdigit() or len(version) > 9 or int(version) > VERSION:
        raise Refused(f"cannot read {path}: version {version[:9] or 'missing'} is not {VERSION}")
    if values.get("TOOLKIT_BOOT_ID") != boot_id:
        raise Refused(f"cannot trust {path}: it was written before this boot")
    return values


def wait(
    host: HostRoot,
    directory: str,
    boot_id: str,
    timeout: float | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> dict[str, str]:
    """Block until the decision can be believed; seconds, None for ever. Raises Refused with the
    last reason when the time is up."""
    end = None if timeout is None else clock() + timeout
    while True:
        try:
            return read_valid(host, directory, boot_id)
        except Refused:
            if end is not None and clock() >= end:
                raise
        left = 0.5 if end is None else min(0.5, max(0.0, end - clock()))
        sleep(left)
