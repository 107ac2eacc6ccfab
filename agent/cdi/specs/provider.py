"""Spec files of other writers that describe a kind of ours: whether a container can get a device
from them, and where a spec of ours wins over those that give none.

Invariant: reads only. The state of a device is decided as by the runtime (`installed`), over all
files of the kind together, because a stale file that can be read still takes part in conflicts.
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
_DEAD = ("invalid", "incomplete", "conflicting")


@dataclass(frozen=True)
class Provider:
    """A spec file of another writer. `why` is why it gives no device, "" if it gives one. `doubt`
    is why that is unknown. `lost` are the devices that it does not give, each with the reason.
    `unread`: the content of the file is unknown because of `why`, and a file of ours wins over it
    whatever it contains."""

    file: str
    writer: str
    why: str = ""
    doubt: str = ""
    lost: Sequence[tuple[str, str]] = ()
    unread: bool = False

    def dead(self, kind: str) -> str:
        """Why it gives no device."""
        if self.unread:
            return f"{self} describes {kind}, and which devices is not known: {self.why}"
        return f"{self} describes {kind}, and no container gets a device of it: {self.why}"

    @property
    def partly(self) -> str:
        """The problem of a file that gives some of its devices and not others; "" if there is
        none."""
        if not self.lost:
            return ""
        named = ", ".join(name for name, _ in self.lost[:_NAMED])
        more = f" and {len(self.lost) - _NAMED} more" if len(self.lost) > _NAMED else ""
        return f"{self} describes {named}{more}, which no container gets of it: {self.lost[0][1]}"

    def __str__(self) -> str:
        return f"{self.file} ({self.writer})"


def usable(found: Iterable[Provider]) -> Provider | None:
    """The first file that gives a device."""
    return next((one for one in found if not one.why), None)


@dataclass(frozen=True)
class RuntimeView:
    """What the runtime sees: the directories that it reads, in its order, and how it reads them."""

    host: HostRoot
    dirs: Sequence[Directory]
    reader: Reader

    def file(self, path: HostPath, data: bytes) -> SpecFile:
        """A file of one of the directories, present or to be written."""
        return installed.examine(path.host, data, self.host, self.reader, self.place(path))

    def place(self, path: HostPath) -> int:
        """The number of the directory of a file."""
        return self.number(os.path.dirname(path.host))

    def number(self, above: str) -> int:
        """The number of a directory (its host path)."""
        hosts = [directory.path.host if directory.path else "" for directory in self.dirs]
        return hosts.index(above) if above in hosts else 0


def providers(
    view: RuntimeView, kind: str, entries: Sequence[tuple[HostPath, bytes]], own_place: int
) -> tuple[Provider, ...]:
    """The providers of a kind among these files, in the order in which the runtime reads them.
    `own_place` is the number of the directory where a file of ours can go. There it wins over every
    file of an earlier directory, also over one whose content is unknown."""
    files = _examined(view, [entry for entry in entries if crashes.has_kind(entry[1], kind)])
    files.sort(key=lambda file: file.place)
    devices = installed.devices(files, view.dirs)
    found = []
    for file in files:
        mine = [device for device in devices if device.file == file.name]
        usable = any(device.state == "resolvable" for device in mine)
        broken = file.broken.what if file.broken else "it has no devices"
        unread = _unread(file)  # the runtime may read it, so its devices count
        beaten = bool(unread) and file.place < own_place
        why = "" if usable or unread else next((device.why for device in mine), broken)
        why = unread if beaten else why
        doubt = "" if why else unread or installed.doubt(file)
        writer = file.writer or installed.writer(file.name, b"", kind)
        writer = _COPY if writer == OURS else writer
        lost = [(device.name, device.why) for device in mine if device.state in _DEAD]
        if file.broken and not mine:
            lost = [(f"{kind} devices", file.broken.what)]
        found.append(Provider(file.name, writer, why, doubt, lost, beaten))
    return tuple(found)


def unknown(view: RuntimeView, known: Collection[bytes] = ()) -> Iterator[str]:
    """A warning about each file whose kind is unknown, because it may be one of ours. `known` are
    contents that need no look."""
    for directory in view.dirs:
        for path, taken in spec_files.contents(view.host, directory.path):
            if taken in known:
                continue
            if isinstance(taken, bytes):
                from agent.cdi.specs import read  # slow to load; not each node has a spec

                if not _may_be_nvidias(path.name, taken) or read.kinds(taken):
                    continue
                file = view.file(path, taken)
                problem = file.broken or next(iter(file.problems), None)
            else:
                problem = taken
            if problem is not None and problem != spec_files.TOO_LARGE:
                yield f"{path} gives the runtime no device: {problem.what}; {problem.remedy}"


def _may_be_nvidias(name: str, data: bytes) -> bool:
    return "nvidia" in name or b"nvidia" in data or b"\0" in data


def _unread(file: SpecFile) -> str:
    """Why the content of a file that a runtime may read is unknown; "" if it is known."""
    return file.problems[0].what if file.problems and not (file.spec or file.broken) else ""


def _examined(view: RuntimeView, entries: Sequence[tuple[HostPath, bytes]]) -> list[SpecFile]:
    found = ((path.host, view.place(path), data) for path, data in entries)
    return installed.examine_all(found, view.host, view.reader)


def wins(
    view: RuntimeView, entries: Sequence[tuple[HostPath, bytes]], path: HostPath, text: bytes
) -> bool:
    """Would the runtime take every device of a spec at this path from that spec, beside these
    files?"""
    ours = view.file(path, text)
    files = [ours, *_examined(view, entries)]
    if any(_unread(file) and file.place >= ours.place for file in files):
        return False
    files.sort(key=lambda file: file.place)
    taken = [d for d in installed.devices(files, view.dirs) if d.file == ours.name]
    return bool(taken) and all(device.state in ("resolvable", "incomplete") for device in taken)
