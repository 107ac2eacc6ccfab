"""Which spec file of a node has a kind: ours, or somebody else's.

Invariant: reads only. A kind other than the management spec's is ours only where no other file that
the runtime reads is of that kind, whatever else may be wrong with that file: two files with one
device cancel each other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from agent.cdi import emit, foreign, installed, read
from agent.cdi.generate import Wanted
from agent.data import dataclass
from agent.engine.plan import Change
from agent.errors import AgentError, DriverFailed, NoDevices, NoDriver, Refused
from agent.host import files
from agent.host.paths import HostPath, HostRoot

OURS = "toolkit-agent"
_GONE = (NoDriver, NoDevices, DriverFailed)


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

    def data(self) -> dict[str, str | None]:
        """For JSON."""
        return {
            "kind": self.kind,
            "file": self.file or None,
            "writer": self.writer or None,
            "problem": self.problem or None,
        }


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
    """Where our specs go, what they are called, and every file in a directory of specs."""

    host: HostRoot
    directory: HostPath
    names: Sequence[str]
    there: Sequence[tuple[HostPath, bytes]]

    def provider(self, kind: str) -> Spec | None:
        """Somebody else who has a kind of GPUs, or of what comes with them; a file under our name
        that we did not write is somebody else's too."""
        for path, data in self.there:
            mine = path.name in self.names and emit.is_ours(data)
            if not mine and foreign.has_kind(data, kind):
                writer = installed.writer(path.host, data, kind)
                return Spec(kind, path.host, "a copy of ours" if writer == OURS else writer)
        return None

    def management(self, wanted: Wanted) -> tuple[Spec, Change | None]:
        """The management spec, which takes the place of whatever has its name. Raises Refused."""
        if wanted.problem is not None:
            raise wanted.problem
        path = self._path(wanted.kind)
        self._refuse_twins(path, wanted.kind)
        return _written(path, files.read(path.agent, path.host), wanted)

    def _refuse_twins(self, ours: HostPath, kind: str) -> None:
        """Two files of one directory with one device make it unresolvable (CDI's cache.go)."""
        for path, data in self.there:
            beside = os.path.dirname(path.host) == self.directory.host
            if beside and path.name != ours.name and foreign.has_kind(data, kind):
                raise Refused(
                    f"cannot write {ours}: {path} defines {kind} too, and two files with one "
                    "device cancel each other; remove it, or give another --cdi-kind"
                )

    def other(self, kind: str, wanted: Wanted | None) -> tuple[Spec, Change | None]:
        """The spec of another kind, `wanted` None where there is to be none."""
        try:
            return self._other(kind, wanted)
        except AgentError as error:
            return Spec(kind, problem=error.message), None

    def _other(self, kind: str, wanted: Wanted | None) -> tuple[Spec, Change | None]:
        path = self._path(kind)
        before = files.read(path.agent, path.host)
        mine = before is not None and emit.is_ours(before.data)
        removal = Change(path, before, None) if mine else None
        if (provider := self.provider(kind)) is not None:
            return provider, removal
        if wanted is None:
            return Spec(kind), removal
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
                return os.path.dirname(path.host) != self.directory.host
            return is_named_by_kind(path.name, data)  # of a kind that is asked for no more

        return [
            Change(path, files.new_state(data), None)
            for path, data in self.there
            if emit.is_ours(data) and is_left(path, data)
        ]

    def _path(self, kind: str) -> HostPath:
        """Where a spec of ours goes; a link there is followed."""
        name, above = file_name(kind), self.directory
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
