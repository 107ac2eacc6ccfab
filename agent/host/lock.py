"""One agent at a time per node.

Invariant: the lock belongs to an open file that lives as long as the holder; the file is never
truncated and never removed, so that nobody locks a name that another one no longer sees.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

from agent.errors import Locked, Refused, reason
from agent.host import safe


def take(path: str) -> int:
    """The descriptor that holds the lock at an agent path until it is closed.

    Raises Locked where another process has it, Refused.
    """
    above, name = os.path.split(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with safe.directory(above) as directory:
            fd = os.open(name, flags, 0o600, dir_fd=directory)
    except OSError as error:
        raise Refused(f"cannot open the lock {path}: {reason(error)}") from error
    try:
        _lock(path, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(path: str, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise Refused(f"cannot lock {path}: {reason(error)}") from error
        raise Locked(
            f"cannot start: another toolkit-agent holds {path}; wait for it or stop it"
        ) from error


@contextlib.contextmanager
def held(path: str, inherited: int | None = None) -> Iterator[None]:
    """Hold the lock at an agent path. Raises Locked where another process has it, Refused.

    `inherited`: the descriptor of a parent that holds it for us, or held it until it stood aside
    (see `agent.transaction.stand_aside`): it is held again then, by the parent too. It is of no use
    where somebody removed the file since: another one would lock the new file beside us.
    """
    if inherited is not None and same(path, inherited):
        _lock(path, inherited)
        yield
        return
    fd = take(path)
    try:
        yield
    finally:
        os.close(fd)


def same(path: str, fd: int) -> bool:
    """Is the open file still the one that others see at its path?"""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except OSError:
        return False
