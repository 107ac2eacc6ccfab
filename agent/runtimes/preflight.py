"""The check of a candidate by the runtime's own executable, before anything is changed.

Invariant: nothing is written. Staged files live in memory and are handed to the executable as
`/proc/self/fd/N`, so that a full or read-only disk does not matter, and no other program finds
them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from agent.errors import Refused
from agent.host.paths import HostPath
from agent.runtimes.command import Dump
from agent.runtimes.config_file import ConfigFile, Files, first_unread
from agent.runtimes.desired_state import first_difference
from agent.toml import document
from agent.toml.document import Data
from agent.toml.masking import safe_path

UNKNOWN = "the runtime's executable is not known; give --executable-path"


@dataclass(frozen=True)
class Preflight:
    """The result of the check. If the check was not possible, `done` is false and `note` is the
    reason. A rejected candidate has no `Preflight`: the error Refused is raised."""

    done: bool
    note: str


@dataclass(frozen=True)
class Candidate:
    """The future files, the handlers that they have to define (`present`), and the handlers that
    may differ from the present ones (`ours`)."""

    files: Files
    present: tuple[str, ...]
    ours: tuple[str, ...]


def dump_both(
    executable: str, root: HostPath, before: Callable[[], Dump], after: Callable[[], Dump]
) -> tuple[Data, Data] | str:
    """The executable's dumps of the present files and of the future files, or the reason why it
    cannot make them. `before` and `after` make one dump each. Raises Refused if the executable
    rejects the present or the future files.

    Both dumps are made at the same time, because they take most of the time of a plan.
    """
    with ThreadPoolExecutor(1) as other:
        first = other.submit(before)
        new = after()
        old = first.result()
    if old.data is None and old.rejected:
        raise Refused(
            f"cannot use {root}: {executable} rejects it as it is ({old.error}); repair it first"
        )
    if old.data is None:
        return f"the runtime's executable cannot be asked: {old.error}"
    if new.data is None:
        raise Refused(
            f"cannot apply: {executable} rejects the new configuration "
            f"({new.error}); nothing was changed"
        )
    return old.data, new.data


def compare(executable: str, missing: str | None, before: Data, after: Data) -> Preflight:
    """The result for two dumps, from which the keys that may change are removed. `missing` is a
    handler that the second dump lacks, or None. Raises Refused for a missing handler and for a
    difference."""
    if missing:
        raise Refused(
            f"cannot apply: the runtime would not have the handler {missing}; nothing was changed"
        )
    difference = first_difference(before, after)
    if difference is not None:
        raise Refused(
            f"cannot apply: the runtime's own dump shows that {document.dotted(difference)} would "
            "change too; nothing was changed; please report this with the output of `plan`"
        )
    return Preflight(True, f"{executable} accepts the new configuration")


def memory_file(data: bytes) -> int:
    """Make a file in memory with this content, and return its descriptor. Only this process and its
    children can see the file."""
    fd = os.memfd_create("toolkit-agent-stage")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    return fd


def require_harmless(
    files: Files, executable: str | None, whole: Callable[[str], Dump],
    rest: Callable[[str], Dump], ours: Callable[[Data], Data],
) -> None:  # fmt: skip
    """Check that the files that we cannot parse have no effect on our keys. Given the host path of
    the executable, `whole` returns its dump with these files, and `rest` its dump without them.
    `ours` returns the part of a dump with our keys. Raises Refused, which names the first of the
    files and its effect."""
    file = first_unread(files)
    if file is None:
        return
    if executable is None:
        raise unread_refusal(file, f"its effect on our keys is not known: {UNKNOWN}")
    with_it, without = whole(executable), rest(executable)
    if with_it.data is None:
        raise unread_refusal(file, f"{executable} does not read it either: {with_it.error}")
    if without.data is None:
        why = f"{executable} does not load the others without it: {without.error}"
        raise unread_refusal(file, why)
    difference = first_difference(ours(with_it.data), ours(without.data))
    if difference is not None:
        raise unread_refusal(file, f"it sets {safe_path(difference)}, as {executable} shows")


def unread_refusal(file: ConfigFile, why: str) -> Refused:
    """The error for a file that we cannot parse. `why` is the reason why the file matters."""
    return Refused(f"cannot use {file.path}: {file.unread}; no edit of it is needed, but {why}")
