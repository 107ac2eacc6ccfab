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
from dataclasses import replace
from typing import Any

from agent.errors import Refused
from agent.host.files import new_state
from agent.host.paths import HostRoot
from agent.runtimes.command import Dump
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.containerd import preflight
from agent.runtimes.containerd.edit import first_difference
from agent.runtimes.containerd.generations import CRI_V2, CRI_V3
from agent.runtimes.containerd.merge import LEGACY, LINUX_PLUGIN
from agent.runtimes.node import Node
from agent.toml.edit import Data, Path, get

_PLUGINS = (CRI_V2, CRI_V3, *LINUX_PLUGIN)
UNSEEN = f"nothing shows what it does to our keys: {preflight.UNKNOWN}"
Files = tuple[ConfigFile, ...]


def require_harmless(host: HostRoot, node: Node, files: Files) -> None:
    """See that the files of these that we cannot parse have no effect on our keys. Raises Refused,
    which names the first of them, and what is known of its effect."""
    file, executable = first(files), node.executable
    if file is None:
        return
    if executable is None:
        raise refused(file, UNSEEN)
    whole = preflight.dump(host, executable, files, _PLUGINS)
    rest = preflight.dump(host, executable, tuple(map(_emptied, files)), _PLUGINS)
    require_equal(file, executable, (whole, rest), _ours)


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


def _emptied(file: ConfigFile) -> ConfigFile:
    return replace(file, state=new_state(b""), unread="") if file.unread else file


def _ours(dump: Data) -> dict[str, Any]:
    """What of a dump a plan is made from, by the path of its key."""
    cri = preflight.cri_section(dump)
    names = ("runtimes", "default_runtime_name", *LEGACY)
    paths: list[Path] = [(*cri, "containerd", name) for name in names]
    paths += [(*cri, "enable_cdi"), ("disabled_plugins",)]
    paths += [("plugins", name) for name in LINUX_PLUGIN]
    found: dict[str, Any] = {"imports": len(dump.get("imports") or ())}  # staged: other names
    for path in paths:
        table = found
        for part in path[:-1]:
            table = table.setdefault(part, {})
        if (value := get(dump, path)) is not None:
            table[path[-1]] = value
    return found
