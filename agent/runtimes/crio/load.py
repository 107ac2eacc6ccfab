"""The configuration files that CRI-O loads, in its order.

Invariant: files are read from disk. The root file comes first, then every file in the
drop-in directory and in those below it, whatever its name, in the order of Go's filepath.Walk.
Everything that would keep CRI-O from starting is refused here, and so is a file that others than
root can change.
"""

from __future__ import annotations

import os
import stat

from agent.errors import Refused
from agent.host import budget
from agent.host.paths import HostPath, HostRoot
from agent.runtimes.config_file import (
    ConfigFile,
    Files,
    Overlay,
    Unparsed,
    check_shape,
    checked_file,
    names,
    refuse_unread,
)
from agent.runtimes.crio.merge import SHAPE
from agent.toml.dialect import BURNT_SUSHI

ROOT = "/etc/crio/crio.conf"
DIRECTORY = "/etc/crio/crio.conf.d"


def load(host: HostRoot, root: str, directory: str, overlay: Overlay | None = None) -> Files:
    """The root file, there or not, and all drop-ins.

    `root` and `directory` are names on the host, `overlay` maps host paths to states that they are
    going to have. An empty `root` or `directory` is not read: the root file then stands there
    without a name and as missing. A drop-in that we cannot parse is loaded as `unread`;
    `preflight.require_harmless` asks CRI-O what it says. Raises Refused for any other file that
    cannot be read, parsed or trusted.
    """
    overlay = overlay or {}
    unread = ConfigFile("", HostPath(host.agent_path(ROOT), ROOT), None, {})
    loaded = [load_file(host, root, overlay) if root else unread]
    size = 0
    for name in _walk(host, directory, overlay) if directory else ():
        try:
            file = load_file(host, name, overlay)
        except Unparsed as error:
            file = error.file
        if file.state is not None:
            loaded.append(file)
            size += len(file.state.data)
        if len(loaded) > budget.CONFIG.values or size > budget.CONFIG.size:
            raise Refused(
                f"cannot use {directory}: it has more than {budget.CONFIG.values} files, or more "
                f"than {budget.CONFIG.size} bytes in them; remove what is not needed"
            )
    return tuple(loaded)


def load_file(host: HostRoot, name: str, overlay: Overlay) -> ConfigFile:
    """One file by its name on the host; missing is not an error here."""
    file = checked_file(host, name, overlay)
    refuse_unread(file, BURNT_SUSHI, "CRI-O")
    check_shape(file, SHAPE)
    return file


def _walk(host: HostRoot, directory: str, overlay: Overlay, depth: int = 0) -> list[str]:
    """Names of all files below a directory. A link to a directory is not followed: CRI-O would
    take it for a file and not start."""
    if depth > budget.NESTED.depth:
        raise Refused(
            f"cannot use {directory[:200]}: directories are nested more than "
            f"{budget.NESTED.depth} levels deep; remove what is not needed"
        )
    path = host.resolve(directory)
    found: list[str] = []
    for entry in sorted(names(host, directory, overlay), key=os.fsencode):
        below = os.path.join(directory, entry)
        inside = os.path.join(path.agent, entry), os.path.join(path.host, entry)
        if _is_directory(*inside, overlay):
            found += _walk(host, below, overlay, depth + 1)
        else:
            found.append(below)
    return found


def _is_directory(agent: str, host: str, overlay: Overlay) -> bool:
    if overlay.get(host) is not None:
        return False
    try:
        return stat.S_ISDIR(os.lstat(agent).st_mode)
    except OSError:
        return any(name.startswith(host + "/") for name in overlay)
