"""Files of others that describe a kind of ours: whether a device of theirs can be had at all, and
where a spec of ours wins where not.

Invariant: reads only. What becomes of a device is decided as the runtime does (`cdi.installed`),
over all files of the kind together: a stale file that can be read still takes part in conflicts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent.cdi.specs import foreign, installed, read
from agent.cdi.specs.installed import Directory, SpecFile
from agent.cdi.specs.readers import Reader
from agent.host import budget
from agent.host.paths import HostPath, HostRoot

OURS = "toolkit-agent"
_COPY = "a copy of ours"
_NAMED = 3  # devices in a warning
_DEAD = ("invalid", "incomplete", "conflicting")


@dataclass(frozen=True, slots=True)
class Provider:
    """A file of somebody else's: `why` is why no device of it can be had, "" where one can.
    `doubt` is why it may be so, where nobody can tell. `lost` are devices that cannot be had of it,
    each with the reason, whoever else has them. `unread`: `why` is only why nobody knows what is in
    it, and a file of ours can be had beside it whatever that is."""

    file: str
    writer: str
    why: str = ""
    doubt: str = ""
    lost: Sequence[tuple[str, str]] = ()
    unread: bool = False

    def dead(self, kind: str) -> str:
        """What is wrong with it, in words."""
        if self.unread:
            return f"{self} describes {kind}, and which devices is not known: {self.why}"
        return f"{self} describes {kind}, and no container gets a device of it: {self.why}"

    @property
    def partly(self) -> str:
        """What is wrong with it although others, or it itself, have devices of the kind; "" for
        nothing."""
        if not self.lost:
            return ""
        named = ", ".join(name for name, _ in self.lost[:_NAMED])
        more = f" and {len(self.lost) - _NAMED} more" if len(self.lost) > _NAMED else ""
        return f"{self} describes {named}{more}, which no container gets of it: {self.lost[0][1]}"

    def __str__(self) -> str:
        return f"{self.file} ({self.writer})"


@dataclass(frozen=True, slots=True)
class Readings:
    """The directories that the runtime reads, in its order, and how it reads them."""

    host: HostRoot
    dirs: Sequence[Directory]
    reader: Reader

    def file(self, path: HostPath, data: bytes) -> SpecFile:
        """A file of one of the directories, there or to be written."""
        return installed.examine(path.host, data, self.host, self.reader, self.place(path))

    def place(self, path: HostPath) -> int:
        """The number of the directory in which a file is."""
        above = os.path.dirname(path.host)
        hosts = [directory.path.host if directory.path else "" for directory in self.dirs]
        return hosts.index(above) if above in hosts else 0


def providers(
    readings: Readings, kind: str, there: Sequence[tuple[HostPath, bytes]], ours: int
) -> tuple[Provider, ...]:
    """Who describes a kind in these files, in the order in which they are read; `ours` is the
    number of the directory where a file of ours can go. There it wins over every file of an earlier
    directory, and over one that nobody has read as well."""
    entries = [(path, data) for path, data in there if foreign.has_kind(data, kind)]
    files = _examined(readings, entries)
    files.sort(key=lambda file: file.place)  # as stable as they were given
    devices = installed.devices(files, readings.dirs)
    found = []
    for file in files:
        mine = [device for device in devices if device.file == file.name]
        usable = any(device.state == "resolvable" for device in mine)
        broken = file.broken.what if file.broken else "it has no devices"
        unread = _unread(file)  # the runtime may read it: its devices are theirs
        beaten = bool(unread) and file.place < ours
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


def unknown(readings: Readings) -> Iterator[str]:
    """In words, files of which not even the kind can be made out, with the reason: they may be
    meant to describe one of ours."""
    for directory in readings.dirs:
        for path, taken in installed.contents(readings.host, directory):
            if isinstance(taken, bytes):
                if not _may_be_nvidias(path.name, taken) or read.kinds(taken):
                    continue
                file = readings.file(path, taken)
                problem = file.broken or next(iter(file.problems), None)
            else:
                problem = taken
            if problem is not None and problem != installed.too_large():
                yield f"{path} gives the runtime no device: {problem.what}; {problem.remedy}"


def _may_be_nvidias(name: str, data: bytes) -> bool:
    return "nvidia" in name or b"nvidia" in data or b"\0" in data


def _unread(file: SpecFile) -> str:
    """Why we do not know what is in a file that a runtime may read; "" where we know."""
    return file.problems[0].what if file.problems and not (file.spec or file.broken) else ""


def _examined(readings: Readings, entries: Sequence[tuple[HostPath, bytes]]) -> list[SpecFile]:
    """The files as far as they fit into memory together."""
    found: list[SpecFile] = []
    left = budget.SPECS.values
    for path, data in entries:
        if left < 0:
            place = readings.place(path)
            found.append(SpecFile(path.host, "", place, problems=(installed.full(),)))
            continue
        found.append(readings.file(path, data))
        left -= found[-1].values
    return found


def wins(
    readings: Readings, there: Sequence[tuple[HostPath, bytes]], path: HostPath, text: bytes
) -> bool:
    """Would the runtime take every device of a spec at this path from it, beside these files?"""
    ours = readings.file(path, text)
    files = [ours, *_examined(readings, there)]
    if any(_unread(file) and file.place >= ours.place for file in files):
        return False
    files.sort(key=lambda file: file.place)
    taken = [d for d in installed.devices(files, readings.dirs) if d.file == ours.name]
    return bool(taken) and all(device.state in ("resolvable", "incomplete") for device in taken)
