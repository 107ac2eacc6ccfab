"""The configuration files that containerd loads, in its order.

Invariant: files are read from disk. A config dump is evidence about a running daemon, never the
source of an edit. Files on which containerd would not start are refused here. So is a file that
another user than root can change, because it names the programs that root runs.
"""

from __future__ import annotations

import os
import re
import stat
from functools import lru_cache
from itertools import islice
from types import MappingProxyType

from agent.errors import Refused
from agent.host import budget
from agent.host.paths import HostRoot
from agent.runtimes.config_file import (
    ConfigFile,
    Files,
    Overlay,
    Shape,
    checked_file,
    directory_names,
    refuse_unread,
)
from agent.runtimes.containerd.generations import (
    CRI_PLUGINS,
    Generation,
)

DEFAULT_ROOT = "/etc/containerd/config.toml"
SHAPE: Shape = (
    (("version",), int),
    (("imports",), list),
    (("plugins",), dict),
    *(
        (("plugins", name, *path), kind)
        for name in CRI_PLUGINS
        for path, kind in (
            ((), dict),
            (("enable_cdi",), bool),
            (("containerd",), dict),
            (("containerd", "runtimes"), dict),
            (("containerd", "default_runtime_name"), str),
            (("containerd", "runtimes", "*"), dict),
            (("containerd", "runtimes", "*", "options"), dict),
        )
    ),
)

_LONGEST = 4096  # characters of a path, as the kernel
_NO_OVERLAY: Overlay = MappingProxyType({})


def load(host: HostRoot, gen: Generation, root: str, overlay: Overlay = _NO_OVERLAY) -> Files:
    """The root file and all files that it imports, breadth first, as this generation loads them.

    `root` is the root file's host path. Files in `overlay` replace those on disk. The root file
    comes first, even if it is missing. An imported file that we cannot parse is loaded as `unread`;
    `preflight.require_harmless` checks it later. Raises Refused for any other file that cannot be
    read or parsed, for a value of a wrong type, and for an import without a wildcard whose file
    does not exist.
    """
    pending = [root]
    loaded: dict[str, ConfigFile] = {}
    imports = size = 0
    while pending:
        name = pending.pop(0)
        if name in loaded:
            continue
        file = checked_file(host, name, overlay, SHAPE, may_be_unread=name != root)
        if file.state is None and name != root:
            raise Refused(
                f"cannot use {_importer(loaded, name)}: it imports {name}, which does not exist, "
                "so containerd does not start; remove the import or restore the file"
            )
        if not file.unread:
            refuse_unread(file, gen.toml)
        loaded[name] = file
        patterns = file.data.get("imports", [])
        imports += len(patterns)
        size += len(file.state.data) if file.state else 0
        if max(len(loaded), imports) > budget.CONFIG.values or size > budget.CONFIG.size:
            raise Refused(
                f"cannot use {root}: it imports more than {budget.CONFIG.values} files, or more "
                f"than {budget.CONFIG.size} bytes; remove imports that are of no use"
            )
        for pattern in patterns:
            pending += _expand(host, gen, (name, pattern), overlay)
    return tuple(loaded.values())


def _importer(loaded: dict[str, ConfigFile], name: str) -> str:
    base = os.path.basename(name)
    for file in loaded.values():
        if any(os.path.basename(item) == base for item in file.data.get("imports", [])):
            return file.name
    return next(iter(loaded))


def load_file(host: HostRoot, name: str, overlay: Overlay = _NO_OVERLAY) -> ConfigFile:
    """One file by its host path, parsed. A missing file has no data and is no error here. Raises
    Refused."""
    return checked_file(host, name, overlay, SHAPE, may_be_unread=False)


def _expand(host: HostRoot, gen: Generation, where: tuple[str, str], overlay: Overlay) -> list[str]:
    """The host paths of the files that an import stands for, in the order of Go's filepath.Glob.
    `where` is the importing file and the pattern."""
    absolute = import_pattern(gen, *where)
    if absolute is None:
        return []
    if "*" not in where[1]:
        return [absolute]
    names = ["/"]
    for part in absolute.split("/")[1:]:
        below = (
            os.path.join(above, name)
            for above in names
            if not _is_file(host, above)
            for name in _names(host, above, part, overlay)
        )
        names = [*islice(below, budget.DIRECTORY.values)]
        if len(names) == budget.DIRECTORY.values:
            raise Refused(
                f"cannot use {where[0]}: the import {where[1]} stands for "
                f"{budget.DIRECTORY.values} names or more; name one directory"
            )
    return [name for name in names if _is_there(host, name, overlay)]


def _is_file(host: HostRoot, name: str) -> bool:
    """Is this a regular file? A glob in the middle of a pattern matches files too, but nothing is
    below a file."""
    try:
        return stat.S_ISREG(os.lstat(host.agent_path(name)).st_mode)
    except OSError:
        return False


def _is_there(host: HostRoot, name: str, overlay: Overlay) -> bool:
    path = host.resolve(name)
    if path.host in overlay:
        return overlay[path.host] is not None
    return os.path.lexists(path.agent)


def _names(host: HostRoot, directory: str, part: str, overlay: Overlay) -> list[str]:
    if not any(char in part for char in "*?["):
        return [part]  # a missing directory shows at the next step, a missing file matches nothing
    return [
        name for name in sorted(directory_names(host, directory, overlay)) if matches(part, name)
    ]


def import_pattern(gen: Generation, importing: str, pattern: str) -> str | None:
    """The absolute pattern of an import, for host paths. `importing` is the host path of the
    importing file. None if the pattern depends on the daemon's working directory."""
    if os.path.isabs(pattern):
        return os.path.normpath(pattern)
    if "*" in pattern and not gen.relative_globs:
        return None
    return os.path.normpath(os.path.join(os.path.dirname(importing), pattern))


def matches(pattern: str, path: str) -> bool:
    """Does an absolute pattern match a path, as by Go's filepath.Match? `*` does not match a slash,
    and matches the dot at the beginning of a name."""
    return re.fullmatch(_expression(pattern), path, re.DOTALL) is not None


@lru_cache
def _expression(pattern: str) -> str:
    """The regular expression of a pattern with `*`, `?`, `[set]`, `[^set]` and backslash.

    The text between two stars matches at its first place only, and the second star takes the rest.
    Trying other places would take too long for a pattern with many stars.
    """
    if len(pattern) > _LONGEST:
        return "(?!)"
    parts, rest = [""], pattern
    while rest:
        match = re.match(r"\\(.)|(\*)|(\?)|\[(\^?)((?:\\.|[^\]\\])+)\]|(.)", rest, re.DOTALL)
        if match is None:
            return "(?!)"  # malformed: Go matches nothing
        escaped, star, mark, negated, members, plain = match.groups()
        if star:
            parts.append("")
        elif mark:
            parts[-1] += "[^/]"
        elif members:
            parts[-1] += f"(?!/)[{negated}{members.replace('[', chr(92) + '[')}]"
        else:
            parts[-1] += re.escape(escaped or plain)
        rest = rest[match.end() :]
    if len(parts) == 1:
        return parts[0]
    between = "".join(f"(?>[^/]*?{part})" for part in parts[1:-1])
    return f"{parts[0]}{between}[^/]*{parts[-1]}"
