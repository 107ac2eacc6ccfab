"""Asking the runtime's own executable, before anything is changed, what it makes of the candidate.

Invariant: nothing is written. The staged files live in memory and are handed to the executable as
`/proc/self/fd/N`, with their imports rewritten to one another, so that not even a full or read-only
disk is in the way and no reader ever finds a stage.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from agent.errors import Refused
from agent.host.paths import HostPath, HostRoot
from agent.runtimes import command
from agent.runtimes.command import Dump
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.containerd import faults
from agent.runtimes.containerd.edit import first_difference
from agent.runtimes.containerd.generations import CRI_V2, CRI_V3
from agent.runtimes.node import Node
from agent.toml import edit as tomledit
from agent.toml.edit import Data, Op, Path, Set, Unset, get

UNKNOWN = "the runtime's executable cannot be told; give --executable-path"


@dataclass(frozen=True, slots=True)
class Preflight:
    """The outcome: `done` false means that it was not possible, and `note` says why."""

    done: bool
    note: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """Files as they will be, the handlers that they have to define, and the names of handlers
    that may differ from today's."""

    files: tuple[ConfigFile, ...]
    present: tuple[str, ...]
    ours: tuple[str, ...]


def check(host: HostRoot, node: Node, candidate: Candidate) -> Preflight:
    """Compare the executable's dump of the files as they are and as they will be.

    Raises Refused where it turns the candidate down, or where more would change than our keys.
    rc 0 alone proves little: a default without a table and a missing import pass it.
    """
    if node.executable is None:
        return _without_executable(node, candidate, UNKNOWN)
    asked = ask(
        node.executable,
        node.root.path,
        functools.partial(dump, host, node.executable, node.files),
        functools.partial(dump, host, node.executable, candidate.files),
    )
    if isinstance(asked, str):
        return _without_executable(node, candidate, asked)
    before, after = asked
    missing = _missing(after, candidate)
    if missing and _hides_migrated(host, node.executable, candidate.files):
        note = f"{node.executable} does not show what it makes of files below version 3"
        return _without_executable(node, candidate, note)
    refuse_missing(missing)
    was, will_be = _strip(before.data or {}, candidate), _strip(after, candidate)
    refuse_difference(was, will_be, "dump")
    return accepted(node.executable)


def ask(
    executable: str, root: HostPath, before: Callable[[], Dump], after: Callable[[], Dump]
) -> tuple[Dump, Data] | str:
    """What the executable of a runtime of any kind shows of the files as they are and as they will
    be, or why it cannot be asked. Raises Refused where it turns the candidate down.

    Both at once: they are most of what a plan takes.
    """
    with ThreadPoolExecutor(1) as other:
        first = other.submit(before)
        new = after()
        old = first.result()
    if old.data is None and not old.rejected:
        return f"the runtime's executable cannot be asked: {old.error}"
    if new.data is not None:
        return old, new.data
    if old.data is None:
        raise rejected_already(executable, root, old)
    raise Refused(
        f"cannot apply: {executable} rejects the new configuration "
        f"({new.error}); nothing was changed"
    )


def rejected_already(executable: str, root: HostPath, dump: Dump) -> Refused:
    """The files were turned down before anything of ours was in them."""
    return Refused(
        f"cannot use {root}: {executable} rejects it as it is ({dump.error}); repair it first"
    )


def refuse_missing(handler: str | None) -> None:
    """Raises Refused for a handler, if any, that there has to be and would not."""
    if handler:
        raise Refused(
            f"cannot apply: the runtime would not have the handler {handler}; nothing was changed"
        )


def refuse_difference(before: Data, after: Data, view: str) -> None:
    """Raises Refused where they differ: they are what is shown, without what may change."""
    difference = first_difference(before, after)
    if difference is not None:
        raise Refused(
            f"cannot apply: {tomledit.dotted(difference)} would change too, says the runtime's own "
            f"{view}; nothing was changed; please report this with the output of `plan`"
        )


def accepted(executable: str) -> Preflight:
    """Nothing speaks against the candidate."""
    return Preflight(True, f"{executable} accepts the new configuration")


def _without_executable(node: Node, candidate: Candidate, note: str) -> Preflight:
    """What is known of this generation has to do; where it can be asked, its own word counts."""
    fault = faults.fatal(node.gen, candidate.files)
    if fault is not None:
        raise Refused(f"cannot use {node.root.path}: containerd does not start so: {fault}")
    return Preflight(False, note)


def dump(
    host: HostRoot, executable: str, files: tuple[ConfigFile, ...], plugins: tuple[str, ...] = ()
) -> Dump:
    """What the executable of a containerd makes of these files together; `plugins` as in
    `command.config_dump`."""
    if files[0].state is None:
        # 1.x cannot dump without a file; its defaults are what runs then.
        return command.config_dump(host, executable, None)
    with _stage(files) as (path, descriptors):
        sources = [file.source for file in files]
        return command.config_dump(host, executable, path, descriptors, sources, plugins)


@contextmanager
def _stage(files: tuple[ConfigFile, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The files in memory; the root imports all others, literally and in their order."""
    with ExitStack() as stack:

        def keep(text: bytes) -> int:
            fd = memory_file(text)
            stack.callback(os.close, fd)
            return fd

        imported = [keep(_text(file, Unset(("imports",)))) for file in files[1:]]
        names = [f"/proc/self/fd/{fd}" for fd in imported]
        first: Op = Set(("imports",), names) if names else Unset(("imports",))
        root = keep(_text(files[0], first))
        yield f"/proc/self/fd/{root}", (root, *imported)


def _text(file: ConfigFile, op: Op) -> bytes:
    """The file's own text with other imports: its spelling is part of what has to be accepted.

    Where imports cannot be changed in it, a rendering with the same meaning stands in. A file that
    we cannot parse goes as it is: `engine.unread` sees that it imports nothing.
    """
    if file.unread and file.state:
        return file.state.data
    name = file.path.host
    try:
        text = tomledit.decoded(file.state.data, name) if file.state else ""
        return tomledit.encoded(tomledit.edit(text, [op], name))
    except Refused:
        return tomledit.render(tomledit.apply(file.data, [op])).encode()


def memory_file(data: bytes) -> int:
    """A descriptor of a file that only we, and whom we hand it to, can see."""
    fd = os.memfd_create("toolkit-agent-stage")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    return fd


def _missing(after: Data, candidate: Candidate) -> str | None:
    """A handler that there would have to be, the default's included, and would not."""
    section = cri_section(after)
    runtimes = get(after, (*section, "containerd", "runtimes"), {})
    default = get(after, (*section, "containerd", "default_runtime_name"))
    if get(after, (*section, "containerd", "default_runtime", "runtime_type")):
        default = None  # containerd 1.x makes a handler of it, and that the default
    needed = (*candidate.present, *([default] if default else []))
    return next((name for name in needed if name not in runtimes), None)


def _hides_migrated(host: HostRoot, executable: str, files: tuple[ConfigFile, ...]) -> bool:
    """Does this executable print files of older versions without their CRI settings?

    The first releases of 2.0 do, while the daemon reads them (containerd#11747; read, not run).
    """
    if all(file.state is None or (file.version or 0) > 2 for file in files):
        return False
    fd = memory_file(_PROBE.encode())
    try:
        shown = command.config_dump(host, executable, f"/proc/self/fd/{fd}", (fd,))
    finally:
        os.close(fd)
    plugins = (shown.data or {}).get("plugins", {})
    return not any(get(plugins, (name, _PROBED)) == _PROBE_VALUE for name in (CRI_V2, CRI_V3))


_PROBED, _PROBE_VALUE = "max_container_log_line_size", 12345
_PROBE = f'version = 2\n[plugins."{CRI_V2}"]\n{_PROBED} = {_PROBE_VALUE}\n'


def _strip(dump: Data, candidate: Candidate) -> Data:
    section = cri_section(dump)
    runtimes = (*section, "containerd", "runtimes")
    ops: list[Op] = [Unset((*runtimes, name)) for name in candidate.ours]
    ops += [
        Unset((*section, "containerd", "default_runtime_name")),
        # containerd 1.x's deprecated table, and what it is called once it is a handler
        Unset((*section, "containerd", "default_runtime")),
        Unset((*runtimes, "default")),
        Unset((*section, "enable_cdi")),
        Unset(("imports",)),
        Unset(("version",)),
    ]
    return tomledit.apply(dump, ops)


def cri_section(dump: Data) -> Path:
    """Where a dump has the CRI: dumps are always rewritten to the executable's own version."""
    found = get(dump, ("plugins", CRI_V3))
    return ("plugins", CRI_V3 if isinstance(found, dict) else CRI_V2)
