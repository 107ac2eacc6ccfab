"""A driver root: files are looked up in it as by a process that is chrooted there.

A file has three paths: `inside`, its path from the driver root (the container gets it under that),
the agent path (the agent opens it) and the host path (the runtime opens it; specs have it).

Invariant: a link never leads out of the driver root. Absolute links, such as Debian's alternatives,
are followed inside it; NVIDIA's generator follows them on the host and misses those libraries.
`trusted_file` gives only files whose whole path root alone can change, so that no other user can
have another file mounted or loaded under that name.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from agent.cdi.driver import majors
from agent.errors import Refused
from agent.host import budget, trust
from agent.host.paths import HostRoot
from agent.host.trust import OpenPath

_LIST = os.O_RDONLY | os.O_DIRECTORY


@dataclass(frozen=True)
class RootFile:
    """A file in a driver root: its path without links, its mode, and why another user than root
    could exchange it."""

    path: str
    mode: int
    distrust: str | None


class DriverRoot:
    """`agent` is its agent path, `host_path` its path on the host.

    `distrust` is why another user than root can change the whole root. Each path is looked up once
    and remembered: `left_out` has the host paths that were not taken, with the reason;
    `judged_paths` has the agent paths whose owners, modes and links decided about the others.
    """

    def __init__(self, agent: str, host_path: str, host: HostRoot) -> None:
        self.host_path = host_path
        self.left_out: dict[str, str] = {}
        self.judged_paths: dict[str, None] = {}
        self._tree = HostRoot(agent)
        self._host = host
        self._looks: dict[str, RootFile | None] = {}
        self.distrust = self._judge_root()

    def _judge_root(self) -> str | None:
        """Why the root's path on the host is not trusted. If the host does not show the root
        under that path, the files below the agent path are judged only."""
        try:
            with trust.open_path(self._host, self.host_path) as root:
                self.judged_paths |= dict.fromkeys(map(self._host.agent_path, root.route))
                if root.distrust:
                    return root.distrust
                why = trust.distrust(root.found)
                return f"{self.host_path} {why}" if why else None
        except (OSError, Refused):
            return None

    @functools.cached_property
    def majors(self) -> majors.Majors:
        """The drivers of the host's device nodes."""
        return majors.read(self._host)

    def leave_out(self, inside: str, why: str) -> None:
        """Remember why a path is left out of specs."""
        self.left_out.setdefault(self._below(inside), why)

    @contextlib.contextmanager
    def opened(self, inside: str, flags: int = os.O_PATH) -> Iterator[OpenPath]:
        """Open a path, and judge its whole path. Raises OSError or Refused."""
        with trust.open_path(self._tree, inside, flags) as found:
            self.judged_paths |= dict.fromkeys(map(self.agent_path, found.route))
            yield found

    def trusted_file(
        self, inside: str, fits: Callable[[int], bool] = lambda _: True
    ) -> RootFile | None:
        """The file at a path, if its mode `fits` and root alone can exchange it; None otherwise.
        Others may write to a device, a socket or a directory."""
        if inside not in self._looks:
            self._looks[inside] = self._look(inside)
        file = self._looks[inside]
        if file is None or not fits(file.mode):
            return None
        if file.distrust:
            self.leave_out(inside, file.distrust)
            return None
        return file

    def _look(self, inside: str) -> RootFile | None:
        try:
            with self.opened(inside) as found:
                return RootFile(found.path.host, found.found.st_mode, self._why(found))
        except (OSError, Refused):
            return None

    def agent_path(self, inside: str) -> str:
        """The agent path of a path inside the root; links in it are not followed."""
        return self._tree.agent_path(inside)

    def resolve(self, inside: str) -> str | None:
        """The path with every link followed; None if it leads nowhere or outside."""
        try:
            return self._tree.resolve(inside).host
        except Refused:
            return None

    def devices(self, directory: str, pattern: str) -> list[tuple[str, os.stat_result]]:
        """Character devices in a directory whose names match, sorted, without links and without
        those that another user than root can exchange. There can be thousands, so their directory
        is judged once, and `judged_paths` does not have each of them."""
        found = []
        with contextlib.suppress(OSError, Refused), self.opened(directory, _LIST) as above:
            why = self._why(above)
            if not why and not above.found.st_mode & stat.S_ISVTX:  # sticky: owners count
                why = self._with_path(directory, trust.distrust(above.found))
            names = budget.some_names(above.fd, budget.DIRECTORY)[0]
            for name in sorted(fnmatch.filter(names, pattern)):
                path = os.path.join(directory, name)
                try:
                    item = os.stat(name, dir_fd=above.fd, follow_symlinks=False)
                except OSError:  # it is gone
                    continue
                if stat.S_ISLNK(item.st_mode):
                    self.leave_out(path, "it is a link, which runtimes do not follow")
                if not stat.S_ISCHR(item.st_mode):
                    continue
                if wrong := why or self._with_path(path, trust.distrust_owner(item)):
                    self.leave_out(path, wrong)
                else:
                    found.append((name, item))
        return found

    def _why(self, found: OpenPath) -> str | None:
        """Why another user than root can change the path to an opened file."""
        return self.distrust or (found.distrust and self._below(found.distrust))

    def _with_path(self, inside: str, why: str | None) -> str | None:
        """A reason not to trust a file, after its host path."""
        return f"{self._below(inside)} {why}" if why else None

    def mount_source(self, inside: str) -> str:
        """The host path of a path inside, for a spec: with links as they are if the host's own
        links lead to the same file and are trusted, else without links. Without links, too, if
        the host does not show the root under its own path."""
        if self.host_path == "/" and self._tree.root == self._host.root:
            return inside
        spelled = self._below(inside)
        look = self._looks.get(inside)
        real = self._below(look.path if look else self.resolve(inside) or inside)
        try:
            with (
                trust.open_path(self._host, spelled) as one,
                trust.open_path(self._host, real) as other,
            ):
                same = one.path == other.path and not one.distrust
        except (OSError, Refused):
            same = False
        return spelled if same else real

    def _below(self, inside: str) -> str:
        return self.host_path.rstrip("/") + inside

    def glob(self, directory: str, pattern: str) -> tuple[str, ...]:
        """Paths in a directory whose names match, sorted. Each part of a `pattern` with slashes is
        matched in its directory."""
        part, _, rest = pattern.partition("/")
        real, found = self.resolve(directory), list[str]()
        try:
            names = budget.some_names(self.agent_path(real), budget.DIRECTORY)[0] if real else ()
        except OSError:
            return ()
        for name in sorted(names):
            if not fnmatch.fnmatchcase(name, part) or (name[0] == "." and part[0] != "."):
                continue
            path = os.path.join(directory, name)
            found += self.glob(path, rest) if rest else (path,)
        return tuple(found)

    def files(self, directories: Iterable[str], pattern: str) -> tuple[str, ...]:
        """Paths in these directories that match and are no directories (sockets included)."""
        return self._fitting(directories, pattern, lambda mode: not stat.S_ISDIR(mode))

    def directories(self, directories: Iterable[str], pattern: str) -> tuple[str, ...]:
        """Directories in these directories that match."""
        return self._fitting(directories, pattern, stat.S_ISDIR)

    def _fitting(
        self, directories: Iterable[str], pattern: str, fits: Callable[[int], bool]
    ) -> tuple[str, ...]:
        found = (path for directory in directories for path in self.glob(directory, pattern))
        return tuple(path for path in found if self.trusted_file(path, fits))

    def real_files(self, directories: Iterable[str], pattern: str) -> tuple[str, ...]:
        """As `files`, with links followed, each file once, in the order in which they are found."""
        found = (self.trusted_file(path) for path in self.files(directories, pattern))
        return tuple(dict.fromkeys(item.path for item in found if item))

    def is_link(self, inside: str) -> bool:
        """Is a path itself a link? Links above it are followed."""
        return self.read_link(inside) is not None

    def read_link(self, inside: str) -> str | None:
        """The target of a link, as it is written; None if the path is no link."""
        directory, name = os.path.split(inside)
        real = self.resolve(directory)
        try:
            return os.readlink(self.agent_path(os.path.join(real, name))) if real else None
        except OSError:
            return None
