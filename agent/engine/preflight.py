"""Asking the runtime's own executable, before anything is changed, what it makes of the candidate.

Invariant: nothing is written. The staged files live in memory and are handed to the executable as
`/proc/self/fd/N`, with their imports rewritten to one another, so that not even a full or read-only
disk is in the way and no reader ever finds a stage.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from agent import tomledit
from agent.data import dataclass
from agent.engine.node import Node
from agent.engine.plan import first_difference
from agent.errors import Refused
from agent.host.paths import HostRoot
from agent.observe import command
from agent.runtimes import faults
from agent.runtimes.containerd import ConfigFile
from agent.runtimes.generations import CRI_V2, CRI_V3
from agent.tomledit import Data, Op, Path, Set, Unset, get


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
        note = "the runtime's executable cannot be told; give --executable-path"
        return _without_executable(node, candidate, note)
    before, after = _dumps(host, node.executable, node.files, candidate.files)
    if before.data is None and not before.rejected:
        note = f"the runtime's executable cannot be asked: {before.error}"
        return _without_executable(node, candidate, note)
    if after.data is None and before.data is None:
        raise Refused(
            f"cannot use {node.root.path}: {node.executable} rejects it as it is "
            f"({before.error[:300]}); repair it first"
        )
    if after.data is None:
        raise Refused(
            f"cannot apply: {node.executable} rejects the new configuration "
            f"({after.error[:300]}); nothing was changed"
        )
    missing = _missing(after.data, candidate)
    if missing and _hides_migrated(host, node.executable, candidate.files):
        note = f"{node.executable} does not show what it makes of files below version 3"
        return _without_executable(node, candidate, note)
    if missing:
        raise Refused(
            f"cannot apply: the runtime would not have the handler {missing}; nothing was changed"
        )
    _compare(before.data or {}, after.data, candidate)
    return Preflight(True, f"{node.executable} accepts the new configuration")


def _without_executable(node: Node, candidate: Candidate, note: str) -> Preflight:
    """What is known of this generation has to do; where it can be asked, its own word counts."""
    fault = faults.fatal(node.gen, candidate.files)
    if fault is not None:
        raise Refused(f"cannot use {node.root.path}: containerd does not start so: {fault}")
    return Preflight(False, note)


def _dumps(
    host: HostRoot, executable: str, before: tuple[ConfigFile, ...], after: tuple[ConfigFile, ...]
) -> tuple[command.Dump, command.Dump]:
    """Both at once: they are most of what a plan takes."""
    with ThreadPoolExecutor(1) as other:
        first = other.submit(_dump, host, executable, before)
        second = _dump(host, executable, after)
        return first.result(), second


def _dump(host: HostRoot, executable: str, files: tuple[ConfigFile, ...]) -> command.Dump:
    if files[0].state is None:
        # 1.x cannot dump without a file; its defaults are what runs then.
        return command.config_dump(host, executable, None)
    with _stage(files) as (path, descriptors):
        return command.config_dump(host, executable, path, descriptors)


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

    Where imports cannot be changed in it, a rendering with the same meaning stands in.
    """
    text = file.state.data.decode() if file.state else ""
    try:
        return tomledit.edit(text, [op], file.path.host).encode()
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
    section = _section(after)
    runtimes = get(after, (*section, "containerd", "runtimes"), {})
    default = get(after, (*section, "containerd", "default_runtime_name"))
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
        dump = command.config_dump(host, executable, f"/proc/self/fd/{fd}", (fd,))
    finally:
        os.close(fd)
    plugins = (dump.data or {}).get("plugins", {})
    return not any(get(plugins, (name, _PROBED)) == _PROBE_VALUE for name in (CRI_V2, CRI_V3))


_PROBED, _PROBE_VALUE = "max_container_log_line_size", 12345
_PROBE = f'version = 2\n[plugins."{CRI_V2}"]\n{_PROBED} = {_PROBE_VALUE}\n'


def _compare(before: Data, after: Data, candidate: Candidate) -> None:
    difference = first_difference(_strip(before, candidate), _strip(after, candidate))
    if difference is not None:
        raise Refused(
            f"cannot apply: {tomledit.dotted(difference)} would change too, says the runtime's own "
            "dump; nothing was changed; please report this with the output of `plan`"
        )


def _strip(dump: Data, candidate: Candidate) -> Data:
    section = _section(dump)
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


def _section(dump: Data) -> Path:
    """Where a dump has the CRI: dumps are always rewritten to the executable's own version."""
    found = get(dump, ("plugins", CRI_V3))
    return ("plugins", CRI_V3 if isinstance(found, dict) else CRI_V2)
