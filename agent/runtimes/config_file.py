"""One configuration file of containerd, and what it imports.

Invariant: what is read of a file is checked for its type first, and patterns mean what they mean
to Go; nothing here depends on what other files say.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from agent.errors import Refused
from agent.host.files import FileState
from agent.host.paths import HostPath
from agent.runtimes.containerd.generations import CRI_V1, CRI_V2, CRI_V3, Generation
from agent.toml import text as tomltext
from agent.toml.edit import Data, Path, get

if TYPE_CHECKING:
    from agent.toml.masking import Source

_LONGEST = 4096  # characters of a path, as the kernel


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """One loaded file. `name` is how the daemon finds it, `path` where it lies once links are
    followed; `state` is None and `data` {} where it is missing (the root file may be). `unread` is
    why we cannot parse it, although the runtime may; `data` is {} then, too."""

    name: str
    path: HostPath
    state: FileState | None
    data: Data
    unread: str = ""

    @property
    def version(self) -> int | None:
        found = self.data.get("version")
        return found if isinstance(found, int) else None

    @property
    def source(self) -> Source:
        """What a message about the file is explained with."""
        from agent.toml.masking import Source  # needed only where something fails

        text = tomltext.decoded(self.state.data) if self.state else ""
        return Source(self.path.host, text, self.data)


def check_shape(file: ConfigFile) -> None:
    """Refuse wrong types where we are going to read: containerd would not start on them."""
    expected: tuple[tuple[str, type], ...] = (
        ("version", int),
        ("imports", list),
        ("plugins", dict),
    )
    for key, kind in expected:
        value = file.data.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise _wrong(file, key, kind.__name__)
    if any(not isinstance(item, str) for item in file.data.get("imports", [])):
        raise _wrong(file, "imports", "list of strings")
    for name in (CRI_V1, CRI_V2, CRI_V3):
        section = get(file.data, ("plugins", name))
        for path, kind in _SHAPE:
            value = section if not path else get(section, path)
            if value is not None and not isinstance(value, kind):
                raise _wrong(file, ".".join(("plugins", name, *path)), kind.__name__)
        for handler, table in (get(section, ("containerd", "runtimes")) or {}).items():
            if not isinstance(table, dict):
                raise _wrong(file, f"runtimes.{handler}", "dict")
            if not isinstance(table.get("options", {}), dict):
                raise _wrong(file, f"runtimes.{handler}.options", "dict")


_SHAPE: tuple[tuple[Path, type], ...] = (
    ((), dict),
    (("enable_cdi",), bool),
    (("containerd",), dict),
    (("containerd", "runtimes"), dict),
    (("containerd", "default_runtime_name"), str),
)


def _wrong(file: ConfigFile, key: str, kind: str) -> Refused:
    names = {"dict": "table", "str": "string", "int": "whole number", "bool": "true or false"}
    return Refused(f"cannot use {file.path}: {key} is not a {names.get(kind, kind)}; repair it")


def import_pattern(gen: Generation, importing: str, pattern: str) -> str | None:
    """The absolute host pattern of one import, or None where it depends on the daemon's cwd."""
    if os.path.isabs(pattern):
        return os.path.normpath(pattern)
    if "*" in pattern and not gen.relative_globs:
        return None
    return os.path.normpath(os.path.join(os.path.dirname(importing), pattern))


def matches(pattern: str, path: str) -> bool:
    """Go's filepath.Match for absolute patterns: `*` stops at a slash and takes dot files."""
    return re.fullmatch(_expression(pattern), path, re.DOTALL) is not None


@lru_cache
def _expression(pattern: str) -> str:
    """The regular expression of a pattern: `*`, `?`, `[set]`, `[^set]` and backslash.

    What stands between two stars is taken where it comes first, and nowhere else: the second star
    takes the rest. To try other places would take for ever with many stars.
    """
    if len(pattern) > _LONGEST:
        return "(?!)"
    parts, rest = [""], pattern
    while rest:
        found = re.match(r"\\(.)|(\*)|(\?)|\[(\^?)((?:\\.|[^\]\\])+)\]|(.)", rest, re.DOTALL)
        if found is None:
            return "(?!)"  # malformed: Go matches nothing
        escaped, star, mark, negated, members, plain = found.groups()
        if star:
            parts.append("")
        elif mark:
            parts[-1] += "[^/]"
        elif members:
            parts[-1] += f"(?!/)[{negated}{members.replace('[', chr(92) + '[')}]"
        else:
            parts[-1] += re.escape(escaped or plain)
        rest = rest[found.end() :]
    if len(parts) == 1:
        return parts[0]
    between = "".join(f"(?>[^/]*?{part})" for part in parts[1:-1])
    return f"{parts[0]}{between}[^/]*{parts[-1]}"
