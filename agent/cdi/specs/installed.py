"""Every spec on a node: its content, its problems, and the file from which the runtime takes each
device.

Invariant: conflicts are decided as in the CDI library (pkg/cdi/cache.go): files count in the order
of their names, a later directory wins over an earlier one, and two files of one directory with the
same device cancel each other, also for later directories. Reads only.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agent.cdi.specs import on_host, own_specs, rules
from agent.cdi.specs.readers import UNKNOWN_READER, Reader
from agent.cdi.specs.scalar import quoted
from agent.cdi.specs.shape import Problem, fit_to_shape
from agent.cdi.specs.spec_files import Directory, contents
from agent.host import budget
from agent.host.paths import HostRoot

NOT_USED = "and the runtime uses it from none of these files"  # ends the text of a conflict

State = Literal["resolvable", "shadowed", "conflicting", "invalid", "incomplete", "unread"]


@dataclass(frozen=True)
class SpecFile:
    """A spec file under the runtime's name for it. `place` is the index of its directory. `spec` is
    the valid part of the content, and `values` the number of its values, for the budget."""

    name: str
    writer: str = ""
    place: int = 0
    spec: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    values: int = 0

    @property
    def broken(self) -> Problem | None:
        """The problem for which a runtime ignores the whole file; None if there is none."""
        return next((p for p in self.problems if p.impact == "file"), None)

    def devices(self) -> Iterator[tuple[int, str]]:
        """(index, qualified name `KIND=NAME`) of each device."""
        kind = self.spec.get("kind", "")
        for number, device in enumerate(self.spec.get("devices", ())):
            yield number, f"{kind}={device.get('name', '')}"


@dataclass(frozen=True)
class Device:
    """A device in a file. `name` is qualified; `why` is the reason for a `state` other than
    resolvable."""

    name: str
    file: str
    writer: str
    state: State
    why: str = ""


def specs(
    host: HostRoot, dirs: Sequence[Directory], reader: Reader = UNKNOWN_READER
) -> list[SpecFile]:
    """Every file in these directories that a runtime treats as a spec, with its problems for
    `reader`."""
    found = (
        (os.path.join(directory.name, path.name), place, content)
        for place, directory in enumerate(dirs)
        for path, content in contents(host, directory.path)
    )
    return examine_all(found, host, reader)


def examine_all(
    entries: Iterable[tuple[str, int, bytes | Problem]],
    host: HostRoot,
    reader: Reader = UNKNOWN_READER,
) -> list[SpecFile]:
    """The specs of (name, index of the directory, content or problem). Files beyond the common
    budget of values are not examined, and have a problem that says so."""
    examined = []
    left = budget.SPECS.values
    text = f"the files before it have more than {budget.SPECS.values} values"
    full = Problem("nothing", "", f"it was not looked at: {text}", "remove unused files")
    for name, place, content in entries:
        content = full if isinstance(content, bytes) and left < 0 else content
        examined.append(
            SpecFile(name, place=place, problems=(content,)) if isinstance(content, Problem)
            else examine(name, content, host, reader, place)
        )  # fmt: skip
        left -= examined[-1].values
    return examined


def examine(
    name: str, data: bytes, host: HostRoot, reader: Reader = UNKNOWN_READER, place: int = 0
) -> SpecFile:
    """The spec in the content of a file, with its problems for `reader`. Never raises."""
    from agent.cdi.specs import read  # slow to load; not each node has a spec

    try:
        document = read.document(data)
        spec, problems = fit_to_shape(document.data)
        if len(spec.get("devices", ())) > budget.SPEC_DEVICES:
            raise read.TooLarge(f"it has more than {budget.SPEC_DEVICES} devices")
    except read.Broken as error:
        fault = Problem("file", "", error.text, "repair the file, or remove it")
        if isinstance(error, read.TooLarge):  # a runtime may read the file
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
    """Why it is not known whether the runtime reads a file; "" if it is known."""
    return next((problem.what for problem in file.problems if problem.unsure), "")


def writer(name: str, data: bytes, kind: str) -> str:
    """The program that wrote a file, recognized by the vendors and file names of known programs;
    else the vendor."""
    vendor, _, _ = kind.partition("/")
    if own_specs.is_ours(data):
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


def devices(files: Sequence[SpecFile], dirs: Sequence[Directory]) -> list[Device]:
    """Every device of every file with its state, in the order of the files."""
    winners, conflicts = _resolve(files, dirs)
    listed = []
    for file in files:
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
                state, why = _state_in(file, number)
                if winners[name].name != file.name:
                    other = f"{winners[name].name} defines it too, and wins"
                    state = "shadowed" if state == "resolvable" else state
                    why = f"{why}; {other}" if why else other
            listed.append(Device(name, file.name, file.writer, state, why))
    return listed


def _define(names: Sequence[str]) -> str:
    return f"{' and '.join(names)} {'defines' if len(names) == 1 else 'define'}"


def _resolve(
    files: Sequence[SpecFile], dirs: Sequence[Directory]
) -> tuple[dict[str, SpecFile], dict[str, list[str]]]:
    """The file that provides each device, and the names of the files of each device with a
    conflict."""
    winners: dict[str, SpecFile] = {}
    conflicts: dict[str, list[str]] = {}
    for file in files:
        if file.broken or dirs[file.place].unread:
            continue
        for _, name in file.devices():
            other = winners.get(name)
            if other is not None and other.place == file.place:
                conflicts.setdefault(name, [other.name]).append(file.name)
            else:
                winners[name] = file
    return winners, conflicts


def _state_in(file: SpecFile, number: int) -> tuple[State, str]:
    """The state of a device if the runtime takes it from this file, and the reason."""
    for problem in file.problems:
        is_of_device = problem.where.startswith((f"devices[{number}].", "containerEdits"))
        if problem.impact == "use" and is_of_device:
            return "incomplete", f"{problem.where}: {problem.what}"
    return "resolvable", ""


def conflicts(files: Sequence[SpecFile], dirs: Sequence[Directory]) -> list[tuple[str, Problem]]:
    """(file name, problem) for each file whose device conflicts with a device of another file."""
    _, names = _resolve(files, dirs)
    problems = []
    for file in files:
        for number, name in file.devices():
            others = [other for other in names.get(name, ()) if other != file.name]
            if file.broken or dirs[file.place].unread or not others:
                continue
            text = f"{_define(others)} {quoted(name)} too, {NOT_USED}"
            problem = Problem("use", f"devices[{number}].name", text, "remove one of the files")
            problems.append((file.name, problem))
    return problems
