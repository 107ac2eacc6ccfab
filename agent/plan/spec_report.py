"""The CDI specs of this node as its runtime sees them, and what is wrong with them.

Invariant: reads only, and needs no runtime: where none answers, the usual directories are looked at
and nothing is said of versions. No library of the CRI is loaded unless there is a socket to ask.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.cdi.specs import installed, readers
from agent.cdi.specs.installed import Device, Directory, SpecFile
from agent.cdi.specs.readers import NOBODY, Reader
from agent.cdi.specs.shape import Problem
from agent.decide import DEFAULT_DIRS, Switch
from agent.errors import AgentError, Refused
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings
from agent.runtimes import find, registry


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem of a file or a directory."""

    file: str
    problem: Problem


@dataclass(frozen=True, slots=True)
class Inventory:
    """All that is on the node. `notes` say what the answer does not cover."""

    reader: Reader
    directories: tuple[Directory, ...]
    files: tuple[SpecFile, ...]
    devices: tuple[Device, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """The runtime, and where it looks; `executable` is the agent path of its program."""

    reader: Reader
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    executable: str | None = None


def inventory(settings: Settings, host: HostRoot) -> Inventory:
    """Look at every spec on the node."""
    seen = _ask(settings, host)
    dirs = _directories(settings, host, seen)
    files = installed.specs(host, dirs, seen.reader)
    if seen.executable and any(map(installed.doubt, files)):
        seen = replace(seen, reader=readers.sharpened(seen.reader, seen.executable))
        files = installed.specs(host, dirs, seen.reader)
    found = [(file.name, problem) for file in files for problem in file.problems]
    found += [*installed.conflicts(files, dirs), *installed.unreadable(dirs)]
    notes = (*seen.notes, *((f"{seen.reader.off}: it reads no specs",) if seen.reader.off else ()))
    return Inventory(
        reader=seen.reader,
        directories=dirs,
        files=tuple(files),
        devices=tuple(installed.devices(files, dirs)),
        findings=_sorted(found),
        notes=notes,
    )


def given(settings: Settings, host: HostRoot, paths: Sequence[str]) -> Inventory:
    """Look at these files, `-` being standard input, each by itself. Raises Refused."""
    seen = _ask(settings, host)
    typed = sys.stdin.buffer.read(installed.LIMIT + 1) if "-" in paths else b""
    files = [_given(path, host, seen.reader, typed) for path in paths]
    if seen.executable and any(map(installed.doubt, files)):
        reader = readers.sharpened(seen.reader, seen.executable)
        files = [_given(path, host, reader, typed) for path in paths]
    found = [(file.name, problem) for file in files for problem in file.problems]
    return Inventory(seen.reader, (), tuple(files), (), _sorted(found), seen.notes)


def _sorted(found: Sequence[tuple[str, Problem]]) -> tuple[Finding, ...]:
    """By file, in the order in which they were found, errors first."""
    order = {name: number for number, name in reversed([*enumerate(name for name, _ in found)])}
    ranked = sorted(found, key=lambda item: (order[item[0]], item[1].severity == "warning"))
    return tuple(Finding(name, problem) for name, problem in ranked)


def _given(name: str, host: HostRoot, reader: Reader, typed: bytes) -> SpecFile:
    if name == "-":
        if len(typed) > installed.LIMIT:
            return SpecFile(name, problems=(installed.too_large(),))
        return installed.examine(name, typed, host, reader)
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
    taken = installed.content(HostPath(path, name), found)
    if isinstance(taken, Problem):
        return SpecFile(name, problems=(taken,))
    return installed.examine(name, taken or b"", host, reader)


def _ask(settings: Settings, host: HostRoot) -> _Seen:
    try:
        runtime = find.find_runtime(settings, host)
    except AgentError as error:
        cause = error.message.partition(";")[0]
        return _Seen(NOBODY, DEFAULT_DIRS, (f"{cause}: versions were not judged",))
    seen = registry.adapter_of(runtime.answer).evidence(runtime.answer)
    dirs = next((item.spec_dirs for item in seen if isinstance(item.spec_dirs, tuple)), None)
    enabled = False if any(item.switch is Switch.FALSE for item in seen) else None
    reader = readers.reader(runtime.answer.name, runtime.version, enabled=enabled)
    program = find.program(settings, host, runtime)
    if dirs is None:
        notes = ("the runtime does not say where it reads specs",)
        return _Seen(reader, DEFAULT_DIRS, notes, program)
    return _Seen(reader, dirs, (), program)


def _directories(settings: Settings, host: HostRoot, seen: _Seen) -> tuple[Directory, ...]:
    """Those of the runtime, and ours where that is another one."""
    dirs = installed.directories(host, seen.names, seen.reader)
    ours = settings.cdi_output_dir
    if not ours:
        return dirs
    more = installed.directories(host, (host.name(ours),), seen.reader)
    known = {directory.path for directory in dirs}
    unread = "the runtime does not read this directory" if seen.reader is not NOBODY else ""
    return (*dirs, *(Directory(d.name, d.path, unread) for d in more if d.path not in known))
