"""The check of a candidate by containerd's own executable, before anything is changed.

Invariant: nothing is written. The staged files are in memory, and import one another as
`/proc/self/fd/N`. So a full or read-only disk does not matter, and no other program finds them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.errors import Refused
from agent.host.files import new_state
from agent.host.paths import HostRoot
from agent.runtimes import command, preflight
from agent.runtimes.command import Dump
from agent.runtimes.config_file import ConfigFile, Files
from agent.runtimes.containerd import faults, handlers
from agent.runtimes.containerd.generations import CRI_V2, CRI_V3
from agent.runtimes.containerd.merge import LEGACY, LINUX_PLUGIN
from agent.runtimes.preflight import UNKNOWN, Candidate, Preflight, compare, dump_both, memory_file
from agent.toml import document
from agent.toml.document import Data, Op, Path, Set, Unset, get

if TYPE_CHECKING:
    from agent.runtimes.containerd.adapter import ContainerdNode

_READ = (CRI_V2, CRI_V3, *LINUX_PLUGIN)  # the plugins whose settings a plan uses


def check(node: ContainerdNode, candidate: Candidate) -> Preflight:
    """Compare the executable's dumps of the present and of the future files.

    Raises Refused if the executable rejects the candidate, or if more than our keys would change.
    Exit code 0 is not enough: containerd accepts a default runtime without a table, and a missing
    import.
    """
    executable = node.executable
    if executable is None:
        return _without_executable(node, candidate, UNKNOWN)
    dumps = dump_both(
        executable,
        node.root.path,
        lambda: dump(node.host, executable, node.files),
        lambda: dump(node.host, executable, candidate.files),
    )
    if isinstance(dumps, str):
        return _without_executable(node, candidate, dumps)
    before, after = dumps
    missing = _missing(after, candidate)
    if missing and _hides_migrated(node.host, executable, candidate.files):
        note = f"{executable} does not show what it makes of files below version 3"
        return _without_executable(node, candidate, note)
    return compare(executable, missing, _strip(before, candidate), _strip(after, candidate))


def _without_executable(node: ContainerdNode, candidate: Candidate, note: str) -> Preflight:
    """The result if the executable makes no usable dump; `note` is the reason. Raises Refused for a
    fault that is known for this generation."""
    fault = faults.fatal_fault(node.gen, candidate.files)
    if fault is not None:
        raise Refused(
            f"cannot use {node.root.path}: containerd would not start on it, because {fault}; "
            "bring the files to one version"
        )
    return Preflight(False, note)


def dump(host: HostRoot, executable: str, files: Files, plugins: tuple[str, ...] = ()) -> Dump:
    """The executable's dump of these files together; `plugins` as in `command.config_dump`."""
    if files[0].state is None:
        # 1.x cannot dump without a file; its defaults are what runs then.
        return command.config_dump(host, executable, None)
    with _stage(files) as (path, descriptors):
        sources = [file.source for file in files]
        return command.config_dump(host, executable, path, descriptors, sources, plugins)


@contextmanager
def _stage(files: Files) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Stage the files in memory, and return the path of the root file and all descriptors. The root
    file imports the others by name, in their order."""
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
    """The file's own text with other imports (`op`), because containerd has to accept its spelling
    too.

    If the imports cannot be changed in that text, a text with the same data is used. A file that we
    cannot parse is staged unchanged; `require_harmless` checks that it imports nothing.
    """
    if file.unread and file.state:
        return file.state.data
    name = file.path.host
    try:
        text = document.decoded(file.state.data, name) if file.state else ""
        return document.encoded(document.edit(text, [op], name))
    except Refused:
        return document.render(document.apply(file.data, [op])).encode()


def _missing(after: Data, candidate: Candidate) -> str | None:
    """A handler that the candidate needs and the dump lacks, None if none is missing. The default
    runtime is needed too."""
    section = cri_section(after)
    runtimes = get(after, (*section, "containerd", "runtimes"), {})
    default = get(after, (*section, "containerd", "default_runtime_name"))
    if get(after, (*section, "containerd", "default_runtime", "runtime_type")):
        default = None  # containerd 1.x makes this table the default runtime
    needed = (*candidate.present, *([default] if default else []))
    return next((name for name in needed if name not in runtimes), None)


def _hides_migrated(host: HostRoot, executable: str, files: Files) -> bool:
    """Does the executable's dump lack the CRI settings of files of older versions?

    That is so in the first releases of 2.0, although the daemon reads these settings
    (containerd#11747; read, not run).
    """
    if all(file.state is None or (file.version or 0) > 2 for file in files):
        return False
    fd = memory_file(_PROBE.encode())
    try:
        probe = command.config_dump(host, executable, f"/proc/self/fd/{fd}", (fd,))
    finally:
        os.close(fd)
    plugins = (probe.data or {}).get("plugins", {})
    return not any(get(plugins, (name, _PROBED)) == _PROBE_VALUE for name in (CRI_V2, CRI_V3))


_PROBED, _PROBE_VALUE = "max_container_log_line_size", 12345
_PROBE = f'version = 2\n[plugins."{CRI_V2}"]\n{_PROBED} = {_PROBE_VALUE}\n'


def _strip(dump: Data, candidate: Candidate) -> Data:
    rest = {key: value for key, value in dump.items() if key not in ("imports", "version")}
    return handlers.without_own_keys(rest, cri_section(dump), candidate.ours)


def cri_section(dump: Data) -> Path:
    """The path of the CRI section in a dump, which always has the executable's own version."""
    section = get(dump, ("plugins", CRI_V3))
    return ("plugins", CRI_V3 if isinstance(section, dict) else CRI_V2)


def require_harmless(node: ContainerdNode, files: Files) -> None:
    """As `runtimes.preflight.require_harmless`. Raises Refused."""
    readable = tuple(replace(f, state=new_state(), unread="") if f.unread else f for f in files)
    preflight.require_harmless(
        files,
        node.executable,
        lambda executable: dump(node.host, executable, files, _READ),
        lambda executable: dump(node.host, executable, readable, _READ),
        _of_ours,
    )


def _of_ours(dump: Data) -> Data:
    """The part of a dump that a plan uses, as nested tables."""
    section = cri_section(dump)
    names = ("runtimes", "default_runtime_name", *LEGACY)
    paths: list[Path] = [(*section, "containerd", name) for name in names]
    paths += [(*section, "enable_cdi"), ("disabled_plugins",)]
    paths += [("plugins", name) for name in LINUX_PLUGIN]
    # The names of imports differ, because the files are staged.
    number = {"imports": len(dump.get("imports") or ())}
    values = ((path, get(dump, path)) for path in paths)
    return document.apply(number, [Set(path, value) for path, value in values if value is not None])
