"""A driver root: looking things up in it as a process chrooted there would.

Three names for one file: `inside`, its path from the driver root (what the container gets), the
agent path (what we open) and the host path (what the runtime opens, and what goes into a spec).

Invariant: a link never leads out of the driver root. Absolute links, as Debian's alternatives are,
are followed inside it; NVIDIA's own generator follows them on the host and misses those libraries.
What `take` gives is root's alone over its whole way: nobody else can have another thing mounted, or
loaded, under that name.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from agent.cdi.driver import majors
from agent.errors import Refused
from agent.host import budget, trust
from agent.host.paths import HostRoot
from agent.host.trust import OpenPath

_LIST = os.O_RDONLY | os.O_DIRECTORY


@dataclass(frozen=True, slots=True)
class Taken:
    """What a path inside a driver root is: its path without links, and what the kernel says."""

    path: str
    found: os.stat_result


@dataclass(frozen=True, slots=True)
class _Look:
    """One look at a path; `distrust` is why somebody else could change what it is."""

    taken: Taken
    distrust: str | None


class DriverRoot:
    """`agent` is where we see it, `host_path` is what it is called on the host.

    `distrust` is why the whole root is not root's alone. It remembers what it was asked for, so
    that one thing is looked at once: `left_out` is what was not taken (host paths, and why), `way`
    the agent paths on which it depends who decides what the others are.
    """

    def __init__(self, agent: str, host_path: str, host: HostRoot) -> None:
        self.host_path = host_path
        self.left_out: dict[str, str] = {}
        self.way: dict[str, None] = {}
        self._tree = HostRoot(agent)
        self._host = host
        self._looks: dict[str, _Look | None] = {}
        self.distrust = self._judge_way()

    def _judge_way(self) -> str | None:
        """Where the host does not show us the root under its own name, the mount that we have of it
        is judged with everything in it."""
        try:
            with trust.open_path(self._host, self.host_path) as root:
                self.way |= dict.fromkeys(map(self._host.agent_path, root.route))
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
        """Remember why something does not enter a spec."""
        self.left_out.setdefault(self._below(inside), why)

    @contextlib.contextmanager
    def opened(self, inside: str, flags: int = os.O_PATH) -> Iterator[OpenPath]:
        """Open a path, and judge its whole way. Raises OSError or Refused."""
        with trust.open_path(self._tree, inside, flags) as found:
            self.way |= dict.fromkeys(map(self.agent_path, found.route))
            yield found

    def take(self, inside: str, fits: Callable[[int], bool] = lambda _: True) -> Taken | None:
        """What a path stands for, where its mode `fits` and it is root's alone; None otherwise. A
        device, socket or directory need not be closed to others."""
        if inside not in self._looks:
            self._looks[inside] = self._look(inside)
        look = self._looks[inside]
        if look is None or not fits(look.taken.found.st_mode):
            return None
        if look.distrust:
            self.leave_out(inside, look.distrust)
            return None
        return look.taken

    def _look(self, inside: str) -> _Look | None:
        try:
            with self.opened(inside) as found:
                return _Look(Taken(found.path.host, found.found), self._why(found))
        except (OSError, Refused):
            return None

    def agent_path(self, inside: str) -> str:
        """Where we open a path of the root; links in it are not looked at."""
        return self._tree.agent_path(inside)

    def resolve(self, inside: str) -> str | None:
        """The path with every link followed; None where that ends nowhere or outside."""
        try:
            return self._tree.resolve(inside).host
        except Refused:
            return None

    def devices(self, directory: str, pattern: str) -> list[tuple[str, os.stat_result]]:
        """Character devices in a directory whose names match, sorted: those that are root's alone,
        and no links. There can be thousands, so that their directory is judged once, and `way` does
        not have each of them."""
        found = []
        with contextlib.suppress(OSError, Refused), self.opened(directory, _LIST) as above:
            shared = above.found.st_mode & stat.S_ISVTX
            why = self._why(above) or (None if shared else self._say(directory, above.found))
            for name in sorted(
                fnmatch.filter(budget.some_names(above.fd, budget.DIRECTORY)[0], pattern)
            ):
                path, item = os.path.join(directory, name), _entry(above.fd, name)
                if item is not None and stat.S_ISLNK(item.st_mode):
                    self.leave_out(path, "it is a link, which runtimes do not follow")
                if item is None or not stat.S_ISCHR(item.st_mode):
                    continue
                if wrong := why or self._say(path, item, trust.distrust_owner):
                    self.leave_out(path, wrong)
                else:
                    found.append((name, item))
        return found

    def _why(self, found: OpenPath) -> str | None:
        """Why the way to what was opened is not root's alone."""
        return self.distrust or (found.distrust and self._below(found.distrust))

    def _say(
        self, inside: str, found: os.stat_result,
        judge: Callable[[os.stat_result], str | None] = trust.distrust,
    ) -> str | None:  # fmt: skip
        """The same of one thing, by a judge's words."""
        why = judge(found)
        return f"{self._below(inside)} {why}" if why else None

    def mount_source(self, inside: str) -> str:
        """The host path for what a path inside means: as spelled where the host's own links lead
        to the same place and are root's, else the place itself. So it is where the host does not
        show us the root under its own name."""
        if self.host_path == "/" and self._tree.root == self._host.root:
            return inside
        spelled = self._below(inside)
        look = self._looks.get(inside)
        real = self._below(look.taken.path if look else self.resolve(inside) or inside)
        try:
            with (
                trust.open_path(self._host, spelled) as one,
                trust.open_path(self._host, real) as other,
            ):
                there = one.path == other.path and not one.distrust
        except (OSError, Refused):
            there = False
        return spelled if there else real

    def _below(self, inside: str) -> str:
        return self.host_path.rstrip("/") + inside

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
        if real is None:
            return ()
        try:
            return sorted(budget.some_names(self.agent_path(real), budget.DIRECTORY)[0])
        except OSError:
            return ()

    def files(self, directories: Iterable[str], pattern: str) -> tuple[str, ...]:
        """Whatever matches in these directories and is no directory (sockets pass)."""
        found = (path for directory in directories for path in self.glob(directory, pattern))
        return tuple(path for path in found if self._is_file(path))

    def directories(self, directories: Iterable[str], pattern: str) -> tuple[str, ...]:
        """Directories that match in these."""
        found = (path for directory in directories for path in self.glob(directory, pattern))
        return tuple(path for path in found if self.take(path, stat.S_ISDIR))

    def real_files(self, directories: Iterable[str], pattern: str) -> tuple[str, ...]:
        """The same with links followed, each file once, in the order of being found."""
        found = (self.take(path) for path in self.files(directories, pattern))
        return tuple(dict.fromkeys(item.path for item in found if item))

    def _is_file(self, path: str) -> bool:
        return self.take(path, lambda mode: not stat.S_ISDIR(mode)) is not None

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


def _entry(directory: int, name: str) -> os.stat_result | None:
    """What has a name in an open directory; None where it went away."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None
