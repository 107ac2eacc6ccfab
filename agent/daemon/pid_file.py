"""The pid file of NVIDIA's installer: the pid of the one toolkit that runs on this node.

Invariant: the file belongs to the process that holds the lock on it, as long as that process lives.
No other process writes or removes the file. A lock counts only if the file still has its name. Only
a file with the content of a pid file is overwritten.

Unlike the node's lock (`agent.host.lock`), the pid file is removed when its owner ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator

from agent.daemon import supervisor
from agent.errors import Refused, reason
from agent.host import lock, nofollow, trust
from agent.host.paths import HostRoot
from agent.plan.context import uninterrupted

_CONTENT = re.compile(rb"[0-9]{0,10}\n?")
_ELSE = "remove it, or give another --pid-file"
_NO_FILE = f"it is not a regular file; {_ELSE}"
_NOT_OPENED = (errno.ELOOP, errno.EISDIR, errno.ENXIO)  # a link, a directory, a socket


def find(host: HostRoot, given: str | None) -> str | None:
    """The agent path of the pid file of an option (`given`), None without one.

    The file's directory is made if it is missing. Raises Refused if a user other than root can
    write to that directory. The file itself is not examined.
    """
    if not given:
        return None
    above, name = os.path.split(given)
    purpose = f"use the pid file {given}"
    try:
        place = trust.system_name(host, above)
        directory = trust.make_directory(host, place, purpose, allow_sticky=True, links=False)
    except OSError as error:
        raise Refused(f"cannot {purpose}: {reason(error)}") from error
    return os.path.join(directory.agent, name)


@contextlib.contextmanager
def held(host: HostRoot, given: str | None) -> Iterator[None]:
    """Hold the pid file of an option, if there is one, during a convergence without a supervisor.

    Signals that would end this process are blocked until the file is removed. Raises Locked or
    Refused.
    """
    path = find(host, given)
    if path is None:
        yield
        return
    with uninterrupted():
        fd = take(path)
        try:
            yield
        finally:
            supervisor.remove_pid_file(fd, path)
            os.close(fd)


def take(path: str) -> int:
    """Lock the pid file at an agent path and write our pid to it. Returns the descriptor that holds
    the lock until it is closed.

    Raises Locked, and leaves the file unchanged, if another process holds it. Raises Refused.
    """
    try:
        while True:
            with nofollow.open_parent(path) as (directory, name):
                fd = _open(directory, name, path)
                if _has_name(directory, name, fd):
                    text = f"{os.getpid()}\n".encode()
                    os.fchmod(fd, 0o600)
                    # In this order, no reader gets the beginning of one pid and the end of another.
                    os.pwrite(fd, text, 0)
                    os.ftruncate(fd, len(text))
                    return fd
            os.close(fd)  # the owner removed the file after we opened it
    except OSError as error:
        why = _NO_FILE if error.errno in _NOT_OPENED else reason(error)
        raise Refused(f"cannot use the pid file {path}: {why}") from error


def _open(directory: int, name: str, path: str) -> int:
    """Open and lock the file, and return its descriptor. An existing file is not truncated, and a
    link is not followed."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(name, flags, 0o600, dir_fd=directory)  # others could lock a file they can open
    try:
        _require_own(fd, path)
        lock.lock(path, fd, "toolkit")
        if not _CONTENT.fullmatch(os.pread(fd, 16, 0)):
            raise Refused(f"cannot use the pid file {path}: there is no pid in it; {_ELSE}")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _require_own(fd: int, path: str) -> None:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"cannot use the pid file {path}: {_NO_FILE}")
    if found.st_uid not in (0, os.geteuid()) or found.st_nlink > 1:
        raise Refused(f"cannot use the pid file {path}: it has another name (hard link); {_ELSE}")


def _has_name(directory: int, name: str, fd: int) -> bool:
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(fd))
