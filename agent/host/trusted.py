"""Opening a path of the host, and finding out whether root alone decides what is there.

The nearest directory says too little: who can write a directory further up, or made a link on the
way, decides what the name stands for.

Invariant: one walk from our own root through the host root, with a descriptor for each part. Every
part is judged by its descriptor, and the last descriptor is what the caller reads, mounts or names.
Links are followed inside the host root only, as in `HostRoot.resolve`. Where root alone can change
every part of the way, root alone can change what the name stands for: a later look-up of the path
by name, by us or by a program that we start, then finds the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from agent.errors import Refused, reason
from agent.host import budget, files, safe, trust
from agent.host.files import FileState
from agent.host.paths import MAGIC, MAX_LINKS, HostPath, HostRoot, refuse_odd

_PART = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Opened:
    """What a name stands for: its descriptor, its path without links, and what the kernel says.

    `distrust` is why somebody else than root decides what is there, and what to do; None where
    nobody else does. It covers every directory and link on the way, the owner of the thing itself,
    and for a regular file who can write it. Who can write a directory, device or socket that is
    opened is the caller's to judge (`trust.distrust(found)`). `way` names every part and link that
    was met (host paths): who owns one of them, and its mode, decide about trust.
    """

    fd: int
    path: HostPath
    found: os.stat_result
    distrust: str | None
    way: tuple[str, ...] = ()


@contextlib.contextmanager
def opened(host: HostRoot, name: str, flags: int = os.O_PATH) -> Iterator[Opened]:
    """Open a host path; the descriptor is closed on leaving.

    With `flags` other than O_PATH the thing itself is opened so, without waiting (O_NONBLOCK), by
    the descriptor that was judged. Raises OSError where it is not there or cannot be opened, ELOOP
    for too many links; Refused where the way leads out of the host root or into a process.
    """
    with _walked(host, name) as walk:
        if walk.left:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        fd = walk.here[-1].fd if flags == os.O_PATH else walk.open(flags)
        way = tuple(dict.fromkeys(walk.way))
        yield Opened(fd, walk.whole, walk.here[-1].found, walk.distrust, way)


def require(
    host: HostRoot, name: str, purpose: str, *, sticky_is_fine: bool = False, links: bool = True
) -> HostPath:
    """See that root alone decides what is at a host path, or comes to be there; gives the path
    without links.

    A directory at the end, or the innermost one that is there, must not be writable by others.
    `sticky_is_fine`: it may be where it is sticky, because others cannot touch an entry of root's
    there. `links` False: there must be none on the way. Raises Refused: cannot `purpose`, which
    part of the way is not root's, and what to do.
    """
    try:
        with _walked(host, name) as walk:
            why, path = walk.distrust or walk.writable(sticky_is_fine=sticky_is_fine), walk.whole
    except OSError as error:
        raise Refused(f"cannot {purpose}: {reason(error)}") from error
    if why := why or _linked(name, path, links=links):
        raise Refused(_cannot(purpose, name, why))
    return path


def _linked(name: str, path: HostPath, *, links: bool) -> str | None:
    if links or path.host == name:
        return None
    return f"{name} leads through a link to {path}; remove the link, or name a place without one"


def _cannot(purpose: str, name: str, why: str) -> str:
    """The message; the reason need not repeat a name that the purpose ends with."""
    named = purpose.endswith(f" {name}") and why.startswith(f"{name} ")
    return f"cannot {purpose}: {'it' + why.removeprefix(name) if named else why}"


def directory(
    host: HostRoot, name: str, purpose: str, mode: int = 0o755, *,
    sticky_is_fine: bool = False, links: bool = True,
) -> HostPath:  # fmt: skip
    """Have a directory at a host path that is root's alone, with the directories above it.

    Nothing is made below what is not root's. What was made is judged again, because in a sticky
    directory somebody else can be first. Raises Refused as `require`, OSError.
    """
    path = require(host, name, purpose, sticky_is_fine=True, links=links)
    files.make_directories(path.agent, mode)
    return require(host, name, purpose, sticky_is_fine=sticky_is_fine, links=links)


def read(
    host: HostRoot, name: str, limit: int = files.LIMIT, *,
    sticky_is_fine: bool = False, links: bool = True,
) -> tuple[HostPath, FileState | None]:  # fmt: skip
    """The path without links, and the file there as `files.read` gives it; None where there is
    none. `links` and `sticky_is_fine` (where there is no file) as in `require`.

    Raises Refused for what `files.read` and `HostRoot.resolve` refuse, and where somebody else than
    root decides what is there or comes to be there.
    """
    try:
        with _walked(host, name) as walk:
            path, regular = walk.whole, stat.S_ISREG(walk.here[-1].found.st_mode)
            why = walk.distrust
            if walk.left and why is None:
                why = walk.writable(sticky_is_fine=sticky_is_fine)
            if why := why or _linked(name, path, links=links):
                raise Refused(_cannot(f"use {name}", name, why))
            if walk.left:
                return host.resolve(name), None  # which refuses a link that leads to nothing
            fd = walk.open(os.O_RDONLY) if regular else walk.here[-1].fd
            return path, files.read_open(fd, path.host, limit)
    except OSError as error:
        raise Refused(f"cannot read {name}: {reason(error)}") from error


def system_name(host: HostRoot, given: str) -> str:
    """The host path of what an option names, with those links followed that the system puts: in `/`
    and directly below it (/var/run). A container that mounts a directory, such as /run/nvidia, can
    put links further down; they belong to root too, and are left in the path. Raises Refused where
    it leads out of the host root."""
    parts = host.name(given).split("/")
    if ".." in parts:
        host.resolve("/".join(parts))
    return os.path.join(host.resolve("/".join(parts[:3])).host, *parts[3:])


def names(host: HostRoot, name: str) -> tuple[HostPath, list[str]]:
    """The path without links, and what is in the directory there; nothing where there is none.

    Raises Refused where somebody else than root can add to it.
    """
    try:
        with _walked(host, name) as walk:
            if why := walk.distrust or walk.writable():
                raise Refused(_cannot(f"use the directory {name}", name, why))
            if walk.left or not stat.S_ISDIR(walk.here[-1].found.st_mode):
                return walk.whole, []
            return walk.whole, budget.names(walk.open(os.O_RDONLY | os.O_DIRECTORY))
    except NotADirectoryError:
        return host.resolve(name), []
    except OSError as error:
        raise Refused(f"cannot read the directory {name}: {reason(error)}") from error
    except budget.OverBudget as error:
        raise Refused(
            f"cannot read the directory {name}: {error}; remove what is not needed"
        ) from error


@contextlib.contextmanager
def _walked(host: HostRoot, name: str) -> Iterator[_Walk]:
    refuse_odd(name)
    with contextlib.ExitStack() as stack:
        walk = _Walk(host, name, stack)
        walk.go()
        yield walk


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the way: its host path, descriptor, and what the kernel says."""

    path: str
    fd: int
    found: os.stat_result


class _Walk:
    """One way from the host root; `here` are the parts from there to the present one, `left` the
    names that are still to go, the next one last."""

    def __init__(self, host: HostRoot, name: str, stack: contextlib.ExitStack) -> None:
        self.distrust: str | None = None
        self.left = [""]  # what is above the host root is not the end
        self.way = ["/"]
        self._host = host
        self._name = name
        self._stack = stack
        self._links = 0
        if not host.is_host:
            self._judge_above(host.root)
        root = self._part("/", safe.walk(host.agent_path("/"), _PART | os.O_DIRECTORY))
        self.here = [root]
        self.left = _parts(name)
        self._judge(root)

    @property
    def path(self) -> str:
        return self.here[-1].path

    @property
    def whole(self) -> HostPath:
        """The whole path without links, as far as it is there."""
        path = os.path.join(self.path, *reversed(self.left))
        return HostPath(self._host.agent_path(path), path)

    def open(self, flags: int) -> int:
        """What was reached, opened by its descriptor; closed with the walk. Raises OSError."""
        again = f"/proc/self/fd/{self.here[-1].fd}"
        fd = os.open(again, flags | os.O_CLOEXEC | os.O_NONBLOCK)
        self._stack.callback(os.close, fd)
        return fd

    def writable(self, *, sticky_is_fine: bool = False) -> str | None:
        """Why others can make entries in the directory that was reached."""
        found = self.here[-1].found
        if not stat.S_ISDIR(found.st_mode) or (sticky_is_fine and _shared(found)):
            return None
        why = trust.distrust(found)
        return f"{self.path} {why}" if why else None

    def go(self) -> None:
        """To the end, or as far as there is anything. Raises OSError, or Refused."""
        while self.left:
            if self.left[-1] == "..":
                self.left.pop()
                self._up()
                continue
            part = self._next()
            if part is None:
                return
            self.way.append(part.path)
            if stat.S_ISLNK(part.found.st_mode):
                self._follow(part)
                continue
            self._judge(part)
            self.here.append(part)

    def _up(self) -> None:
        if len(self.here) > 1:
            self.here.pop()
        elif not self._host.is_host:
            raise Refused(
                f"cannot follow {self._name}: it leads out of the host root; name it without '..'"
            )

    def _next(self) -> _Part | None:
        """The next part; None where there is none. A mount of our own can show what lies below
        directories that the host root does not show: those are passed over."""
        left = self.left.copy()
        path = os.path.join(self.path, self.left.pop())
        while True:
            try:
                return self._part(path, self._open(path))
            except FileNotFoundError:
                if not (self.left and self._host.has_view_below(path)):
                    break
            path = os.path.join(path, self.left.pop())
        if ".." in left:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._name)
        self.left = left
        return None

    def _open(self, path: str) -> int:
        """A part below the present one; where a mount of our own shows it (a view), from there."""
        here = self.here[-1]
        below, agent = os.path.relpath(path, here.path), self._host.agent_path(path)
        if agent == os.path.join(self._host.agent_path(here.path), below):
            return os.open(below, _PART, dir_fd=here.fd)
        return safe.walk(agent, _PART)

    def _part(self, path: str, fd: int) -> _Part:
        self._stack.callback(os.close, fd)
        return _Part(path, fd, os.fstat(fd))

    def _judge_above(self, root: str) -> None:
        """Whoever decides what the host root is decides what is in it."""
        fd = os.open("/", _PART)
        path = "/"
        self._judge(self._part(path, fd))
        for name in root.split("/")[1:-1]:
            path = os.path.join(path, name)
            fd = os.open(name, _PART | os.O_DIRECTORY, dir_fd=fd)
            self._judge(self._part(path, fd))

    def _follow(self, link: _Part) -> None:
        self._links += 1
        if self._links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), self._name)
        if MAGIC.match(link.path):
            raise Refused(
                f"cannot follow {self._name}: {link.path} leads into a process; name the file "
                "itself"
            )
        if _shared(self.here[-1].found):  # elsewhere only root can have put it there
            self._judge(link)
        target = os.readlink("", dir_fd=link.fd)
        if target.startswith("/"):
            del self.here[1:]
        self.left += _parts(target)

    def _judge(self, part: _Part) -> None:
        """The first reason counts. A directory on the way must not be another's, nor writable by
        others, unless it is sticky: then each entry's own owner decides."""
        if self.distrust:
            return
        mode = part.found.st_mode
        last = not self.left and not stat.S_ISLNK(mode)
        lax = stat.S_ISLNK(mode) or _shared(part.found) or (last and not stat.S_ISREG(mode))
        why = trust.distrust_owner(part.found) if lax else trust.distrust(part.found)
        self.distrust = f"{part.path} {why}" if why else None


def _shared(found: os.stat_result) -> bool:
    """Is it a directory in which others can make entries, but not touch those of root?"""
    return stat.S_ISDIR(found.st_mode) and bool(found.st_mode & stat.S_ISVTX)


def _parts(path: str) -> list[str]:
    """The parts of a path, the last first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]
