"""Every spec on a node: its content, its problems, and the file from which the runtime takes each
device.

Invariant: conflicts are decided as in the CDI library (pkg/cdi/cache.go): in order of file names, a
later directory over an earlier one; two files of one directory with the same device cancel each
other, also for later directories. Reads only.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agent.cdi import emit
from agent.cdi.specs import on_host, rules
from agent.cdi.specs.readers import UNKNOWN_READER, Reader
from agent.cdi.specs.scalar import quoted
from agent.cdi.specs.shape import Problem, fit_to_shape
from agent.cdi.specs.spec_files import Directory, contents
from agent.host import budget
from agent.host.paths import HostRoot

State = Literal["resolvable", "shadowed", "conflicting", "invalid", "incomplete", "unread"]


@dataclass(frozen=True)
class SpecFile:
    """A file and its problems. `place` is the number of its directory; `spec` is the part of it
    that could be read, which has so many `values`."""

    name: str
    writer: str = ""
    place: int = 0
    spec: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    values: int = 0

    @property
    def broken(self) -> Problem | None:
        """The problem for which a runtime takes nothing from the file."""
        return next((p for p in self.problems if p.impact == "file"), None)

    def devices(self) -> Iterator[tuple[int, str]]:
        """Number and qualified name of each device."""
        kind = self.spec.get("kind", "")
        for number, device in enumerate(self.spec.get("devices", ())):
            yield number, f"{kind}={device.get('name', '')}"


@dataclass(frozen=True)
class Device:
    """A device of a file: whether a container can get it from that file; if not, why."""

    name: str
    file: str
    writer: str
    state: State
    why: str = ""


def specs(
    host: HostRoot, dirs: Sequence[Directory], reader: Reader = UNKNOWN_READER
) -> list[SpecFile]:
    """Every file of these directories that a runtime takes for a spec."""
    found = (
        (os.path.join(directory.name, path.name), place, taken)
        for place, directory in enumerate(dirs)
        for path, taken in contents(host, directory.path)
    )
    return examine_all(found, host, reader)


def examine_all(
    found: Iterable[tuple[str, int, bytes | Problem]],
    host: HostRoot,
    reader: Reader = UNKNOWN_READER,
) -> list[SpecFile]:
    """Files by name, number of their directory, and content or problem, as far as all of them fit
    into memory together."""
    examined = []
    left = budget.SPECS.values
    text = f"the files before it have more than {budget.SPECS.values} values"
    full = Problem("nothing", "", f"it was not looked at: {text}", "remove what is not needed")
    for name, place, taken in found:
        taken = full if isinstance(taken, bytes) and left < 0 else taken
        examined.append(
            SpecFile(name, place=place, problems=(taken,)) if isinstance(taken, Problem)
            else examine(name, taken, host, reader, place)
        )  # fmt: skip
        left -= examined[-1].values
    return examined


def examine(
    name: str, data: bytes, host: HostRoot, reader: Reader = UNKNOWN_READER, place: int = 0
) -> SpecFile:
    """The spec in the bytes of a file, and its problems. Never raises."""
    from agent.cdi.specs import read  # slow to load; not each node has a spec

    try:
        document = read.document(data)
        spec, problems = fit_to_shape(document.data)
        if len(spec.get("devices", ())) > budget.SPEC_DEVICES:
            raise read.TooLarge(f"it has more than {budget.SPEC_DEVICES} devices")
    except read.Broken as error:
        fault = Problem("file", "", error.text, "repair the file, or remove it")
        if isinstance(error, read.TooLarge):  # it may be fine for a runtime
            text = f"{error.text}, and was not looked at"
            fault = Problem("nothing", "", text, "make it smaller")
        return SpecFile(name, writer(name, data, ""), place, {}, (fault,))
    if document.more:
        text = "there is more than one document, and runtimes read the first only"
        problems.add(Problem("nothing", "", text, "give each a file of its own"))
    if spec:
        for problem in itertools.chain(rules.check(spec, reader), on_host.check(spec, host)):
            problems.add(problem)
    made_by = writer(name, data, spec.get("kind", ""))
    cost = document.values + budget.DEVICE_COST * len(spec.get("devices", ()))
    return SpecFile(name, made_by, place, spec, tuple(problems), cost)


def doubt(file: SpecFile) -> str:
    """Why it is unknown whether the runtime reads a file; "" if it is known."""
    return next((problem.what for problem in file.problems if problem.unsure), "")


def writer(name: str, data: bytes, kind: str) -> str:
    """The program that wrote a file, by the names that each program uses; else the vendor."""
    vendor, _, _ = kind.partition("/")
    if emit.is_ours(data):
        return "toolkit-agent"
    if vendor == "k8s.device-plugin.nvidia.com":
        return "nvidia-device-plugin"
    if vendor.startswith("k8s.") and vendor.endswith(".nvidia.com"):
        return "nvidia-dra-driver"
    if vendor == "management.nvidia.com":
        return "nvidia-ctk-installer"
    if vendor == "nvidia.com":
        dynamic = name in ("/var/run/cdi/nvidia.yaml", "/run/cdi/nvidia.yaml")
        return "nvidia-cdi-refresh" if dynamic else "nvidia-ctk"
    return vendor


def devices(found: Sequence[SpecFile], dirs: Sequence[Directory]) -> list[Device]:
    """All devices of all files with their state, in the order of the files."""
    winners, conflicts = _resolve(found, dirs)
    listed = []
    for file in found:
        for number, name in file.devices():
            state: State
            if dirs[file.place].unread:
                state, why = "unread", dirs[file.place].unread
            elif file.broken:
                where = f"{file.broken.where}: " if file.broken.where else ""
                state, why = "invalid", where + file.broken.what
            elif name in conflicts:
                rivals = [other for other in conflicts[name] if other != file.name]
                state, why = "conflicting", f"{_define(rivals)} it too"
                if len(rivals) == len(conflicts[name]):
                    why = f"{' and '.join(rivals)} cancel each other, and this one too"
            else:
                state, why = _complete(file, number)
                if winners[name].name != file.name:
                    other = f"{winners[name].name} defines it too, and wins"
                    state = "shadowed" if state == "resolvable" else state
                    why = f"{why}; {other}" if why else other
            listed.append(Device(name, file.name, file.writer, state, why))
    return listed


def _define(names: Sequence[str]) -> str:
    return f"{' and '.join(names)} {'defines' if len(names) == 1 else 'define'}"


def _resolve(
    found: Sequence[SpecFile], dirs: Sequence[Directory]
) -> tuple[dict[str, SpecFile], dict[str, list[str]]]:
    """The file from which each device is taken; and the devices with a conflict, with their
    files."""
    winners: dict[str, SpecFile] = {}
    conflicts: dict[str, list[str]] = {}
    for file in found:
        if file.broken or dirs[file.place].unread:
            continue
        for _, name in file.devices():
            other = winners.get(name)
            if other is not None and other.place == file.place:
                conflicts.setdefault(name, [other.name]).append(file.name)
            else:
                winners[name] = file
    return winners, conflicts


def _complete(file: SpecFile, number: int) -> tuple[State, str]:
    """The state of a device that is taken from this file."""
    for problem in file.problems:
        mine = problem.where.startswith((f"devices[{number}].", "containerEdits"))
        if problem.impact == "use" and mine:
            return "incomplete", f"{problem.where}: {problem.what}"
    return "resolvable", ""


def conflicts(found: Sequence[SpecFile], dirs: Sequence[Directory]) -> list[tuple[str, Problem]]:
    """Conflicts as problems of the files that have them."""
    _, names = _resolve(found, dirs)
    problems = []
    for file in found:
        for number, name in file.devices():
            others = [other for other in names.get(name, ()) if other != file.name]
            if file.broken or dirs[file.place].unread or not others:
                continue
            text = f"{_define(others)} {quoted(name)} too, and the runtime takes it from none"
            problem = Problem("use", f"devices[{number}].name", text, "remove one of the files")
            problems.append((file.name, problem))
    return problems
