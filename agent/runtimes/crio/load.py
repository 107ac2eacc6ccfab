"""The configuration files that CRI-O loads, in its order.

Invariant: files are read from disk. The root file comes first, then every file below the drop-in
directory, whatever its name is, in the order of Go's filepath.Walk. Files on which CRI-O would not
start are refused here, and so is a file that another user than root can change.
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
    checked_file,
    directory_names,
    refuse_unread,
)
from agent.runtimes.crio.merge import SHAPE
from agent.toml.dialect import BURNT_SUSHI

ROOT = "/etc/crio/crio.conf"
DIRECTORY = "/etc/crio/crio.conf.d"


def load(host: HostRoot, root: str, directory: str, overlay: Overlay | None = None) -> Files:
    """The root file, which may be missing, and all drop-ins.

    `root` and `directory` are the host paths of the root file and of the drop-in directory. Files
    in `overlay` replace those on disk. If `root` is empty, the result begins with a missing file
    without a name; if `directory` is empty, there are no drop-ins. A drop-in that we cannot parse
    is loaded as `unread`; `preflight.require_harmless` checks it later. Raises Refused for any
    other file that cannot be read, parsed or trusted.
    """
    overlay = overlay or {}
    unread = ConfigFile("", HostPath(host.agent_path(ROOT), ROOT), None, {})
    loaded = [_load_file(host, root, overlay, may_be_unread=False) if root else unread]
    size = 0
    for name in _walk(host, directory, overlay) if directory else ():
        file = _load_file(host, name, overlay, may_be_unread=True)
        if file.state is not None:
            loaded.append(file)
            size += len(file.state.data)
        if len(loaded) > budget.CONFIG.values or size > budget.CONFIG.size:
            raise Refused(
                f"cannot use {directory}: it has more than {budget.CONFIG.values} files, or they "
                f"have more than {budget.CONFIG.size} bytes; remove files that are not needed"
            )
    return tuple(loaded)


def _load_file(host: HostRoot, name: str, overlay: Overlay, *, may_be_unread: bool) -> ConfigFile:
    """One file by its host path, parsed. A missing file has no data and is no error here. Raises
    Refused."""
    file = checked_file(host, name, overlay, SHAPE, may_be_unread=may_be_unread)
    if not file.unread:
        refuse_unread(file, BURNT_SUSHI, "CRI-O")
    return file


def _walk(host: HostRoot, directory: str, overlay: Overlay, depth: int = 0) -> list[str]:
    """The host paths of all files below a directory. A link to a directory counts as a file, as for
    CRI-O, which then does not start."""
    if depth > budget.NESTED.depth:
        raise Refused(
            f"cannot use {directory[:200]}: directories are nested more than "
            f"{budget.NESTED.depth} levels deep; remove directories that are not needed"
        )
    path = host.resolve(directory)
    names: list[str] = []
    for entry in sorted(directory_names(host, directory, overlay), key=os.fsencode):
        below = os.path.join(directory, entry)
        inside = os.path.join(path.agent, entry), os.path.join(path.host, entry)
        if _is_directory(*inside, overlay):
            names += _walk(host, below, overlay, depth + 1)
        else:
            names.append(below)
    return names


def _is_directory(agent: str, host: str, overlay: Overlay) -> bool:
    if overlay.get(host) is not None:
        return False
    try:
        return stat.S_ISDIR(os.lstat(agent).st_mode)
    except OSError:
        return any(name.startswith(host + "/") for name in overlay)
