"""The CDI specs of this node as its runtime sees them, and their problems.

Invariant: reads only. Without a runtime, the default directories are read and versions are not
judged. The CRI client is loaded only if there is a socket.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.cdi.specs import installed, readers, spec_files
from agent.cdi.specs.installed import Device, SpecFile
from agent.cdi.specs.readers import UNKNOWN_READER, Reader
from agent.cdi.specs.shape import Problem
from agent.cdi.specs.spec_files import Directory
from agent.decide import DEFAULT_DIRS, Switch
from agent.errors import AgentError, Refused
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings
from agent.runtimes import find, registry
from agent.runtimes.base import Runtime


@dataclass(frozen=True)
class Finding:
    """A problem of a file or a directory (`file`, the runtime's name for it)."""

    file: str
    problem: Problem


@dataclass(frozen=True)
class Inventory:
    """All specs on the node. `notes` say what could not be checked."""

    reader: Reader
    directories: tuple[Directory, ...]
    files: tuple[SpecFile, ...]
    devices: tuple[Device, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _RuntimeReader:
    """The runtime as a reader of the directories `names`. `executable` is its agent path, None if
    unknown."""

    reader: Reader
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    executable: str | None = None


def inventory(settings: Settings, host: HostRoot, runtime: Runtime | None = None) -> Inventory:
    """Examine every spec on the node. Without `runtime` the running one is looked for."""
    node = _reading_runtime(settings, host, runtime)
    dirs = _directories(settings, host, node)
    reader, files = _examined(node, lambda reader: installed.specs(host, dirs, reader))
    found = [(file.name, problem) for file in files for problem in file.problems]
    found += [*installed.conflicts(files, dirs), *spec_files.unreadable(dirs)]
    notes = (*node.notes, *((f"{reader.off}: it reads no specs",) if reader.off else ()))
    devices = tuple(installed.devices(files, dirs))
    return Inventory(reader, dirs, tuple(files), devices, _sorted(found), notes)


def inventory_of_files(settings: Settings, host: HostRoot, paths: Sequence[str]) -> Inventory:
    """Examine each of these files alone; `-` is standard input. Raises Refused."""
    node = _reading_runtime(settings, host)
    stdin = sys.stdin.buffer.read(spec_files.LIMIT + 1) if "-" in paths else b""
    reader, files = _examined(
        node, lambda reader: [_spec_file(path, host, reader, stdin) for path in paths]
    )
    found = [(file.name, problem) for file in files for problem in file.problems]
    return Inventory(reader, (), tuple(files), (), _sorted(found), node.notes)


def _examined(
    node: _RuntimeReader, examine: Callable[[Reader], list[SpecFile]]
) -> tuple[Reader, list[SpecFile]]:
    """The specs, and the reader with which they were examined. If the runtime's version leaves a
    doubt, its executable is examined, too."""
    files = examine(node.reader)
    if not node.executable or not any(map(installed.doubt, files)):
        return node.reader, files
    reader = readers.with_executable(node.reader, node.executable)
    return reader, examine(reader)


def _sorted(problems: Sequence[tuple[str, Problem]]) -> tuple[Finding, ...]:
    """Findings grouped by file in the order of the files, errors first."""
    order = {name: number for number, name in reversed([*enumerate(name for name, _ in problems)])}
    ranked = sorted(problems, key=lambda item: (order[item[0]], item[1].severity == "warning"))
    return tuple(Finding(name, problem) for name, problem in ranked)


def _spec_file(name: str, host: HostRoot, reader: Reader, stdin: bytes) -> SpecFile:
    if name == "-":
        if len(stdin) > spec_files.LIMIT:
            return SpecFile(name, problems=(spec_files.TOO_LARGE,))
        return installed.examine(name, stdin, host, reader)
    try:
        path = os.path.realpath(name)
        found = os.lstat(path)
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or "no file can have that name"
        raise Refused(f"cannot read {name}: {text.lower()}; give a CDI spec") from error
    if stat.S_ISDIR(found.st_mode):
        raise Refused(
            f"cannot read {name or repr(name)}: it is a directory; give the files in it, or none "
            "for all that the node has"
        )
    content = spec_files.content(HostPath(path, name), found)
    if isinstance(content, Problem):
        return SpecFile(name, problems=(content,))
    return installed.examine(name, content or b"", host, reader)


def _reading_runtime(
    settings: Settings, host: HostRoot, runtime: Runtime | None = None
) -> _RuntimeReader:
    try:
        runtime = runtime or find.find_runtime(settings, host)
    except AgentError as error:
        cause = error.message.partition(";")[0]
        return _RuntimeReader(UNKNOWN_READER, DEFAULT_DIRS, (f"{cause}: versions were not judged",))
    evidence = registry.adapter_of(runtime.answer).evidence(runtime.answer)
    dirs = next((item.spec_dirs for item in evidence if item.spec_dirs is not None), None)
    enabled = False if any(item.switch is Switch.FALSE for item in evidence) else None
    reader = readers.reader_of(runtime.answer.name, runtime.version, enabled=enabled)
    program = find.program(settings, host, runtime)
    notes = ("the runtime does not say where it reads specs",) if dirs is None else ()
    return _RuntimeReader(reader, DEFAULT_DIRS if dirs is None else dirs, notes, program)


def _directories(settings: Settings, host: HostRoot, node: _RuntimeReader) -> tuple[Directory, ...]:
    """The directories that the runtime reads, and the directory of our specs."""
    dirs = spec_files.directories(host, node.names, node.reader)
    own_directory = settings.cdi_output_dir
    if not own_directory:
        return dirs
    more = spec_files.directories(host, (host.name(own_directory),), node.reader)
    known = {directory.path for directory in dirs}
    unread = "the runtime does not read this directory" if node.reader is not UNKNOWN_READER else ""
    return (*dirs, *(Directory(d.name, d.path, unread) for d in more if d.path not in known))
