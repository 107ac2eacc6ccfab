"""Which spec file of a node has a kind: ours, or somebody else's.

Invariant: reads only. A kind other than the management spec's is ours only where no device of it
can be had by a file of somebody else's, and then only where ours wins over theirs: two files
of a directory with one device cancel each other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agent.cdi import emit
from agent.cdi.make.generate import Wanted
from agent.cdi.specs import foreign, read
from agent.cdi.specs.provider import OURS, Provider
from agent.errors import AgentError, DriverFailed, NoDevices, NoDriver, Refused
from agent.host import files
from agent.host.files import Change
from agent.host.paths import HostPath, HostRoot

_GONE = (NoDriver, NoDevices, DriverFailed)
_ANEW = "write that file anew, or remove it"


@dataclass(frozen=True, slots=True)
class Spec:
    """Who has a kind: the host path of the file, there or to be written, and who writes it; both
    are "" where nobody has it. `problem` is why ours cannot be made."""

    kind: str
    file: str = ""
    writer: str = ""
    problem: str = ""

    @property
    def foreign(self) -> bool:
        """Does somebody else describe these devices?"""
        return self.writer not in ("", OURS)


def file_name(kind: str) -> str:
    """`management.nvidia.com-gpu.yaml`: NVIDIA's installer has the same name, so that one file
    takes the place of the other; two with one device would cancel each other."""
    return kind.replace("/", "-") + ".yaml"


def is_named_by_kind(name: str, data: bytes) -> bool:
    """Has a file the name that we give to a spec of its kind? A copy under another name is
    somebody else's."""
    return any(name == file_name(kind) for kind in read.kinds(data))


@dataclass(frozen=True, slots=True)
class Site:
    """Where our specs go, what they are called, and every file in a directory of specs.

    `providers` are those of each kind. `placed`: where ours goes of a kind of which no device of
    theirs can be had, None where it would win nowhere.
    """

    host: HostRoot
    directory: HostPath
    names: Sequence[str]
    there: Sequence[tuple[HostPath, bytes]]
    providers: Mapping[str, Sequence[Provider]] = field(default_factory=dict)
    placed: Mapping[str, HostPath | None] = field(default_factory=dict)

    def foreign(self) -> list[tuple[HostPath, bytes]]:
        """What is not ours; a file under our name that we did not write is somebody else's too."""
        return [
            (path, data)
            for path, data in self.there
            if not (path.name in self.names and emit.is_ours(data))
        ]

    def provider(self, kind: str) -> Spec | None:
        """Somebody else by whom a device of a kind can be had."""
        usable = next((one for one in self.providers.get(kind, ()) if not one.why), None)
        return Spec(kind, usable.file, usable.writer) if usable else None

    def warnings(self, kind: str) -> tuple[str, ...]:
        """What is wrong, or may be, with the files of others that are of a kind."""
        found = self.providers.get(kind, ())
        if any(not one.why for one in found):
            doubts = (
                f"{one} describes {kind}, and it is not sure that it is read: {one.doubt}"
                for one in found
                if one.doubt
            )
            return (*doubts, *(f"{one.partly}; {_ANEW}" for one in found if one.partly))
        place = self.placed.get(kind)
        ours = f"; {place}/{file_name(kind)} takes its place" if place else ""
        return tuple(f"{one.dead(kind)}{ours}; {_ANEW}" for one in found)

    def blocked(self, kind: str) -> NoDevices | None:
        """Why neither theirs nor ours can be had of a kind that could be described."""
        if self.placed.get(kind, self.directory) is not None:
            return None
        dead = self.providers[kind][-1]  # it is read last
        return NoDevices(
            f"cannot provide {kind}: {dead.dead(kind)}; the runtime would use no file of ours "
            f"beside it, so {_ANEW}"
        )

    def management(self, wanted: Wanted) -> tuple[Spec, Change | None]:
        """The management spec, which takes the place of whatever has its name. Raises Refused."""
        if wanted.problem is not None:
            raise wanted.problem
        path = self._path(wanted.kind, self.directory)
        self._refuse_twins(path, wanted.kind)
        return _written(path, files.read(path.agent, path.host), wanted)

    def removal(self, kind: str) -> Change | None:
        """The management spec of ours goes: others decide what it names."""
        path = self._path(kind, self.directory)
        before = files.read(path.agent, path.host)
        mine = before is not None and emit.is_ours(before.data)
        return Change(path, before, None) if mine else None

    def _refuse_twins(self, ours: HostPath, kind: str) -> None:
        """Two files of one directory with one device make it unresolvable (CDI's cache.go)."""
        for path, data in self.there:
            beside = os.path.dirname(path.host) == self.directory.host
            if beside and path.name != ours.name and foreign.has_kind(data, kind):
                raise Refused(
                    f"cannot write {ours}: {path} defines {kind} too, and the runtime uses "
                    "neither of two files with the same device; remove it, or give another "
                    "--cdi-kind"
                )

    def other(self, kind: str, wanted: Wanted | None) -> tuple[Spec, Change | None]:
        """The spec of another kind, `wanted` None where there is to be none."""
        try:
            return self._other(kind, wanted)
        except AgentError as error:
            return Spec(kind, problem=error.message), None

    def _other(self, kind: str, wanted: Wanted | None) -> tuple[Spec, Change | None]:
        path = self._path(kind, self.placed.get(kind) or self.directory)
        before = files.read(path.agent, path.host)
        mine = before is not None and emit.is_ours(before.data)
        removal = Change(path, before, None) if mine else None
        if (provider := self.provider(kind)) is not None:
            return provider, removal
        if wanted is None:
            return Spec(kind), removal
        if (blocked := self.blocked(kind)) is not None:
            dead = self.providers[kind][-1]
            return Spec(kind, dead.file, dead.writer, blocked.message), removal
        if before is not None and not mine and read.kinds(before.data):
            raise Refused(f"cannot write {path}: it is a spec of another kind; move it away")
        if wanted.problem is None:
            return _written(path, before, wanted)
        why = wanted.problem.message
        # What it names may be gone, or another GPU's by now. Otherwise the fault is ours alone.
        if isinstance(wanted.problem, _GONE) or not mine:
            return Spec(kind, problem=why), removal
        return Spec(kind, path.host, OURS, why), None

    def leftovers(self) -> list[Change]:
        """Specs of ours in directories where they do not go any more: there they would win over
        the new ones, or be taken where those are gone."""

        def is_left(path: HostPath, data: bytes) -> bool:
            if path.name in self.names:
                return os.path.dirname(path.host) != self._place(path.name)
            return is_named_by_kind(path.name, data)  # of a kind that is asked for no more

        return [
            Change(path, files.new_state(data), None)
            for path, data in self.there
            if emit.is_ours(data) and is_left(path, data)
        ]

    def _place(self, name: str) -> str:
        """The directory in which a file of ours with that name belongs."""
        found = (place for kind, place in self.placed.items() if file_name(kind) == name)
        return (next(found, None) or self.directory).host

    def _path(self, kind: str, above: HostPath) -> HostPath:
        """Where a spec of ours goes; a link there is followed."""
        name = file_name(kind)
        if os.path.islink(os.path.join(above.agent, name)):
            return self.host.resolve(os.path.join(above.host, name))
        return HostPath(os.path.join(above.agent, name), os.path.join(above.host, name))


def _written(
    path: HostPath, before: files.FileState | None, wanted: Wanted
) -> tuple[Spec, Change | None]:
    assert wanted.text is not None
    after = files.new_state(wanted.text.encode())
    same = before is not None and (before.data, before.mode) == (after.data, after.mode)
    return Spec(wanted.kind, path.host, OURS), None if same else Change(path, before, after)
