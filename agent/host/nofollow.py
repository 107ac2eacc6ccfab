"""Opening a directory without following any link.

`HostRoot.resolve` follows links once, inside the host root. Before the file is opened, somebody
could put a link in the place of a directory.

Invariant: a path is walked directory by directory, each opened relative to the one above it. No
link is followed, also not in the last part and no magic link, and no `..`. An operation relative to
the descriptor acts in that directory, even if the directory's name changes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

_PATH_MAX = 4096  # bytes, with the final zero


@contextlib.contextmanager
def open_directory(path: str, flags: int = os.O_PATH) -> Iterator[int]:
    """Open the directory at a resolved agent path, and yield its descriptor. With os.O_RDONLY as
    `flags`, the directory can be listed and forced to disk.

    Raises OSError: ELOOP if a part of the path is a link, EXDEV if a part is `..`.
    """
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise _error(errno.EINVAL, path)
    if len(raw) >= _PATH_MAX:
        raise _error(errno.ENAMETOOLONG, path)
    if ".." in path.split("/"):
        raise _error(errno.EXDEV, path)
    fd = walk(path, flags | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def open_parent(path: str) -> Iterator[tuple[int, str]]:
    """Open the directory above a path, and yield its descriptor and the path's last name. The
    directory can be forced to disk. Raises OSError."""
    above, name = os.path.split(path)
    with open_directory(above, os.O_RDONLY) as directory:
        yield directory, name


def walk(path: str, flags: int) -> int:
    """Open a path part by part, and return the descriptor of the last part. `flags` are for the
    last part. Raises OSError."""
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
        status = os.stat(name, dir_fd=above, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            raise _error(errno.ELOOP, name) from None
        raise


def _error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)
