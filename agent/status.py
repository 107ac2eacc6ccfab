"""The status file, in which the device plugin reads the decision.

There are two files with the same content: the barrier `toolkit-ready`, for which other pods wait,
and its twin `.toolkit-ctr-ready`. A third file beside them, the error file, describes a failure.

Invariant: a file is complete or absent. `toolkit-ready` exists only if its twin was written for the
same proof. Equal content is never written again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from agent.decide import Decision
from agent.errors import AgentError, Refused, reason
from agent.host import budget, files, trust
from agent.host.files import FileState
from agent.host.paths import HostRoot

VERSION = 1
READY = "toolkit-ready"
TWIN = ".toolkit-ctr-ready"
ERROR = ".toolkit-ctr-error"
# The end of the error for a missing file.
NOT_PUBLISHED = "no decision is published yet"

_FORBIDDEN = re.compile(r"[^A-Za-z0-9_./:,@%+=-]")
_STAMP = re.compile(rb"^TOOLKIT_TIMESTAMP=[0-9]+$", re.MULTILINE)
_LINE = re.compile(r"[A-Z_][A-Z0-9_]*=[A-Za-z0-9_./:,@%+=-]*")

_LIMIT = budget.STATUS_FILE.size

Lines: TypeAlias = tuple[tuple[str, str], ...]


def lines(
    decision: Decision, *, runtime: str, version: str, socket: str, cdi_enabled: bool,
    runtime_name: str, is_default: bool, paths: Mapping[str, str | None], boot_id: str, now: float,
) -> Lines:  # fmt: skip
    """The keys and values of the status file, in the order of the contract.

    `runtime` and `version` are spelled as in the CRI. `socket` is a host path. `paths` are host
    paths for the device plugin, by the names of its variables; a line is left out for None. `now`
    is in seconds since the epoch.
    """
    decided = [
        ("TOOLKIT_CONTAINER_RUNTIME", runtime),
        ("TOOLKIT_CONTAINER_RUNTIME_VERSION", version),
        ("TOOLKIT_CRI_SOCKET", socket),
        ("TOOLKIT_CDI_ENABLED", _bool(cdi_enabled)),
        ("TOOLKIT_NATIVE_CDI", _bool(decision.native)),
        ("TOOLKIT_NATIVE_CDI_SOURCE", decision.source),
        ("TOOLKIT_NATIVE_CDI_REASON", decision.reason),
        ("TOOLKIT_CDI_SPEC_DIRS", ",".join(decision.spec_dirs)),
        ("TOOLKIT_CRI_CDI_FIELD", _bool(decision.cri_field)),
        ("TOOLKIT_RUNTIME_NAME", "" if decision.hook else runtime_name),
        ("TOOLKIT_RUNTIME_MODE", decision.mode),
        ("TOOLKIT_RUNTIME_IS_DEFAULT", _bool(is_default)),
    ]
    plugin = [("DEVICE_LIST_STRATEGY", ",".join(decision.strategy))]
    if decision.annotation_prefix is not None:
        plugin.append(("CDI_ANNOTATION_PREFIX", decision.annotation_prefix))
    plugin += [(key, path) for key, path in paths.items() if path and is_publishable(path)]
    head = ("TOOLKIT_STATUS_VERSION", str(VERSION))
    checksum = hashlib.sha256(_text(_clean([head, *decided, *plugin]))).hexdigest()
    moment = [("TOOLKIT_BOOT_ID", boot_id), ("TOOLKIT_TIMESTAMP", str(int(now)))]
    summary = ("TOOLKIT_CONFIG_HASH", f"sha256:{checksum}")
    return _clean([head, *moment, *decided, summary, *plugin])


def is_publishable(path: str) -> bool:
    """Can a path be published unchanged? A forbidden character would be replaced, so that the path
    would name another file."""
    return not _FORBIDDEN.search(path)


def _bool(value: bool | None) -> str:
    return "true" if value else "false"


def _clean(pairs: Sequence[tuple[str, str]]) -> Lines:
    return tuple((key, _FORBIDDEN.sub("_", value)) for key, value in pairs)


def _text(pairs: Lines) -> bytes:
    return "".join(f"{key}={value}\n" for key, value in pairs).encode("ascii")


def parse(data: bytes, path: str) -> dict[str, str]:
    """The keys and values in the content of a status file. `path` is its path in messages. Raises
    Refused for a line that is not KEY=value."""
    values = {}
    for line in data.decode("ascii", "replace").removesuffix("\n").split("\n"):
        if not _LINE.fullmatch(line):
            raise Refused(
                f"cannot use {path}: it has a line that is not KEY=value; `toolkit-agent apply` "
                "writes it anew"
            )
        key, _, value = line.partition("=")
        values[key] = value
    return values


@dataclass(frozen=True)
class Publisher:
    """Writes the status files into `directory` (a host path from `trust.system_name`).

    With `foreign_barrier`, gpu-operator's validator owns `toolkit-ready`: we write to that file if
    it exists, and never create it.

    Containers may mount the directory or one above it, as those of gpu-operator do. So no link in
    the path is followed. A directory to which others can write is refused: no file in it is written
    or read.
    """

    directory: str
    foreign_barrier: bool = False
    host: HostRoot = field(default_factory=lambda: HostRoot("/"))

    def path(self, name: str) -> str:
        """The agent path of a status file."""
        return os.path.join(self.host.agent_path(self.directory), name)

    def require(self) -> None:
        """Raise Refused if others can write to the directory, or can make a directory in its
        place."""
        missing = not os.path.lexists(self.host.agent_path(self.directory))
        trust.require(self.host, self.directory, self._purpose, allow_sticky=missing, links=False)

    @property
    def _purpose(self) -> str:
        return f"write the status file in {self.directory}"

    def _make(self) -> None:
        trust.make_directory(self.host, self.directory, self._purpose, links=False)

    def sweep(self) -> None:
        """Remove the temporary files of killed processes. The caller has to hold the lock."""
        with contextlib.suppress(Refused):
            self.require()
            files.sweep(self.host.agent_path(self.directory), (TWIN, READY, ERROR))

    def publish(self, content: Lines, *, barrier_was_there: bool = False) -> bool:
        """Publish a decision, and remove the error file. Returns whether a file was changed.
        `barrier_was_there`: write a foreign barrier even if it is missing now. Raises Refused."""
        with self._refusing():
            self._make()
            old, twin = self._current(TWIN), _text(content)
            if old is not None and _STAMP.sub(b"", old.data) == _STAMP.sub(b"", twin):
                twin = old.data
            changed = self._write(TWIN, twin)
            if self._exists(ERROR):  # before the barrier, so that it never exists with an error
                files.remove(self.path(ERROR))
                changed = True
            if not self.foreign_barrier or barrier_was_there or self._exists(READY):
                changed |= self._write(READY, twin)
            return changed

    def check_writable(self) -> None:
        """Check that the files can be written, by a temporary file. Raises Refused."""
        with self._refusing():
            self._make()
            files.discard(files.stage(self.path(TWIN), files.new_state(b"\n", 0o600)))

    def save(self) -> dict[str, bytes]:
        """The contents of the twin and of the barrier by name, for `restore`."""
        states = ((name, self._current(name)) for name in (TWIN, READY))
        return {name: state.data for name, state in states if state}

    def withdraw(self) -> None:
        """Remove the status files, the barrier first. Raises Refused."""
        self.require()
        self._remove(READY, TWIN)

    def remove_error(self) -> None:
        """Remove the error file. Raises Refused."""
        if self._exists(ERROR):
            self.require()
            self._remove(ERROR)

    def restore(self, saved: Mapping[str, bytes | None]) -> None:
        """Write the saved files again, the barrier last. Raises Refused."""
        with self._refusing():
            for name in (TWIN, READY):
                if (data := saved.get(name)) is not None:
                    self._make()
                    self._write(name, data)

    def publish_error(self, error: AgentError) -> None:
        """Write the error file. The status files are not changed. Raises Refused."""
        content = _clean([
            ("TOOLKIT_ERROR_CODE", error.status_code),
            ("TOOLKIT_ERROR_EXIT", str(error.exit_code)),
            ("TOOLKIT_ERROR_REASON", error.message[:1000]),
        ])  # fmt: skip
        with self._refusing():
            self._make()
            self._write(ERROR, _text(content))

    def _remove(self, *names: str) -> None:
        with self._refusing():
            for name in filter(self._exists, names):
                files.remove(self.path(name))

    def _write(self, name: str, data: bytes) -> bool:
        """Write a file, unless it has this content and the right mode and owner already. Returns
        whether it was written."""
        new = files.new_state(data)
        old = self._current(name)
        if old is not None and replace(old, gid=new.gid, label=None) == new:
            return False
        files.write(self.path(name), new)
        return True

    def _exists(self, name: str) -> bool:
        return os.path.lexists(self.path(name))

    def _current(self, name: str) -> FileState | None:
        try:
            return _read(self.host, self.directory, name)
        except Refused:
            return None  # a file that is not trusted is replaced

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Raise Refused for an OSError in the `with` statement."""
        try:
            yield
        except OSError as error:
            raise Refused(
                f"cannot write the status file in {self.directory}: {reason(error)}"
            ) from error


def _read(host: HostRoot, directory: str, name: str) -> FileState | None:
    """The state of a status file, None if it does not exist. Raises Refused if others can write to
    it, or if its path has a link."""
    path = os.path.join(directory, name)
    return trust.read_file(host, path, _LIMIT, allow_sticky=True, links=False)[1]


def read_valid(host: HostRoot, directory: str, boot_id: str) -> dict[str, str]:
    """The keys and values of the published decision, after all checks that a reader has to make.
    `directory` as in `Publisher`; `boot_id` is that of the present boot.

    Raises Refused for a missing or empty file, a file or directory that others can write to, a link
    in the path, a higher version, and a file that was written before this boot.
    """
    path = os.path.join(directory, TWIN)
    state = _read(host, directory, TWIN)
    if state is None:
        raise Refused(f"cannot read {path}: {NOT_PUBLISHED}")
    values = parse(state.data, path)
    version = values.get("TOOLKIT_STATUS_VERSION", "")
    if not version.isdigit() or len(version) > 9 or int(version) > VERSION:
        raise Refused(f"cannot read {path}: version {version[:9] or 'missing'} is not {VERSION}")
    if values.get("TOOLKIT_BOOT_ID") != boot_id:
        raise Refused(f"cannot trust {path}: it was written before this boot")
    return values


def read_error(host: HostRoot, directory: str) -> str | None:
    """The published reason of the last failure, in readable form. None if there is none, or if
    others can write to the error file."""
    try:
        state = _read(host, directory, ERROR)
        values = parse(state.data, ERROR) if state else {}
    except Refused:
        return None
    return readable(values["TOOLKIT_ERROR_REASON"]) if "TOOLKIT_ERROR_REASON" in values else None


def readable(reason: str) -> str:
    """The readable form of a reason in the error file, where underscores stand for spaces and other
    characters. Any other text gets a form in which it can be compared with that."""
    return _FORBIDDEN.sub(" ", reason).replace("_", " ")


def wait(
    host: HostRoot,
    directory: str,
    boot_id: str,
    timeout: float | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> dict[str, str]:
    """Wait until a valid decision is published, and return its keys and values. `timeout` is in
    seconds, None for ever. After that time, Refused is raised with the last reason."""
    end = None if timeout is None else clock() + timeout
    while True:
        try:
            return read_valid(host, directory, boot_id)
        except Refused:
            if end is not None and clock() >= end:
                raise
        left = 0.5 if end is None else min(0.5, max(0.0, end - clock()))
        sleep(left)
