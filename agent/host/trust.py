"""Whether root alone decides what is at a path of the host, and opening such a path.

It is not enough to look at the nearest directory. Somebody who can write a directory further up, or
who made a link on the way, decides what the path leads to.

Invariant: every directory and link on the way from our own root is judged, in the order in which
`HostRoot.resolve` follows them. If root alone can change each of them, only root can change what
the path leads to; a later look-up by name, by us or by a program that we start, then finds the
same. Otherwise the first part that others can change is found: it lies in a directory of root's, so
that nobody could exchange it meanwhile. The end of the path is opened without following any link.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from agent.errors import Refused, reason
from agent.host import files, nofollow
from agent.host.files import FileState
from agent.host.paths import HostPath, HostRoot


def distrust(found: FileState | os.stat_result, *, owner_only: bool = False) -> str | None:
    """Why a user other than root can change a file or a directory, and what to do about it; None
    if no such user can. `owner_only`: the mode does not count, as for a link, a device or a sticky
    directory."""
    if isinstance(found, FileState):
        uid, mode = found.uid, found.mode
    else:
        uid, mode = found.st_uid, stat.S_IMODE(found.st_mode)
    if uid not in (0, os.geteuid()):
        return f"belongs to user {uid}, who could become root with it; chown it to root"
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not owner_only:
        return f"can be written by others (mode {mode:04o}), who could become root; chmod go-w it"
    return None


@dataclass(frozen=True)
class _Way:
    """The way to a path of the host: its path without links, and the status of each part of the way
    that exists, by host path. `distrust` is as in `OpenPath`."""

    path: HostPath
    parts: dict[str, os.stat_result]
    distrust: str | None

    @property
    def end(self) -> os.stat_result | None:
        """The status of what is there; None if it does not exist."""
        return self.parts.get(self.path.host)

    def writable(self, *, allow_sticky: bool = False) -> str | None:
        """Why others can make entries in the directory at the end, or in the innermost one that
        exists; None if they cannot."""
        part = self.path.host
        while part not in self.parts:
            part = os.path.dirname(part)
        found = self.parts[part]
        if not stat.S_ISDIR(found.st_mode) or (allow_sticky and _is_sticky(found)):
            return None
        why = distrust(found)
        return f"{part} {why}" if why else None


def _way(host: HostRoot, name: str) -> _Way:
    """Follow a host path and judge every part of the way. Raises OSError, Refused."""
    route = ["/"]
    path = host.resolve(name, route)
    above_root = [] if host.is_host else host.root.split("/")[1:-1]
    reasons = [  # a user who can exchange the host root can change all that is in it
        _judged(above, os.lstat(above))
        for above in itertools.accumulate(above_root, os.path.join, initial="/")
    ]
    parts: dict[str, os.stat_result] = {}
    for part in dict.fromkeys(route):
        try:
            found = os.lstat(host.agent_path(part))
        except FileNotFoundError:
            continue  # it does not exist, or a view shows only something below it
        above = parts.get(os.path.dirname(part))
        parts[part] = found
        is_link = stat.S_ISLNK(found.st_mode)
        if is_link and above is not None and not _is_sticky(above):
            continue  # only root can have made it, or the directory is not trusted
        is_end = part == path.host and not stat.S_ISREG(found.st_mode)
        reasons.append(_judged(part, found, owner_only=is_link or is_end))
    return _Way(path, parts, next(filter(None, reasons), None))


def _judged(part: str, found: os.stat_result, *, owner_only: bool = False) -> str | None:
    """Why a part of a way is not trusted. A directory must belong to root, and must not be writable
    by others; if it is sticky, the owner of each entry decides."""
    why = distrust(found, owner_only=owner_only or _is_sticky(found))
    return f"{part} {why}" if why else None


def _is_sticky(found: os.stat_result) -> bool:
    """Is it a directory in which others cannot change the entries of root?"""
    return stat.S_ISDIR(found.st_mode) and bool(found.st_mode & stat.S_ISVTX)


@dataclass(frozen=True)
class OpenPath:
    """A path of the host that was opened: its descriptor, its path without links, its status.

    `distrust` says why a user other than root can change what the path leads to, and what to do
    about it; None if no such user can. It covers every directory and link on the way, the owner
    of the file, and the mode of a regular file. The caller judges the mode of a directory, device
    or socket (`distrust(found)`). `route` are the host paths of all parts and links on the way,
    whose owners and modes decide about trust.
    """

    fd: int
    path: HostPath
    found: os.stat_result
    distrust: str | None
    route: tuple[str, ...] = ()


@contextlib.contextmanager
def open_path(host: HostRoot, name: str, flags: int = os.O_PATH) -> Iterator[OpenPath]:
    """Open a host path; the descriptor is closed when the context ends.

    With `flags` other than O_PATH the file is opened without waiting (O_NONBLOCK). Raises OSError
    if the file does not exist or cannot be opened; Refused if there are too many links, or the path
    leads out of the host root or into a process.
    """
    way = _way(host, name)
    waiting = 0 if flags & os.O_PATH else os.O_NONBLOCK
    fd = nofollow.walk(way.path.agent, flags | waiting | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield OpenPath(fd, way.path, os.fstat(fd), way.distrust, tuple(way.parts))
    finally:
        os.close(fd)


def require(
    host: HostRoot, name: str, purpose: str, *, allow_sticky: bool = False, links: bool = True
) -> HostPath:
    """Refuse a host path if a user other than root can change what it leads to, or can make it.
    Gives the path without links.

    Others must not be able to write to the directory at the end, or to the innermost one that
    exists. `allow_sticky`: they may if it is sticky, because they cannot change entries of root
    there. `links` False: no link may be on the way. Raises Refused: cannot `purpose`, which part of
    the path is not root's, and what to do.
    """
    try:
        way = _way(host, name)
    except OSError as error:
        raise Refused(f"cannot {purpose}: {reason(error)}") from error
    why = way.distrust or way.writable(allow_sticky=allow_sticky)
    if why := why or _linked(name, way.path, links=links):
        raise Refused(_cannot(purpose, name, why))
    return way.path


def _linked(name: str, path: HostPath, *, links: bool) -> str | None:
    if links or path.host == name:
        return None
    return f"{name} leads through a link to {path}; remove the link, or name a place without one"


def _cannot(purpose: str, name: str, why: str) -> str:
    """The message, without the path twice if the purpose ends with it."""
    named = purpose.endswith(f" {name}") and why.startswith(f"{name} ")
    return f"cannot {purpose}: {'it' + why.removeprefix(name) if named else why}"


def make_directory(
    host: HostRoot, name: str, purpose: str, mode: int = 0o755, *,
    allow_sticky: bool = False, links: bool = True,
) -> HostPath:  # fmt: skip
    """Make a directory that only root can write to, and the directories above it, if missing.

    Nothing is made below a directory that others can write to. The result is judged again, because
    in a sticky directory another process can be faster. Raises Refused as `require`, OSError.
    """
    path = require(host, name, purpose, allow_sticky=True, links=links)
    files.make_directories(path.agent, mode)
    return require(host, name, purpose, allow_sticky=allow_sticky, links=links)


def read_file(
    host: HostRoot, name: str, limit: int = files.LIMIT, *,
    allow_sticky: bool = False, links: bool = True,
) -> tuple[HostPath, FileState | None]:  # fmt: skip
    """The path without links, and the file there as `files.read` gives it; None for no file.
    `links` and `allow_sticky` (if there is no file) as in `require`.

    Raises Refused for what `files.read` and `HostRoot.resolve` refuse, and if a user other than
    root can change the file or make it.
    """
    try:
        way = _way(host, name)
    except OSError as error:
        raise Refused(f"cannot read {name}: {reason(error)}") from error
    why = way.distrust
    if way.end is None:
        why = why or way.writable(allow_sticky=allow_sticky)
    if why := why or _linked(name, way.path, links=links):
        raise Refused(_cannot(f"use {name}", name, why))
    if way.end is None:
        return host.resolve(name), None  # refuses a dangling link
    return way.path, files.read(way.path.agent, way.path.host, limit)


def system_name(host: HostRoot, given: str) -> str:
    """The host path of what an option names, with only the links of the system followed: those in
    `/` and directly below it, such as /var/run.

    A container that mounts a directory, such as /run/nvidia, can make links further down. These
    belong to root too, and stay in the path. Raises Refused if it leads out of the host root.
    """
    parts = host.name(given).split("/")
    if ".." in parts:
        host.resolve("/".join(parts))
    return os.path.join(host.resolve("/".join(parts[:3])).host, *parts[3:])


def list_directory(host: HostRoot, name: str) -> tuple[HostPath, list[str]]:
    """The path without links, and the names in the directory there; none if it is missing.

    Raises Refused if a user other than root can add to them.
    """
    try:
        way = _way(host, name)
        if why := way.distrust or way.writable():
            raise Refused(_cannot(f"use the directory {name}", name, why))
        if way.end is None or not stat.S_ISDIR(way.end.st_mode):
            return way.path, []
        return way.path, files.names(way.path.agent)
    except OSError as error:
        raise Refused(f"cannot read the directory {name}: {reason(error)}") from error
