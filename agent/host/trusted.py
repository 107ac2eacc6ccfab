"""Opening a path of the host, and finding out whether root alone decides what is there.

The nearest directory says too little: who can write a directory further up, or made a link on the
way, decides what the name stands for.

Invariant: one walk from the host root, with a descriptor for each part. Every part is judged by its
descriptor, and the last descriptor is what the caller reads, mounts or names: nothing is looked up
by name a second time. Links are followed inside the host root only, as in `HostRoot.resolve`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from agent.data import dataclass
from agent.errors import Refused
from agent.host import safe, trust
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
    refuse_odd(name)
    with contextlib.ExitStack() as stack:
        walk = _Walk(host, name, stack)
        walk.go()
        fd, found = walk.here[-1].fd, walk.here[-1].found
        if flags != os.O_PATH:
            fd = os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC | os.O_NONBLOCK)
            stack.callback(os.close, fd)
        path = HostPath(host.agent_path(walk.path), walk.path)
        yield Opened(fd, path, found, walk.distrust, tuple(dict.fromkeys(walk.way)))


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the way: its host path, descriptor, and what the kernel says."""

    path: str
    fd: int
    found: os.stat_result


class _Walk:
    """One way from the host root; `here` are the parts from there to the present one."""

    def __init__(self, host: HostRoot, name: str, stack: contextlib.ExitStack) -> None:
        self.distrust: str | None = None
        self.way = ["/"]
        self._host = host
        self._name = name
        self._stack = stack
        self._left = _parts(name)
        self._links = 0
        root = self._part("/", safe.walk(host.agent_path("/"), _PART | os.O_DIRECTORY))
        self.here = [root]
        self._judge(root)

    @property
    def path(self) -> str:
        return self.here[-1].path

    def go(self) -> None:
        """To the end. Raises OSError, or Refused."""
        while self._left:
            name = self._left.pop()
            if name == "..":
                self._up()
                continue
            part = self._open(name)
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

    def _open(self, name: str) -> _Part:
        """The next part; where a mount of our own shows it (a view), from there."""
        path = os.path.join(self.path, name)
        agent = self._host.agent_path(path)
        if agent == os.path.join(self._host.agent_path(self.path), name):
            return self._part(path, os.open(name, _PART, dir_fd=self.here[-1].fd))
        return self._part(path, safe.walk(agent, _PART))

    def _part(self, path: str, fd: int) -> _Part:
        self._stack.callback(os.close, fd)
        return _Part(path, fd, os.fstat(fd))

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
        self._left += _parts(target)

    def _judge(self, part: _Part) -> None:
        """The first reason counts. A directory on the way must not be another's, nor writable by
        others, unless it is sticky: then each entry's own owner decides."""
        if self.distrust:
            return
        mode = part.found.st_mode
        last = not self._left and not stat.S_ISLNK(mode)
        lax = stat.S_ISLNK(mode) or _shared(part.found) or (last and not stat.S_ISREG(mode))
        why = trust.distrust_owner(part.found) if lax else trust.distrust(part.found)
        self.distrust = f"{part.path} {why}" if why else None


def _shared(found: os.stat_result) -> bool:
    """Is it a directory in which others can make entries, but not touch those of root?"""
    return stat.S_ISDIR(found.st_mode) and bool(found.st_mode & stat.S_ISVTX)


def _parts(path: str) -> list[str]:
    """The parts of a path, the last first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]
