"""The owner of each kind of device on a node: a spec file of ours, or one of another writer.

Invariant: reads only. The management spec is always ours. Another kind is ours only if no file of
another writer provides a device of it and our file wins over those files, because two files of one
directory with the same device cancel each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.cdi.make.generate import DesiredSpec
from agent.cdi.specs import crashes
from agent.cdi.specs.own_specs import file_name, is_named_by_kind, is_ours
from agent.cdi.specs.provider import OURS, Provider, usable
from agent.errors import AgentError, DriverDistrusted, DriverFailed, NoDevices, NoDriver, Refused
from agent.host import files
from agent.host.files import Change
from agent.host.paths import HostPath, HostRoot

_GONE = (NoDriver, NoDevices, DriverFailed)
_REMEDY = "generate that file again, or remove it"


@dataclass(frozen=True)
class SpecStatus:
    """The spec file of a kind, present or to be written (its host path), and its writer; both are
    "" if there is none. `problem` says why our file cannot be made."""

    kind: str
    file: str = ""
    writer: str = ""
    problem: str = ""

    @property
    def is_foreign(self) -> bool:
        """Does a file of another writer describe these devices?"""
        return self.writer not in ("", OURS)


def foreign(
    entries: Sequence[tuple[HostPath, bytes]], names: Sequence[str]
) -> list[tuple[HostPath, bytes]]:
    """The files of other writers, including a file under one of our `names` that the agent did not
    write."""
    return [(path, data) for path, data in entries if path.name not in names or not is_ours(data)]


@dataclass(frozen=True)
class Ownership:
    """All files of the spec directories (`entries`), and which of them are ours.

    Our files have one of `names`, and lie in `directory`. `providers` are the files of other
    writers, by kind. `places` has the directory for our file, for each kind of which other writers
    provide no device; None if our file would win nowhere.
    """

    host: HostRoot
    directory: HostPath
    names: Sequence[str]
    entries: Sequence[tuple[HostPath, bytes]]
    providers: Mapping[str, Sequence[Provider]]
    places: Mapping[str, HostPath | None]

    def warnings(self, kind: str) -> tuple[str, ...]:
        """Warnings about other writers' files of the kind: no device, some devices missing, or
        unsure."""
        found = self.providers.get(kind, ())
        if usable(found):
            doubts = (
                f"{provider} describes {kind}, and the runtime may not read it: {provider.doubt}"
                for provider in found
                if provider.doubt
            )
            partial = (p.partial_failure for p in found)
            return (*doubts, *(f"{failure}; {_REMEDY}" for failure in partial if failure))
        place = self.places.get(kind)
        ours = f"; {place}/{file_name(kind)} takes its place" if place else ""
        return tuple(f"{provider.failure(kind)}{ours}; {_REMEDY}" for provider in found)

    def blocked(self, kind: str) -> NoDevices | None:
        """The error for a kind that no file can provide, neither ours nor another one; None if a
        file can."""
        if self.places.get(kind, self.directory) is not None:
            return None
        last = self.providers[kind][-1]  # in the runtime's order
        return NoDevices(
            f"cannot provide {kind}: {last.failure(kind)}; the runtime would use no file of ours "
            f"beside it, so {_REMEDY}"
        )

    def management(self, desired: DesiredSpec) -> tuple[SpecStatus, Change | None]:
        """The state of the management spec, and the change that writes it. It replaces any file of
        its name; it is removed if others than root can change the driver. Raises Refused if another
        file of the directory defines the same device, because the runtime would use neither file
        (CDI's cache.go)."""
        path = self._path(desired.kind, self.directory)
        before = files.read(path.agent, path.host)
        if desired.problem is not None:
            distrusted = isinstance(desired.problem, DriverDistrusted)
            status = SpecStatus(desired.kind, problem=desired.problem.message)
            return status, _removal(path, before) if distrusted else None
        for entry, data in self.entries:
            is_rival = (
                os.path.dirname(entry.host) == self.directory.host and entry.name != path.name
            )
            if is_rival and crashes.has_kind(data, desired.kind):
                raise Refused(
                    f"cannot write {path}: {entry} defines {desired.kind} too, and the runtime "
                    "uses neither of two files with the same device; remove it, or give another "
                    "--cdi-kind"
                )
        return _written(path, before, desired)

    def device_spec(
        self, kind: str, desired: DesiredSpec | None
    ) -> tuple[SpecStatus, Change | None]:
        """The state of the spec of another kind than management, and the change that writes or
        removes our file. `desired` is None if our file is to be removed."""
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
            last = self.providers[kind][-1]
            return SpecStatus(kind, last.file, last.writer, blocked.message), removal
        if before is not None and removal is None and _is_spec(before.data):
            raise Refused(f"cannot write {path}: it is a spec of another kind; move it away")
        if desired.problem is None:
            return _written(path, before, desired)
        why = desired.problem.message
        # After an error of _GONE, the devices of the old file may be gone or renamed. After
        # any other error the old file is still correct.
        if isinstance(desired.problem, _GONE) or removal is None:
            return SpecStatus(kind, problem=why), removal
        return SpecStatus(kind, path.host, OURS, why), None

    def leftovers(self) -> Iterator[Change]:
        """The removals of our specs in a wrong directory, and of those of a kind that no option
        asks for. Such files would win over the new ones, or stay in effect after the new ones are
        removed."""
        moved = {file_name(kind): place for kind, place in self.places.items() if place}
        for path, data in self.entries:
            if not is_ours(data):
                continue
            place = moved.get(path.name, self.directory)
            if path.name in self.names:
                is_leftover = os.path.dirname(path.host) != place.host
            else:
                is_leftover = is_named_by_kind(path.name, data)
            if is_leftover:
                yield Change(path, files.new_state(data), None)

    def _path(self, kind: str, above: HostPath) -> HostPath:
        """The path of our spec of a kind in the directory `above`. A link there is followed."""
        path = above.child(file_name(kind))
        return self.host.resolve(path.host) if os.path.islink(path.agent) else path


def _is_spec(data: bytes) -> bool:
    from agent.cdi.specs import read

    return bool(read.kinds(data))


def _removal(path: HostPath, before: files.FileState | None) -> Change | None:
    """The change that removes our file; None if there is none, or if it is not ours."""
    return Change(path, before, None) if before and is_ours(before.data) else None


def _written(
    path: HostPath, before: files.FileState | None, desired: DesiredSpec
) -> tuple[SpecStatus, Change | None]:
    assert desired.text is not None
    after = files.new_state(desired.text.encode())
    same = before is not None and (before.data, before.mode) == (after.data, after.mode)
    return SpecStatus(desired.kind, path.host, OURS), None if same else Change(path, before, after)
