"""File locks, such as the node's lock, which only one agent holds at a time.

Invariant: the lock belongs to an open file, and ends with the process that holds it. The file is
never truncated and never removed, so that two processes never lock two files under one name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

from agent.errors import Locked, Refused, reason
from agent.host import nofollow


def take(path: str) -> int:
    """Take the lock at an agent path. Returns the descriptor that holds the lock until it is
    closed.

    Raises Locked if another process holds the lock; Refused if the file cannot be opened.
    """
    above, name = os.path.split(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with nofollow.open_directory(above) as directory:
            fd = os.open(name, flags, 0o600, dir_fd=directory)
    except OSError as error:
        raise Refused(
            f"cannot open the lock {path}: {reason(error)}; it has to be a regular file that this "
            "user can write"
        ) from error
    try:
        lock(path, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def lock(path: str, fd: int, holder: str = "toolkit-agent") -> None:
    """Lock an open file. Raises Locked if another process, a `holder`, has locked it, Refused."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise Refused(f"cannot lock {path}: {reason(error)}") from error
        raise Locked(
            f"cannot start: another {holder} holds {path}; wait for it or stop it"
        ) from error


@contextlib.contextmanager
def held(path: str, inherited: int | None = None) -> Iterator[None]:
    """Hold the lock at an agent path during the context. Raises Locked if another process holds it;
    Refused.

    `inherited` is a descriptor from the parent process, which holds the lock for us. If the parent
    released the lock to a revert (`agent.transaction.stand_aside`), it is locked again, for the
    parent too. If somebody removed the file since, the descriptor is not used, because other
    processes would lock a new file.
    """
    if inherited is not None and is_current(path, inherited):
        lock(path, inherited)
        yield
        return
    fd = take(path)
    try:
        yield
    finally:
        os.close(fd)


def is_current(path: str, fd: int) -> bool:
    """Is the open file `fd` still the file at this path?"""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except OSError:
        return False
