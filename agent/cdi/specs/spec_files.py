"""The spec files that a runtime loads from its directories, and their content.

Invariant: files are selected as by the CDI library (pkg/cdi/spec-dirs.go): only the file name
extension counts; dot files and links to files are included, subdirectories are not. Reads only, and
within the budget.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from agent.cdi.specs.readers import Reader
from agent.cdi.specs.shape import Problem
from agent.errors import AgentError, Refused, reason
from agent.host import budget, files
from agent.host.paths import HostPath, HostRoot

LIMIT = budget.SPEC.size  # bytes; a runtime has no limit

_ENDINGS = (".json", ".yaml")
_LARGE = f"it is larger than {LIMIT >> 20} MiB: it slows the runtime down at every container"
TOO_LARGE = Problem("nothing", "", f"{_LARGE}, and was not looked at", "make it smaller")


@dataclass(frozen=True)
class Directory:
    """A spec directory. `name` is the runtime's name for it; `path` is None if the directory does
    not exist; `unread` says why the runtime reads no file in it, "" if it does."""

    name: str
    path: HostPath | None
    unread: str = ""


def directories(host: HostRoot, names: Iterable[str], reader: Reader) -> tuple[Directory, ...]:
    """The directories with these names as the runtime reads them: each once, in its order."""
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
        found.pop(path.host, None)  # of two names for one directory the later one counts
        found[path.host] = Directory(name, path, unread)
    return tuple(found.values())


def unreadable(dirs: Sequence[Directory]) -> Iterator[tuple[str, Problem]]:
    """(directory, problem) for each directory that the runtime does not read although its
    configuration names it, that the agent cannot read, or that has too many files."""
    for directory in dirs:
        if directory.path is None:
            continue
        if directory.unread.startswith("the directory"):
            yield directory.name, Problem("use", "", directory.unread, "name the directory itself")
        try:
            if _names(directory.path)[1]:
                text = f"it has more than {budget.SPEC_FILES} specs; not all were looked at"
                yield directory.name, Problem("nothing", "", text, "remove unused files")
        except FileNotFoundError:
            continue
        except OSError as error:
            text = f"the directory cannot be read: {reason(error)}"
            yield directory.name, Problem("nothing", "", text, "check the directory")


def contents(
    host: HostRoot, directory: HostPath | None
) -> Iterator[tuple[HostPath, bytes | Problem]]:
    """(path, content) of each spec in a directory; for a file that cannot be read, its problem
    instead of its content."""
    for path, found in _found(host, directory):
        data = found if isinstance(found, Problem) else content(*found)
        if data is not None:
            yield path, data


def entries(
    host: HostRoot, directory: HostPath, warnings: list[str] | None = None
) -> Iterator[tuple[HostPath, bytes]]:
    """(path, content) of the specs in a directory that can be read. Warnings about files beyond the
    budget are added to `warnings`."""
    warnings = [] if warnings is None else warnings
    left, crowded = budget.SPECS.size, False
    with contextlib.suppress(OSError):
        crowded = _names(directory)[1]
    if crowded:
        warnings.append(
            f"{directory} has more than {budget.SPEC_FILES} specs or {budget.DIRECTORY.values} "
            "names, of which not all were looked at; remove unused files"
        )
    for path, data in contents(host, directory):
        if data == TOO_LARGE or (isinstance(data, bytes) and len(data) > left):
            warnings.append(
                f"{path} was not looked at: it is larger than {LIMIT} bytes, or the files of "
                f"{directory} than {budget.SPECS.size}; make it smaller, or remove it"
            )
        elif isinstance(data, bytes):
            left -= len(data)
            yield path, data


def pipes(host: HostRoot, directory: HostPath) -> Iterator[HostPath]:
    """Named pipes that a runtime would read as specs. containerd 1.7.24 and 2.1.9 wait for such a
    pipe without end when they start."""
    for path, found in _found(host, directory):
        if not isinstance(found, Problem) and stat.S_ISFIFO(found[1].st_mode):
            yield path


def _names(directory: HostPath) -> tuple[list[str], bool]:
    """The sorted names of the specs within the budget, and whether there are more. Names with
    `nvidia` are preferred, because all specs of our kinds have such a name. Raises OSError."""
    names, crowded = files.some_names(directory.agent, budget.DIRECTORY)
    found = [name for name in names if name.endswith(_ENDINGS)]
    found.sort(key=lambda name: ("nvidia" not in name, os.fsencode(name)))
    crowded = crowded or len(found) > budget.SPEC_FILES
    return sorted(found[: budget.SPEC_FILES], key=os.fsencode), crowded


def _found(
    host: HostRoot, directory: HostPath | None
) -> Iterator[tuple[HostPath, tuple[HostPath, os.stat_result] | Problem]]:
    """(path, (path without links, stat result)) of every file that a runtime treats as a spec, or
    (path, problem) if it cannot be examined."""
    try:
        names = _names(directory)[0] if directory else []
    except OSError:
        return
    for name in names:
        assert directory is not None
        path = real = directory.child(name)
        try:
            found = os.lstat(path.agent)
            if stat.S_ISDIR(found.st_mode):
                continue
            if stat.S_ISLNK(found.st_mode):
                real = HostPath(host.resolve(path.host).agent, path.host)
                found = os.lstat(real.agent)
            yield path, (real, found)
        except FileNotFoundError:
            continue
        except OSError as error:
            text = f"it cannot be read: {reason(error)}"
            yield path, Problem("nothing", "", text, "check the file")
        except Refused as error:
            text = f"it is a link that cannot be followed: {refusal_reason(error)}"
            yield path, Problem("file", "", text, "remove it")


def content(path: HostPath, status: os.stat_result) -> bytes | Problem | None:
    """The bytes of a spec file whose path has no links, or its problem; None if the file is
    gone."""
    if stat.S_ISFIFO(status.st_mode):
        text = "it is a pipe: a runtime that reads it waits for ever, at its start too"
        return Problem("file", "", text, "remove it")
    if not stat.S_ISREG(status.st_mode):
        return Problem("file", "", "it is not a regular file", "remove it")
    if status.st_size > LIMIT:
        return TOO_LARGE
    try:
        state = files.read(path.agent, path.host, LIMIT)
    except Refused as error:
        return Problem("nothing", "", f"it cannot be read: {refusal_reason(error)}", "run as root")
    return None if state is None else state.data


def refusal_reason(error: Refused) -> str:
    """The reason in the message of a refusal, between the failed action and the remedy."""
    return error.message.partition(": ")[2].partition(";")[0]
