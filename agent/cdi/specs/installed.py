"""Every spec on a node: which files a runtime reads, what is in them, and which device wins.

Invariant: files are found and conflicts decided as in the CDI library (pkg/cdi/spec-dirs.go,
cache.go): by ending alone, in order of their names, a later directory over an earlier one, and two
files of one directory cancel each other, also for later directories. Reads only.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agent.cdi import emit
from agent.cdi.specs import on_host, read, rules
from agent.cdi.specs.readers import NOBODY, Reader
from agent.cdi.specs.scalar import shown
from agent.cdi.specs.shape import Problem, shaped
from agent.errors import AgentError, Refused, reason
from agent.host import budget, files
from agent.host.paths import HostPath, HostRoot

LIMIT = budget.SPEC.size  # bytes; the runtime has none
ENDINGS = (".json", ".yaml")

State = Literal["resolvable", "shadowed", "conflicting", "invalid", "incomplete", "unread"]


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory of specs under the name that the runtime has for it; `unread` is why the runtime
    reads none of them, `path` None where there is no such place."""

    name: str
    path: HostPath | None
    unread: str = ""


@dataclass(frozen=True, slots=True)
class SpecFile:
    """A file with what is wrong with it; `place` counts directories, `spec` is as far as it could
    be made out, and takes as much memory as so many `values`."""

    name: str
    writer: str = ""
    place: int = 0
    spec: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    values: int = 0

    @property
    def broken(self) -> Problem | None:
        """Why a runtime takes nothing from the file."""
        return next((p for p in self.problems if p.spoils == "file"), None)

    def devices(self) -> Iterator[tuple[int, str]]:
        """Number and qualified name of each device."""
        kind = self.spec.get("kind", "")
        for number, device in enumerate(self.spec.get("devices", ())):
            yield number, f"{kind}={device.get('name', '')}"


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a file, whether a container that asks for it gets it, and why not."""

    name: str
    file: str
    writer: str
    state: State
    why: str = ""


def directories(host: HostRoot, names: Iterable[str], reader: Reader) -> tuple[Directory, ...]:
    """The directories that a runtime reads, each once, in its order."""
    found: dict[str, Directory] = {}
    for name in names:
        name = os.path.normpath(name)
        try:
            above = host.resolve(os.path.dirname(name))
            real = os.path.join(above.host, os.path.basename(name))
            path = HostPath(host.agent_path(real), real)
            link = os.path.islink(path.agent)
            unread = reader.off or ("the directory is a link, which runtimes do not follow"
                                    if link else "")  # fmt: skip
            path = host.resolve(real) if link else path
        except AgentError:
            found[name] = Directory(name, None)
            continue
        found.pop(path.host, None)  # of the same directory twice the later counts
        found[path.host] = Directory(name, path, unread)
    return tuple(found.values())


def specs(host: HostRoot, dirs: Sequence[Directory], reader: Reader = NOBODY) -> list[SpecFile]:
    """Every file of these directories that a runtime takes for a spec."""
    found = []
    left = budget.SPECS.values
    for place, directory in enumerate(dirs):
        for path, taken in contents(host, directory):
            taken = full() if isinstance(taken, bytes) and left < 0 else taken
            shown_as = os.path.join(directory.name, path.name)
            found.append(_file(shown_as, place, taken, host, reader))
            left -= found[-1].values
    return found


def full() -> Problem:
    """The problem of a file for which no memory is left."""
    text = f"the files before it have more than {budget.SPECS.values} values"
    return Problem("nothing", "", f"it was not looked at: {text}", "remove what is not needed")


def contents(host: HostRoot, directory: Directory) -> Iterator[tuple[HostPath, bytes | Problem]]:
    """What a runtime takes for specs in a directory: the bytes of each, or what hinders to read
    them."""
    for name in _names(directory):
        assert directory.path is not None
        join = os.path.join
        path = HostPath(join(directory.path.agent, name), join(directory.path.host, name))
        taken = _read(host, path)
        if taken is not None:
            yield path, taken


def _names(directory: Directory) -> list[str]:
    if directory.path is None:
        return []
    try:
        names, _ = files.some_names(directory.path.agent, budget.DIRECTORY)
    except OSError:
        return []
    return some(name for name in names if name.endswith(ENDINGS))


def some(names: Iterable[str]) -> list[str]:
    """As many names of specs as are looked at, sorted. Those of our kinds, by whomever, have a name
    of NVIDIA's."""
    found = sorted(names, key=lambda name: ("nvidia" not in name, os.fsencode(name)))
    return sorted(found[: budget.SPEC_FILES], key=os.fsencode)


def unreadable(dirs: Sequence[Directory]) -> Iterator[tuple[str, Problem]]:
    """Directories that the runtime does not read although it is told to, or that we cannot."""
    for directory in dirs:
        if directory.path is None:
            continue
        if directory.unread.startswith("the directory"):
            text = directory.unread
            yield directory.name, Problem("use", "", text, "name the directory itself")
        try:
            names, more = files.some_names(directory.path.agent, budget.DIRECTORY)
            if more or sum(name.endswith(ENDINGS) for name in names) > budget.SPEC_FILES:
                text = f"it has more than {budget.SPEC_FILES} specs; not all were looked at"
                yield directory.name, Problem("nothing", "", text, "remove what is not needed")
        except FileNotFoundError:
            continue
        except OSError as error:
            text = f"the directory cannot be read: {reason(error)}"
            yield directory.name, Problem("nothing", "", text, "look at it")


def _read(host: HostRoot, path: HostPath) -> bytes | Problem | None:
    """The bytes of a spec, what hinders to read them, or None where a runtime passes it over."""
    try:
        found = os.lstat(path.agent)
        if stat.S_ISDIR(found.st_mode):
            return None
        if stat.S_ISLNK(found.st_mode):
            path = HostPath(host.resolve(path.host).agent, path.host)
            found = os.lstat(path.agent)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Problem("nothing", "", f"it cannot be read: {reason(error)}", "look at it")
    except Refused as error:
        cause = error.message.partition(": ")[2].partition(";")[0]
        return Problem("file", "", f"it is a link that cannot be followed: {cause}", "remove it")
    return content(path, found)


def too_large() -> Problem:
    """The problem of a file that is too large to be looked at."""
    text = f"it is larger than {LIMIT >> 20} MiB: it slows the runtime down at every container"
    return Problem("nothing", "", f"{text}, and was not looked at", "make it smaller")


def content(path: HostPath, found: os.stat_result) -> bytes | Problem | None:
    """The bytes of what lies at a path without links."""
    if stat.S_ISFIFO(found.st_mode):
        text = "it is a pipe: a runtime that reads it waits for ever, at its start too"
        return Problem("file", "", text, "remove it")
    if not stat.S_ISREG(found.st_mode):
        return Problem("file", "", "it is not a regular file", "remove it")
    if found.st_size > LIMIT:
        return too_large()
    try:
        state = files.read(path.agent, path.host, LIMIT)
    except Refused as error:
        cause = error.message.partition(": ")[2].partition(";")[0]
        return Problem("nothing", "", f"it cannot be read: {cause}", "run as root")
    return None if state is None else state.data


def _file(
    name: str, place: int, taken: bytes | Problem, host: HostRoot, reader: Reader
) -> SpecFile:
    if isinstance(taken, Problem):
        return SpecFile(name, "", place, {}, (taken,))
    return examine(name, taken, host, reader, place)


def examine(
    name: str, data: bytes, host: HostRoot, reader: Reader = NOBODY, place: int = 0
) -> SpecFile:
    """Everything that can be said about the bytes of a file. Never raises."""
    try:
        document = read.document(data)
    except read.Broken as error:
        # What is too large for us may be fine for a runtime.
        spoils: Literal["file", "nothing"] = "file"
        text, remedy = error.text, "repair the file, or remove it"
        if isinstance(error, read.TooLarge):
            spoils, text, remedy = "nothing", f"{text}, and was not looked at", "make it smaller"
        problem = Problem(spoils, "", text, remedy)
        return SpecFile(name, writer(name, data, ""), place, {}, (problem,))
    spec, problems = shaped(document.data)
    if len(spec.get("devices", ())) > budget.SPEC_DEVICES:
        text = f"it has more than {budget.SPEC_DEVICES} devices, and was not looked at"
        problem = Problem("nothing", "", text, "make it smaller")
        return SpecFile(name, writer(name, data, ""), place, {}, (problem,))
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
    """Why it is not known whether the runtime reads a file, in words; "" where it is."""
    return next((problem.what for problem in file.problems if problem.unsure), "")


def writer(name: str, data: bytes, kind: str) -> str:
    """Who wrote a file, by what each writer is known for; else whose devices they are."""
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
    """All devices of all files, in the order of the files, each with what becomes of it."""
    winners, conflicts = _resolve(found, dirs)
    listed = []
    for file in found:
        for number, name in file.devices():
            state, why = _state(file, dirs[file.place])
            if not state and name in conflicts:
                state, why = "conflicting", _against(file.name, conflicts[name])
            elif not state:
                state, why = _complete(file, number)
                if winners[name].name != file.name:
                    other = f"{winners[name].name} defines it too, and wins"
                    state = "shadowed" if state == "resolvable" else state
                    why = f"{why}; {other}" if why else other
            listed.append(Device(name, file.name, file.writer, state, why))
    return listed


def _against(file: str, names: Sequence[str]) -> str:
    """Why a file's device is taken from none of the files with these names."""
    if file not in names:
        return f"{' and '.join(names)} cancel each other, and this one too"
    return f"{_define([name for name in names if name != file])} it too"


def _define(names: Sequence[str]) -> str:
    return f"{' and '.join(names)} {'defines' if len(names) == 1 else 'define'}"


def _state(file: SpecFile, directory: Directory) -> tuple[State | None, str]:
    if directory.unread:
        return "unread", directory.unread
    if file.broken:
        where = f"{file.broken.where}: " if file.broken.where else ""
        return "invalid", where + file.broken.what
    return None, ""


def _resolve(
    found: Sequence[SpecFile], dirs: Sequence[Directory]
) -> tuple[dict[str, SpecFile], dict[str, list[str]]]:
    """Which file a device is taken from; and those that are taken from none, with their files."""
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
    """Is everything there that the device needs?"""
    for problem in file.problems:
        mine = problem.where.startswith((f"devices[{number}].", "containerEdits"))
        if problem.spoils == "use" and mine:
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
            text = f"{_define(others)} {shown(name)} too, and the runtime takes it from none"
            problem = Problem("use", f"devices[{number}].name", text, "remove one of the files")
            problems.append((file.name, problem))
    return problems
