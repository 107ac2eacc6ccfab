"""A driver root: files are looked up in it as by a process that is chrooted there.

A file has three paths: `inside`, the path from the driver root, which is also its path in a
container; the agent path, under which the agent opens it; and the host path, under which the
runtime opens it and which specs contain.

Invariant: a link never leads out of the driver root. Absolute links, such as Debian's alternatives,
are followed inside it; NVIDIA's generator follows them on the host and misses those libraries.
`trusted_file` returns only files whose whole path root alone can change, so that no other user can
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
    """A file in a driver root. `path` has no links; `distrust` says why another user than root
    could exchange the file, None if nobody could."""

    path: str
    mode: int
    distrust: str | None


class DriverRoot:
    """A directory tree with a driver. `agent` is its agent path.

    `distrust` says why another user than root can change the whole root. Each path is looked up
    once and remembered: `left_out` has the host paths that were not accepted, with the reason;
    `judged_paths` has the agent paths whose owners, modes and links decided about all paths.
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
        """Why the root's path on the host is not trusted; None if it is. If the host does not show
        the root under that path, only the files below the agent path are judged."""
        try:
            with trust.open_path(self._host, self.host_path) as root:
                self.judged_paths |= dict.fromkeys(map(self._host.agent_path, root.route))
                if root.distrust:
                    return root.distrust
                why = trust.distrust(root.status)
                return f"{self.host_path} {why}" if why else None
        except (OSError, Refused):
            return None

    @functools.cached_property
    def majors(self) -> majors.Majors:
        """The kernel's drivers, with which device nodes are compared."""
        return majors.read(self._host)

    def leave_out(self, inside: str, why: str) -> None:
        """Record in `left_out` why a path is left out of specs. The first reason stays."""
        self.left_out.setdefault(self._below(inside), why)

    @contextlib.contextmanager
    def opened(self, inside: str, flags: int = os.O_PATH) -> Iterator[OpenPath]:
        """Open the file at `inside`, and judge every part of its path. Raises OSError or
        Refused."""
        with trust.open_path(self._tree, inside, flags) as file:
            self.judged_paths |= dict.fromkeys(map(self.agent_path, file.route))
            yield file

    def trusted_file(
        self, inside: str, fits: Callable[[int], bool] = lambda _: True
    ) -> RootFile | None:
        """The file at `inside`, if `fits` accepts its mode and root alone can exchange it; None
        otherwise. The content of a device, a socket or a directory may be writable by others."""
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
            with self.opened(inside) as file:
                return RootFile(file.path.host, file.status.st_mode, self._distrust_of(file))
        except (OSError, Refused):
            return None

    def agent_path(self, inside: str) -> str:
        """The agent path of a path inside the root; links in it are not followed."""
        return self._tree.agent_path(inside)

    def resolve(self, inside: str) -> str | None:
        """The path inside the root with every link followed; None if it leads nowhere or
        outside."""
        try:
            return self._tree.resolve(inside).host
        except Refused:
            return None

    def devices(self, directory: str, pattern: str) -> list[tuple[str, os.stat_result]]:
        """(name, stat result) of the character devices in a directory whose names match `pattern`,
        sorted. Links, and nodes that another user than root can exchange, are left out. There can
        be thousands of nodes, so their directory is judged once, and `judged_paths` does not have
        each node."""
        found = []
        with contextlib.suppress(OSError, Refused), self.opened(directory, _LIST) as above:
            why = self._distrust_of(above)
            if not why and not above.status.st_mode & stat.S_ISVTX:  # sticky: owners count
                why = self._with_path(directory, trust.distrust(above.status))
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
                if reason := why or self._with_path(path, trust.distrust_owner(item)):
                    self.leave_out(path, reason)
                else:
                    found.append((name, item))
        return found

    def _distrust_of(self, file: OpenPath) -> str | None:
        """Why another user than root can change the path to an opened file; None if nobody can."""
        return self.distrust or (file.distrust and self._below(file.distrust))

    def _with_path(self, inside: str, why: str | None) -> str | None:
        """A reason not to trust a file, with the file's host path before it."""
        return f"{self._below(inside)} {why}" if why else None

    def mount_source(self, inside: str) -> str:
        """The host path of a path inside, for a spec. Links in it are kept if the host's own links
        lead to the same file and are trusted. Otherwise they are followed; so are they if the host
        does not show the root under its own path."""
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
        """Paths in a directory whose names match, sorted. A `pattern` with slashes is matched part
        by part, each in its directory."""
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
        """Paths in these directories that match `pattern`, without directories; sockets are
        included."""
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
        """As `files`, with links followed, and each file once, in the order of the search."""
        found = (self.trusted_file(path) for path in self.files(directories, pattern))
        return tuple(dict.fromkeys(item.path for item in found if item))

    def is_link(self, inside: str) -> bool:
        """Is the last part of a path a link? Links above it are followed."""
        return self.read_link(inside) is not None

    def read_link(self, inside: str) -> str | None:
        """The target of a link, not resolved; None if the path is no link."""
        directory, name = os.path.split(inside)
        real = self.resolve(directory)
        try:
            return os.readlink(self.agent_path(os.path.join(real, name))) if real else None
        except OSError:
            return None
