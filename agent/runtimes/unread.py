"""Files of a runtime that we cannot parse, though the runtime may: imports and drop-ins.

Such a file need not be in the way where we do not edit it. What it does to our keys is asked of
the runtime's own executable, which shows all files merged: once with the file, once with an empty
one in its place. Where the two agree in everything that a plan is made from, the file is as good as
empty to us.

Invariant: reads only. A file about which the executable says nothing, or of which it shows any
effect on our keys, is refused; so is a file that imports others, or that wins over ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from agent.errors import Refused
from agent.runtimes.base import Files
from agent.runtimes.command import Dump
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.preflight import UNKNOWN, first_difference
from agent.toml.edit import Data

UNSEEN = f"nothing shows what it does to our keys: {UNKNOWN}"


def require_equal(
    file: ConfigFile, executable: str, dumps: tuple[Dump, Dump], ours: Callable[[Data], Data]
) -> None:
    """Compare what is `ours` of two dumps, with a file and without. Raises Refused."""
    whole, rest = dumps
    if whole.data is None:
        raise refused(file, f"{executable} does not read it either: {whole.error}")
    if rest.data is None:
        raise refused(file, f"{executable} does not load the others without it: {rest.error}")
    difference = first_difference(ours(whole.data), ours(rest.data))
    if difference is not None:
        from agent.toml.masking import safe_path  # needed only where something failed

        raise refused(file, f"it sets {safe_path(difference)}, as {executable} shows")


def first(files: Files) -> ConfigFile | None:
    """The first file that we cannot parse."""
    return next((file for file in files if file.unread), None)


def warnings(files: Files) -> Iterator[str]:
    """For each file that we cannot parse, what that means."""
    for file in files:
        if file.unread:
            yield (
                f"{file.path} cannot be read by this agent ({file.unread}); the runtime's own "
                "executable reads it, and shows that it changes nothing of ours"
            )


def refused(file: ConfigFile, why: str) -> Refused:
    """The refusal of a file that we cannot parse; `why` it matters."""
    return Refused(f"cannot use {file.path}: {file.unread}; no edit of it is needed, but {why}")
