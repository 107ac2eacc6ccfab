"""Opening a directory so that nobody can turn the way to it.

Links are followed once, by `HostRoot.resolve`, inside the host root. Between that and the moment at
which a file is opened somebody could put a link in the place of a directory.

Invariant: on the way to a directory that is opened here no link is followed, not even a last or a
magic one, and nothing leads up. What is then done relative to the descriptor happens in that very
directory, whatever becomes of its name.

The kernel does it in one call (openat2); where it does not, because it is old or a seccomp filter
says no, the way is walked directory by directory, with the same results. Who only reads walks at
once: to load what makes the call takes longer than all the walks of a command that changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterator

from agent.host import syscalls

_AT_FDCWD = -100
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS = 0x02, 0x04
_NO_LINKS = _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS
_PATH_MAX = 4096  # bytes, with the final zero
_UNAVAILABLE = (errno.ENOSYS, errno.EPERM)  # too old a kernel; a filter
_AGAIN = (errno.EINTR, errno.EAGAIN)


@contextlib.contextmanager
def directory(path: str, flags: int = os.O_PATH) -> Iterator[int]:
    """A descriptor of the directory at an agent path that was resolved before, to look into it.

    Raises OSError: ELOOP where a part of the path is a link, EXDEV where it leads up. With
    os.O_RDONLY for `flags` the directory can be listed.
    """
    _check(path)
    fd = walk(path, flags | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def directory_to_change(path: str) -> Iterator[int]:
    """The same to change what is in it; it can be forced to disk."""
    _check(path)
    fd = _open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _check(path: str) -> None:
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise _error(errno.EINVAL, path)
    if len(raw) >= _PATH_MAX:
        raise _error(errno.ENAMETOOLONG, path)
    if ".." in path.split("/"):
        raise _error(errno.EXDEV, path)


def _open(path: str, flags: int) -> int:
    try:
        return openat2(path, flags)
    except OSError as error:
        if error.errno not in _UNAVAILABLE:
            raise
    return walk(path, flags)


def openat2(path: str, flags: int) -> int:
    """The system call, following no link at all. Raises OSError, ENOSYS where there is none."""
    name, how = os.fsencode(path) or b".", struct.pack("QQQ", flags, 0, _NO_LINKS)
    while True:
        try:
            return syscalls.call(syscalls.OPENAT2, _AT_FDCWD, name, how, len(how))
        except OSError as error:
            if error.errno not in _AGAIN:
                raise _error(error.errno or 0, path) from None


def walk(path: str, flags: int) -> int:
    """The same with a descriptor for every directory on the way. Raises OSError."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    first = "/" if path.startswith("/") else "."
    if not parts:
        return os.open(first, flags)
    here = os.open(first, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            below = _step(here, part, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            here, old = below, here
            os.close(old)
        return _step(here, parts[-1], flags)
    finally:
        os.close(here)


def _step(above: int, name: str, flags: int) -> int:
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=above)
    except NotADirectoryError:
        found = os.stat(name, dir_fd=above, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            raise _error(errno.ELOOP, name) from None
        raise


def _error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)
