"""The owner of each kind of device on a node: a spec file of ours, or one of another writer.

Invariant: reads only. A kind other than the management spec's is ours only if no file of another
writer gives a device of it, and our file wins over those files, because two files of one directory
with the same device cancel each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.cdi.emit import is_ours
from agent.cdi.make.generate import DesiredSpec
from agent.cdi.specs import crashes
from agent.cdi.specs.provider import OURS, Provider, usable
from agent.errors import AgentError, DriverDistrusted, DriverFailed, NoDevices, NoDriver, Refused
from agent.host import files
from agent.host.files import Change
from agent.host.paths import HostPath, HostRoot

_GONE = (NoDriver, NoDevices, DriverFailed)
_REMEDY = "write that file anew, or remove it"


@dataclass(frozen=True)
class SpecStatus:
    """The spec file of a kind, present or to be written (its host path), and its writer; both are
    "" if there is none. `problem` is why ours cannot be made."""

    kind: str
    file: str = ""
    writer: str = ""
    problem: str = ""

    @property
    def is_foreign(self) -> bool:
        """Does a file of another writer describe these devices?"""
        return self.writer not in ("", OURS)


def file_name(kind: str) -> str:
    """The name of our spec file of a kind, such as `management.nvidia.com-gpu.yaml`. NVIDIA's
    installer uses the same name, so that one file replaces the other; two files with the same
    device would cancel each other."""
    return kind.replace("/", "-") + ".yaml"


def is_named_by_kind(name: str, data: bytes) -> bool:
    """Has a file the name that we give to a spec of its kind? A copy under another name is not
    ours."""
    from agent.cdi.specs import read  # slow to load; not each node has a spec

    return any(name == file_name(kind) for kind in read.kinds(data))


def foreign(
    entries: Sequence[tuple[HostPath, bytes]], names: Sequence[str]
) -> list[tuple[HostPath, bytes]]:
    """Files of other writers, including a file under one of our names that we did not write."""
    return [(path, data) for path, data in entries if path.name not in names or not is_ours(data)]


@dataclass(frozen=True)
class Ownership:
    """Every file (`entries`) of the spec directories, and which of them are ours.

    Our files have the `names`, and lie in `directory`. `providers` are the files of other writers,
    by kind. `places` is where our file goes, for each kind of which no device can be had from
    other writers; None if our file would win nowhere.
    """

    host: HostRoot
    directory: HostPath
    names: Sequence[str]
    entries: Sequence[tuple[HostPath, bytes]]
    providers: Mapping[str, Sequence[Provider]]
    places: Mapping[str, HostPath | None]

    def warnings(self, kind: str) -> tuple[str, ...]:
        """What is wrong, or may be wrong, with the files of other writers that are of a kind."""
        found = self.providers.get(kind, ())
        if usable(found):
            doubts = (
                f"{one} describes {kind}, and it is not sure that it is read: {one.doubt}"
                for one in found
                if one.doubt
            )
            return (*doubts, *(f"{one.partly}; {_REMEDY}" for one in found if one.partly))
        place = self.places.get(kind)
        ours = f"; {place}/{file_name(kind)} takes its place" if place else ""
        return tuple(f"{one.dead(kind)}{ours}; {_REMEDY}" for one in found)

    def blocked(self, kind: str) -> NoDevices | None:
        """Why no file, neither ours nor another one, can provide a kind that could be described."""
        if self.places.get(kind, self.directory) is not None:
            return None
        dead = self.providers[kind][-1]  # it is read last
        return NoDevices(
            f"cannot provide {kind}: {dead.dead(kind)}; the runtime would use no file of ours "
            f"beside it, so {_REMEDY}"
        )

    def management(self, desired: DesiredSpec) -> tuple[SpecStatus, Change | None]:
        """The management spec, which replaces any file of its name. If others than root can change
        the driver, ours is removed. Raises Refused if another file defines its device, because the
        runtime uses neither of two such files of one directory (CDI's cache.go)."""
        path = self._path(desired.kind, self.directory)
        before = files.read(path.agent, path.host)
        if desired.problem is not None:
            distrusted = isinstance(desired.problem, DriverDistrusted)
            status = SpecStatus(desired.kind, problem=desired.problem.message)
            return status, _removal(path, before) if distrusted else None
        for entry, data in self.entries:
            beside = os.path.dirname(entry.host) == self.directory.host and entry.name != path.name
            if beside and crashes.has_kind(data, desired.kind):
                raise Refused(
                    f"cannot write {path}: {entry} defines {desired.kind} too, and the runtime "
                    "uses neither of two files with the same device; remove it, or give another "
                    "--cdi-kind"
                )
        return _written(path, before, desired)

    def device_spec(
        self, kind: str, desired: DesiredSpec | None
    ) -> tuple[SpecStatus, Change | None]:
        """The spec of a kind other than management; `desired` is None if ours is to go."""
        try:
            return self._device_spec(kind, desired)
        except AgentError as error:
            return SpecStatus(kind, problem=error.message), None

    def _device_spec(
        self, kind: str, desired: DesiredSpec | None
    ) -> tuple[SpecStatus, Change | None]:
        path = self._path(kind, self.places.get(kind) or self.directory)
        before = files.read(path.agent, path.host)
        removal = _removal(path, before)
        if (provider := usable(self.providers.get(kind, ()))) is not None:
            return SpecStatus(kind, provider.file, provider.writer), removal
        if desired is None:
            return SpecStatus(kind), removal
        if (blocked := self.blocked(kind)) is not None:
            dead = self.providers[kind][-1]
            return SpecStatus(kind, dead.file, dead.writer, blocked.message), removal
        if before is not None and removal is None and _is_spec(before.data):
            raise Refused(f"cannot write {path}: it is a spec of another kind; move it away")
        if desired.problem is None:
            return _written(path, before, desired)
        why = desired.problem.message
        # The devices of the old file may be gone, or have other names now. After any other fault
        # the old file is still right.
        if isinstance(desired.problem, _GONE) or removal is None:
            return SpecStatus(kind, problem=why), removal
        return SpecStatus(kind, path.host, OURS, why), None

    def leftovers(self) -> Iterator[Change]:
        """The removal of our specs from directories where they no longer belong, and of those of a
        kind that no option asks for. They would win over the new ones, or stay in effect when those
        are gone."""
        moved = {file_name(kind): place for kind, place in self.places.items() if place}
        for path, data in self.entries:
            if not is_ours(data):
                continue
            place = moved.get(path.name, self.directory)
            if path.name in self.names:
                is_left = os.path.dirname(path.host) != place.host
            else:
                is_left = is_named_by_kind(path.name, data)
            if is_left:
                yield Change(path, files.new_state(data), None)

    def _path(self, kind: str, above: HostPath) -> HostPath:
        """The path of our spec of a kind; a link there is followed."""
        path = above.child(file_name(kind))
        return self.host.resolve(path.host) if os.path.islink(path.agent) else path


def _is_spec(data: bytes) -> bool:
    from agent.cdi.specs import read

    return bool(read.kinds(data))


def _removal(path: HostPath, before: files.FileState | None) -> Change | None:
    """The removal of a file of ours; None if it is not ours."""
    return Change(path, before, None) if before and is_ours(before.data) else None


def _written(
    path: HostPath, before: files.FileState | None, desired: DesiredSpec
) -> tuple[SpecStatus, Change | None]:
    assert desired.text is not None
    after = files.new_state(desired.text.encode())
    same = before is not None and (before.data, before.mode) == (after.data, after.mode)
    return SpecStatus(desired.kind, path.host, OURS), None if same else Change(path, before, after)
