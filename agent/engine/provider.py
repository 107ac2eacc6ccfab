"""Files of others that describe a kind of ours: whether a device of theirs can be had at all, and
where a spec of ours wins where not.

Invariant: reads only. What becomes of a device is decided as the runtime does (`cdi.installed`),
over all files of the kind together: a stale file that can be read still takes part in conflicts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from agent import budget
from agent.cdi import foreign, installed
from agent.cdi.installed import Directory, SpecFile
from agent.cdi.readers import Reader
from agent.data import dataclass
from agent.host.paths import HostPath, HostRoot

OURS = "toolkit-agent"
_COPY = "a copy of ours"


@dataclass(frozen=True, slots=True)
class Provider:
    """A file of somebody else's: `why` is why no device of it can be had, "" where one can.
    `doubt` is why it may be so, where nobody can tell."""

    file: str
    writer: str
    why: str = ""
    doubt: str = ""

    def dead(self, kind: str) -> str:
        """What is wrong with it, in words."""
        return f"{self} describes {kind}, and no container gets a device of it: {self.why}"

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
        above = os.path.dirname(path.host)
        hosts = [directory.path.host if directory.path else "" for directory in self.dirs]
        place = hosts.index(above) if above in hosts else 0
        return installed.examine(path.host, data, self.host, self.reader, place)


def providers(
    readings: Readings, kind: str, there: Sequence[tuple[HostPath, bytes]]
) -> tuple[Provider, ...]:
    """Who describes a kind in these files, in the order in which they are read."""
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
        why = "" if usable or unread else next((device.why for device in mine), broken)
        doubt = "" if why else unread or installed.doubt(file)
        writer = _COPY if file.writer == OURS else file.writer
        found.append(Provider(file.name, writer, why, doubt))
    return tuple(found)


def _unread(file: SpecFile) -> str:
    """Why we do not know what is in a file that a runtime may read; "" where we know."""
    return file.problems[0].what if file.problems and not (file.spec or file.broken) else ""


def _examined(readings: Readings, entries: Sequence[tuple[HostPath, bytes]]) -> list[SpecFile]:
    """The files as far as they fit into memory together."""
    found: list[SpecFile] = []
    left = budget.SPECS.values
    for path, data in entries:
        if left < 0:
            break
        found.append(readings.file(path, data))
        left -= found[-1].values
    return found


def wins(
    readings: Readings, there: Sequence[tuple[HostPath, bytes]], path: HostPath, text: bytes
) -> bool:
    """Would the runtime take every device of a spec at this path from it, beside these files?"""
    ours = readings.file(path, text)
    files = [ours, *_examined(readings, there)]
    files.sort(key=lambda file: file.place)
    taken = [d for d in installed.devices(files, readings.dirs) if d.file == ours.name]
    return bool(taken) and all(device.state in ("resolvable", "incomplete") for device in taken)
