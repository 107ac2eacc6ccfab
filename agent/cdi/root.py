"""A driver root: looking things up in it as a process chrooted there would.

Three names for one file: `inside`, its path from the driver root (what the container gets), the
agent path (what we open) and the host path (what the runtime opens, and what goes into a spec).

Invariant: a link never leads out of the driver root. Absolute links, as Debian's alternatives are,
are followed inside it; NVIDIA's own generator follows them on the host and misses those libraries.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterable, Sequence

from agent.errors import Refused
from agent.host.paths import HostRoot


class DriverRoot:
    """`agent` is where we see it, `host_path` is what it is called on the host."""

    def __init__(self, agent: str, host_path: str, host: HostRoot) -> None:
        self.host_path = host_path
        self._tree = HostRoot(agent)
        self._host = host

    def agent_path(self, inside: str) -> str:
        """Where we open a path of the root; links in it are not looked at."""
        return self._tree.agent_path(inside)

    def resolve(self, inside: str) -> str | None:
        """The path with every link followed; None where that ends nowhere or outside."""
        try:
            return self._tree.resolve(inside).host
        except Refused:
            return None

    def mount_source(self, inside: str) -> str:
        """The host path for what a path inside means: as spelled where the host's own links lead
        to the same place, else the place itself."""
        spelled = self._below(inside)
        real = self._below(self.resolve(inside) or inside)
        try:
            there = self._host.resolve(spelled).host == self._host.resolve(real).host
        except Refused:
            there = False
        return spelled if there else real

    def _below(self, inside: str) -> str:
        return self.host_path.rstrip("/") + inside

    def stat(self, inside: str) -> os.stat_result | None:
        """What a path is in the end, links followed inside the root; None where it is nothing."""
        found = self.resolve(inside)
        try:
            return os.lstat(self.agent_path(found)) if found else None
        except OSError:
            return None

    def glob(self, directory: str, pattern: str) -> tuple[str, ...]:
        """Paths in a directory whose names match, sorted; `pattern` may have slashes, then every
        part is matched in its directory."""
        part, _, rest = pattern.partition("/")
        found: list[str] = []
        for name in self._names(directory):
            if not fnmatch.fnmatchcase(name, part) or (name[0] == "." and part[0] != "."):
                continue
            path = os.path.join(directory, name)
            found += self.glob(path, rest) if rest else (path,)
        return tuple(found)

    def _names(self, directory: str) -> Sequence[str]:
        real = self.resolve(directory)
        try:
            return sorted(os.listdir(self.agent_path(real))) if real else ()
        except OSError:
            return ()

    def files(self, directories: Iterable[str], pattern: str) -> tuple[str, ...]:
        """Whatever matches in these directories and is no directory (sockets pass)."""
        found = (path for directory in directories for path in self.glob(directory, pattern))
        return tuple(path for path in found if self._is_file(path))

    def real_files(self, directories: Iterable[str], pattern: str) -> tuple[str, ...]:
        """The same with links followed, each file once, in the order of being found."""
        found = (self.resolve(path) for path in self.files(directories, pattern))
        return tuple(dict.fromkeys(path for path in found if path))

    def _is_file(self, path: str) -> bool:
        found = self.stat(path)
        return found is not None and not stat.S_ISDIR(found.st_mode)

    def is_link(self, inside: str) -> bool:
        """Is a path itself a link? Its directory is followed."""
        return self.read_link(inside) is not None

    def read_link(self, inside: str) -> str | None:
        """Where a path's own link points, as it is written; None where it is no link."""
        directory, name = os.path.split(inside)
        real = self.resolve(directory)
        try:
            return os.readlink(self.agent_path(os.path.join(real, name))) if real else None
        except OSError:
            return None
