"""The trusted opening of a path: only root may be able to change the file to which a path leads.

The nearest directory alone does not decide this. A user who can write a directory further up, or
who made a link in the path, can change the file too.

Invariant: one walk from our own root through the host root, with a descriptor for each part of the
path. Every part is judged by its descriptor, and the caller reads, mounts or names the last
descriptor. Links are followed inside the host root only, as in `HostRoot.resolve`. If only root can
change every part, only root can change the file to which the path leads. A later look-up by name,
by us or by a program that we start, then finds the same file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from agent.errors import Refused, reason
from agent.host import budget, files, nofollow
from agent.host.files import FileState
from agent.host.paths import MAGIC, MAX_LINKS, HostPath, HostRoot, refuse_odd

_PART = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def distrust(status: FileState | os.stat_result) -> str | None:
    """The reason why a user other than root can change a file or a directory, with the remedy; None
    if only root can. The text follows the path in a message."""
    if isinstance(status, FileState):
        uid, mode = status.uid, status.mode
    else:
        uid, mode = status.st_uid, stat.S_IMODE(status.st_mode)
    if why := _distrust_uid(uid):
        return why
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written by others (mode {mode:04o}), who could become root; chmod go-w it"
    return None


def distrust_owner(status: os.stat_result) -> str | None:
    """As `distrust`, for a file whose mode does not count: a link, a device, a sticky directory."""
    return _distrust_uid(status.st_uid)


def _distrust_uid(uid: int) -> str | None:
    if uid in (0, os.geteuid()):
        return None
    return f"belongs to user {uid}, who could become root with it; chown it to root"


@dataclass(frozen=True)
class OpenPath:
    """A host path that was opened: its descriptor, its path without links, its status.

    `distrust` is the reason why a user other than root can change the file to which the path leads,
    with the remedy; None if only root can. It covers every directory and link of the path, the
    owner of the file, and the mode of a regular file. The caller judges the mode of a directory,
    device or socket (`distrust(status)`). `route` are the host paths of all parts and links of the
    path, whose owners and modes decide about trust.
    """

    fd: int
    path: HostPath
    status: os.stat_result
    distrust: str | None
    route: tuple[str, ...] = ()


@contextlib.contextmanager
def open_path(host: HostRoot, name: str, flags: int = os.O_PATH) -> Iterator[OpenPath]:
    """Open a host path. The descriptor is closed when the context ends.

    With `flags` other than O_PATH, the file is opened by the descriptor that was judged, with
    O_NONBLOCK. Raises OSError if the file does not exist or cannot be opened, with ELOOP for too
    many links; Refused if the path leads out of the host root or into a process.
    """
    with _walked(host, name) as walk:
        if walk.left:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        fd = walk.here[-1].fd if flags == os.O_PATH else walk.open(flags)
        route = tuple(dict.fromkeys(walk.route))
        yield OpenPath(fd, walk.whole, walk.here[-1].status, walk.distrust, route)


def require(
    host: HostRoot, name: str, purpose: str, *, allow_sticky: bool = False, links: bool = True
) -> HostPath:
    """Check that only root can change or create the file at a host path, and return the path
    without links.

    If the path leads to a directory or does not exist, other users must not be able to write to
    that directory, or to the innermost directory that exists. With `allow_sticky` they may, if the
    directory is sticky, because they cannot change root's entries in it. Without `links`, the path
    must not have a link. Raises Refused: "cannot `purpose`", the part of the path that is not
    root's, and the remedy.
    """
    try:
        with _walked(host, name) as walk:
            why, path = walk.distrust or walk.writable(allow_sticky=allow_sticky), walk.whole
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
    """The message of a refusal. It names the path once, also if the purpose ends with the path."""
    named = purpose.endswith(f" {name}") and why.startswith(f"{name} ")
    return f"cannot {purpose}: {'it' + why.removeprefix(name) if named else why}"


def make_directory(
    host: HostRoot, name: str, purpose: str, mode: int = 0o755, *,
    allow_sticky: bool = False, links: bool = True,
) -> HostPath:  # fmt: skip
    """Make a directory that only root can write to, and the missing directories above it. Returns
    its path without links.

    No directory is made below one that others can write to. The result is judged again, because in
    a sticky directory another process can make an entry first. Raises Refused as `require`;
    OSError.
    """
    path = require(host, name, purpose, allow_sticky=True, links=links)
    files.make_directories(path.agent, mode)
    return require(host, name, purpose, allow_sticky=allow_sticky, links=links)


def read_file(
    host: HostRoot, name: str, limit: int = files.LIMIT, *,
    allow_sticky: bool = False, links: bool = True,
) -> tuple[HostPath, FileState | None]:  # fmt: skip
    """The path without links, and the state of the file at a host path; None if it does not exist.
    `links` and `allow_sticky` (for a file that does not exist) as in `require`.

    Raises Refused as `files.read` and `HostRoot.resolve`, and if a user other than root can change
    or create the file.
    """
    try:
        with _walked(host, name) as walk:
            path, regular = walk.whole, stat.S_ISREG(walk.here[-1].status.st_mode)
            why = walk.distrust
            if walk.left and why is None:
                why = walk.writable(allow_sticky=allow_sticky)
            if why := why or _linked(name, path, links=links):
                raise Refused(_cannot(f"use {name}", name, why))
            if walk.left:
                return host.resolve(name), None  # `resolve` refuses a dangling link
            fd = walk.open(os.O_RDONLY) if regular else walk.here[-1].fd
            return path, files.read_open(fd, path.host, limit)
    except OSError as error:
        raise Refused(f"cannot read {name}: {reason(error)}") from error


def system_name(host: HostRoot, given: str) -> str:
    """The host path of the path of an option (`given`), with only the links of the system followed:
    those in `/` and directly below it, such as /var/run.

    A container that mounts a directory, such as /run/nvidia, can make links further down. These
    belong to root too, so they are not followed. Raises Refused if the path leads out of the host
    root.
    """
    parts = host.name(given).split("/")
    if ".." in parts:
        host.resolve("/".join(parts))
    return os.path.join(host.resolve("/".join(parts[:3])).host, *parts[3:])


def list_directory(host: HostRoot, name: str) -> tuple[HostPath, list[str]]:
    """The path without links, and the names in the directory at a host path; no names if it does
    not exist. Raises Refused if a user other than root can add an entry."""
    try:
        with _walked(host, name) as walk:
            if why := walk.distrust or walk.writable():
                raise Refused(_cannot(f"use the directory {name}", name, why))
            if walk.left or not stat.S_ISDIR(walk.here[-1].status.st_mode):
                return walk.whole, []
            return walk.whole, budget.names(walk.open(os.O_RDONLY | os.O_DIRECTORY))
    except NotADirectoryError:
        return host.resolve(name), []
    except OSError as error:
        raise Refused(f"cannot read the directory {name}: {reason(error)}") from error


@contextlib.contextmanager
def _walked(host: HostRoot, name: str) -> Iterator[_Walk]:
    refuse_odd(name)
    with contextlib.ExitStack() as stack:
        walk = _Walk(host, name, stack)
        walk.go()
        yield walk


@dataclass(frozen=True)
class _Part:
    """A part of a path: its host path, descriptor and status."""

    path: str
    fd: int
    status: os.stat_result


class _Walk:
    """The walk along one path from the host root. `here` are the parts from the root to the current
    part. `left` are the names that follow; the next name is the last item. `distrust` is the reason
    of the first part that is not trusted."""

    def __init__(self, host: HostRoot, name: str, stack: contextlib.ExitStack) -> None:
        self.distrust: str | None = None
        self.left = [""]  # not empty, so that no part above the host root counts as the last one
        self.route = ["/"]
        self._host = host
        self._name = name
        self._stack = stack
        self._links = 0
        if not host.is_host:
            self._judge_above(host.root)
        root = self._part("/", nofollow.walk(host.agent_path("/"), _PART | os.O_DIRECTORY))
        self.here = [root]
        self.left = _parts(name)
        self._judge(root)

    @property
    def path(self) -> str:
        return self.here[-1].path

    @property
    def whole(self) -> HostPath:
        """The whole path, with the links of its existing parts followed."""
        path = os.path.join(self.path, *reversed(self.left))
        return HostPath(self._host.agent_path(path), path)

    def open(self, flags: int) -> int:
        """Open the current part by its descriptor. The new descriptor is closed when the walk ends.
        Raises OSError."""
        again = f"/proc/self/fd/{self.here[-1].fd}"
        fd = os.open(again, flags | os.O_CLOEXEC | os.O_NONBLOCK)
        self._stack.callback(os.close, fd)
        return fd

    def writable(self, *, allow_sticky: bool = False) -> str | None:
        """The reason why others can make entries in the current directory, None if they cannot."""
        status = self.here[-1].status
        if not stat.S_ISDIR(status.st_mode) or (allow_sticky and _is_sticky(status)):
            return None
        why = distrust(status)
        return f"{self.path} {why}" if why else None

    def go(self) -> None:
        """Walk to the end, or to the last part that exists. Raises OSError, Refused."""
        while self.left:
            if self.left[-1] == "..":
                self.left.pop()
                self._up()
                continue
            part = self._next()
            if part is None:
                return
            self.route.append(part.path)
            if stat.S_ISLNK(part.status.st_mode):
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
        """The next part, None if it does not exist. A directory that does not exist in the host
        root is skipped if a view shows a directory below it."""
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
        """Open a part below the current one: in the view's directory if a view shows it."""
        here = self.here[-1]
        below, agent = os.path.relpath(path, here.path), self._host.agent_path(path)
        if agent == os.path.join(self._host.agent_path(here.path), below):
            return os.open(below, _PART, dir_fd=here.fd)
        return nofollow.walk(agent, _PART)

    def _part(self, path: str, fd: int) -> _Part:
        self._stack.callback(os.close, fd)
        return _Part(path, fd, os.fstat(fd))

    def _judge_above(self, root: str) -> None:
        """Judge the directories above the host root, because a user who can exchange the host root
        can change all files in it."""
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
        if _is_sticky(self.here[-1].status):  # elsewhere only root can have made the link
            self._judge(link)
        target = os.readlink("", dir_fd=link.fd)
        if target.startswith("/"):
            del self.here[1:]
        self.left += _parts(target)

    def _judge(self, part: _Part) -> None:
        """Note the reason why a part is not trusted, unless an earlier part has one. A directory of
        the path must belong to root, and must not be writable by others; if it is sticky, the owner
        of the next entry decides."""
        if self.distrust:
            return
        mode = part.status.st_mode
        last = not self.left and not stat.S_ISLNK(mode)
        lax = stat.S_ISLNK(mode) or _is_sticky(part.status) or (last and not stat.S_ISREG(mode))
        why = distrust_owner(part.status) if lax else distrust(part.status)
        self.distrust = f"{part.path} {why}" if why else None


def _is_sticky(status: os.stat_result) -> bool:
    """Is this a sticky directory, in which others cannot change the entries of root?"""
    return stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISVTX)


def _parts(path: str) -> list[str]:
    """The parts of a path, the last one first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]
