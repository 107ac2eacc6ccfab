"""The pid file that NVIDIA's installer has: one of us per node, for everybody to see.

Invariant: it belongs to the one process that has the lock on it, for as long as that process lives,
and nobody else writes or removes it; a name that is gone or was exchanged is no lock. Only what
a pid file looks like is taken over, so that no other file loses its content.

It stands beside `lock`, which nobody may remove; this one goes with its owner, as people expect.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat

from agent.errors import Locked, Refused, reason
from agent.host import safe

_CONTENT = re.compile(rb"[0-9]{0,10}\n?")
_ELSE = "remove it, or give another --pid-file"
_NO_FILE = f"it is not a regular file; {_ELSE}"
_NOT_OPENED = (errno.ELOOP, errno.EISDIR, errno.ENXIO)  # a link, a directory, a socket


def take(path: str) -> int:
    """Write our pid to the file at an agent path; the descriptor holds it until it is closed.

    Its directory is there (`trusted.directory`). Raises Locked where another process has it; that
    one's file stays as it is. Raises Refused.
    """
    above, name = os.path.split(path)
    try:
        while True:
            with safe.directory_to_change(above) as directory:
                fd = _open(directory, name, path)
                if _is_there(directory, name, fd):
                    _write(fd)
                    return fd
            os.close(fd)  # its owner ended and removed it, between our opening and our lock
    except OSError as error:
        why = _NO_FILE if error.errno in _NOT_OPENED else reason(error)
        raise Refused(f"cannot use the pid file {path}: {why}") from error


def _open(directory: int, name: str, path: str) -> int:
    """The file, locked. Nothing that lies at its name is truncated, followed or waited for."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(name, flags, 0o600, dir_fd=directory)  # for others it would be theirs to lock
    try:
        _refuse_foreign(fd, path)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _CONTENT.fullmatch(os.pread(fd, 16, 0)):
            raise Refused(f"cannot use the pid file {path}: there is no pid in it; {_ELSE}")
    except OSError as error:
        os.close(fd)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise Locked(
            f"cannot start: another toolkit holds {path}; wait for it or stop it"
        ) from error
    except Refused:
        os.close(fd)
        raise
    return fd


def _refuse_foreign(fd: int, path: str) -> None:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"cannot use the pid file {path}: {_NO_FILE}")
    if found.st_uid not in (0, os.geteuid()) or found.st_nlink > 1:
        raise Refused(f"cannot use the pid file {path}: it has another name (hard link); {_ELSE}")


def _is_there(directory: int, name: str, fd: int) -> bool:
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(fd))


def _write(fd: int) -> None:
    """A reader never finds two pids mixed: the new one is written over the old one first."""
    text = f"{os.getpid()}\n".encode()
    os.fchmod(fd, 0o600)
    os.pwrite(fd, text, 0)
    os.ftruncate(fd, len(text))
