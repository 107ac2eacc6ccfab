"""Spec files of other writers that describe a kind of ours: whether a container can get a device
from them, and where a spec of ours wins over files that provide none.

Invariant: reads only. The state of a device is decided as by the runtime (`installed`), over all
files of the kind together, because a readable file with an outdated device still takes part in
conflicts.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from agent.cdi.specs import crashes, installed, spec_files
from agent.cdi.specs.installed import SpecFile
from agent.cdi.specs.readers import Reader
from agent.cdi.specs.spec_files import Directory
from agent.host.paths import HostPath, HostRoot

OURS = "toolkit-agent"
_COPY = "a copy of ours"
_NAMED = 3  # devices in a warning
_UNUSABLE = ("invalid", "incomplete", "conflicting")


@dataclass(frozen=True)
class Provider:
    """A spec file of another writer. `why` says why it provides no device, "" if it provides one.
    `doubt` says why that is uncertain. `lost` has each device that it does not provide, with the
    reason. `unread`: the content of the file is unknown because of `why`, and a file of ours wins
    over it in any case."""

    file: str
    writer: str
    why: str = ""
    doubt: str = ""
    lost: Sequence[tuple[str, str]] = ()
    unread: bool = False

    def failure(self, kind: str) -> str:
        """A sentence about a file that provides no device of the kind, with the reason."""
        if self.unread:
            return f"{self} describes {kind}, and its devices are unknown: {self.why}"
        return f"{self} describes {kind}, and no container gets a device from it: {self.why}"

    @property
    def partial_failure(self) -> str:
        """A sentence about a file that provides only some of its devices; "" if it provides all."""
        if not self.lost:
            return ""
        named = ", ".join(name for name, _ in self.lost[:_NAMED])
        more = f" and {len(self.lost) - _NAMED} more" if len(self.lost) > _NAMED else ""
        return f"{self} describes {named}{more}, which no container gets from it: {self.lost[0][1]}"

    def __str__(self) -> str:
        return f"{self.file} ({self.writer})"


def usable(candidates: Iterable[Provider]) -> Provider | None:
    """The first file that provides a device; None if none does."""
    return next((provider for provider in candidates if not provider.why), None)


@dataclass(frozen=True)
class RuntimeView:
    """The directories that the runtime reads, in its order, and how it reads them."""

    host: HostRoot
    dirs: Sequence[Directory]
    reader: Reader

    def file(self, path: HostPath, data: bytes) -> SpecFile:
        """The examined file at `path`, which may not exist yet, with this content."""
        return installed.examine(path.host, data, self.host, self.reader, self.place(path))

    def place(self, path: HostPath) -> int:
        """The index of the directory of a file; 0 if the runtime does not read that directory."""
        return self.number(os.path.dirname(path.host))

    def number(self, above: str) -> int:
        """The index of a directory, given by its host path; 0 if the runtime does not read it."""
        hosts = [directory.path.host if directory.path else "" for directory in self.dirs]
        return hosts.index(above) if above in hosts else 0


def providers(
    view: RuntimeView, kind: str, entries: Sequence[tuple[HostPath, bytes]], own_place: int
) -> tuple[Provider, ...]:
    """The files among `entries` that describe the kind, in the order in which the runtime reads
    them. `own_place` is the index of the directory for a file of ours. Our file would win over
    every file of an earlier directory, also over a file with unknown content."""
    files = _examined(view, [entry for entry in entries if crashes.has_kind(entry[1], kind)])
    files.sort(key=lambda file: file.place)
    devices = installed.devices(files, view.dirs)
    found = []
    for file in files:
        listed = [device for device in devices if device.file == file.name]
        usable = any(device.state == "resolvable" for device in listed)
        broken = file.broken.what if file.broken else "it has no devices"
        unread = _unread(file)  # the runtime may read it, so its devices count
        beaten = bool(unread) and file.place < own_place
        why = "" if usable or unread else next((device.why for device in listed), broken)
        why = unread if beaten else why
        doubt = "" if why else unread or installed.doubt(file)
        writer = file.writer or installed.writer(file.name, b"", kind)
        writer = _COPY if writer == OURS else writer
        lost = [(device.name, device.why) for device in listed if device.state in _UNUSABLE]
        if file.broken and not listed:
            lost = [(f"{kind} devices", file.broken.what)]
        found.append(Provider(file.name, writer, why, doubt, lost, beaten))
    return tuple(found)


def unknown_kind_warnings(view: RuntimeView, known: Collection[bytes] = ()) -> Iterator[str]:
    """A warning about each file that may be NVIDIA's and whose kind cannot be read. `known` are
    contents that need no check."""
    for directory in view.dirs:
        for path, content in spec_files.contents(view.host, directory.path):
            if content in known:
                continue
            if isinstance(content, bytes):
                from agent.cdi.specs import read  # slow to load; not each node has a spec

                if not _may_be_nvidias(path.name, content) or read.kinds(content):
                    continue
                file = view.file(path, content)
                problem = file.broken or next(iter(file.problems), None)
            else:
                problem = content
            if problem is not None and problem != spec_files.TOO_LARGE:
                yield f"{path} gives the runtime no device: {problem.what}; {problem.remedy}"


def _may_be_nvidias(name: str, data: bytes) -> bool:
    return "nvidia" in name or b"nvidia" in data or b"\0" in data


def _unread(file: SpecFile) -> str:
    """Why the content of a file is unknown to the agent, while a runtime may read it; "" if it is
    known."""
    return file.problems[0].what if file.problems and not (file.spec or file.broken) else ""


def _examined(view: RuntimeView, entries: Sequence[tuple[HostPath, bytes]]) -> list[SpecFile]:
    found = ((path.host, view.place(path), data) for path, data in entries)
    return installed.examine_all(found, view.host, view.reader)


def wins(
    view: RuntimeView, entries: Sequence[tuple[HostPath, bytes]], path: HostPath, text: bytes
) -> bool:
    """Would the runtime take every device of a spec with content `text` at `path` from that file,
    if the files of `entries` exist, too?"""
    ours = view.file(path, text)
    files = [ours, *_examined(view, entries)]
    if any(_unread(file) and file.place >= ours.place for file in files):
        return False
    files.sort(key=lambda file: file.place)
    own = [d for d in installed.devices(files, view.dirs) if d.file == ours.name]
    return bool(own) and all(device.state in ("resolvable", "incomplete") for device in own)
