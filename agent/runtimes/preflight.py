"""The check of a candidate by the runtime's own executable, before anything is changed.

Invariant: nothing is written. Staged files live in memory and are handed to the executable as
`/proc/self/fd/N`, so that a full or read-only disk does not matter, and no other program finds
them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from agent.errors import Refused
from agent.host.paths import HostPath
from agent.runtimes.command import Dump
from agent.runtimes.config_file import ConfigFile, Files
from agent.runtimes.desired_state import leaves
from agent.toml import document
from agent.toml.document import Data, Path, deep_merge
from agent.toml.ops import identical

UNKNOWN = "the runtime's executable is not known; give --executable-path"


@dataclass(frozen=True)
class Preflight:
    """The outcome. `done` is false if the check was not possible, and `note` says why."""

    done: bool
    note: str


@dataclass(frozen=True)
class Candidate:
    """Files as they will be, the handlers that they have to define, and the names of handlers
    that may differ from today's."""

    files: Files
    present: tuple[str, ...]
    ours: tuple[str, ...]


def ask(
    executable: str, root: HostPath, before: Callable[[], Dump], after: Callable[[], Dump]
) -> tuple[Data, Data] | str:
    """The dumps that a runtime's executable makes of the present files and of the future ones, or
    the reason why it cannot make them. Raises Refused if it rejects either of them.

    Both run at the same time, because they take most of the time of a plan.
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
    """The outcome for two dumps without the keys that may change. `missing` is a handler that the
    second one lacks, or None. Raises Refused for a missing handler and for a difference."""
    if missing:
        raise Refused(
            f"cannot apply: the runtime would not have the handler {missing}; nothing was changed"
        )
    difference = first_difference(before, after)
    if difference is not None:
        raise Refused(
            f"cannot apply: {document.dotted(difference)} would change too, says the runtime's own "
            "dump; nothing was changed; please report this with the output of `plan`"
        )
    return Preflight(True, f"{executable} accepts the new configuration")


def memory_file(data: bytes) -> int:
    """A descriptor of a file in memory, which only this process and its children can see."""
    fd = os.memfd_create("toolkit-agent-stage")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    return fd


def first_difference(one: Data, other: Data) -> Path | None:
    """The path of the first key in which two sets of data differ; None if they are equal."""
    old, new = dict(leaves(one)), dict(leaves(other))
    for path, _ in leaves(deep_merge(one, other)):
        if path not in old or path not in new or not identical(old[path], new[path]):
            return path
    return None


def require_harmless(
    files: Files, executable: str | None, whole: Callable[[str], Dump],
    rest: Callable[[str], Dump], ours: Callable[[Data], Data],
) -> None:  # fmt: skip
    """Check that the files that we cannot parse have no effect on our keys. `whole` and `rest` make
    the executable's dumps with these files and without them, and `ours` takes our keys from a dump.
    Raises Refused, which names the first of the files, and what is known of its effect."""
    file = first_unread(files)
    if file is None:
        return
    if executable is None:
        raise unread_refusal(file, f"nothing shows what it does to our keys: {UNKNOWN}")
    with_it, without = whole(executable), rest(executable)
    if with_it.data is None:
        raise unread_refusal(file, f"{executable} does not read it either: {with_it.error}")
    if without.data is None:
        why = f"{executable} does not load the others without it: {without.error}"
        raise unread_refusal(file, why)
    difference = first_difference(ours(with_it.data), ours(without.data))
    if difference is not None:
        from agent.toml.masking import safe_path  # needed only if something failed

        raise unread_refusal(file, f"it sets {safe_path(difference)}, as {executable} shows")


def first_unread(files: Files) -> ConfigFile | None:
    """The first file that we cannot parse."""
    return next((file for file in files if file.unread), None)


def unread_warnings(files: Files) -> Iterator[str]:
    """For each file that we cannot parse, what that means."""
    for file in files:
        if file.unread:
            yield (
                f"{file.path} cannot be read by this agent ({file.unread}); the runtime's own "
                "executable reads it, and shows that it changes nothing of ours"
            )


def unread_refusal(file: ConfigFile, why: str) -> Refused:
    """The refusal of a file that we cannot parse. `why` is the reason why that file matters."""
    return Refused(f"cannot use {file.path}: {file.unread}; no edit of it is needed, but {why}")
