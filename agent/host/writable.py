"""The check whether a file can be written, without a write.

Invariant: no file, name or time changes. The kernel is asked about the rights of the effective user
(access(2)), the mount and the free space (statvfs(3)), and attributes (FS_IOC_GETFLAGS). Other
obstacles, such as a quota, are found only by the write.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass

_GETFLAGS = 0x80086601  # FS_IOC_GETFLAGS of <linux/fs.h>, 64 bits
_IMMUTABLE, _APPEND = 0x10, 0x20
_LONGEST_ADDITION = 32  # characters by which a temporary name is longer than the file's own


@dataclass(frozen=True)
class Need:
    """A file that will be written or removed. `path` is its resolved agent path. `sizes` has the
    size in bytes of each file that the write makes in its directory; empty for a removal."""

    path: str
    sizes: tuple[int, ...] = ()


def require(need: Need, mount_points: Collection[str] = ()) -> None:
    """Raise OSError if the file cannot be written, replaced or removed. `mount_points` are those of
    the host root."""
    above, base = os.path.split(need.path)
    directory = nearest_existing(above)
    _require_directory(directory)
    longest = os.pathconf(directory, "PC_NAME_MAX")
    if need.sizes and len(os.fsencode(base)) + _LONGEST_ADDITION > longest:
        raise _error(errno.ENAMETOOLONG, need.path)
    if not os.path.lexists(need.path):
        return
    kind = os.lstat(need.path).st_mode
    if stat.S_ISDIR(kind):
        raise _error(errno.EISDIR, need.path)
    if need.path in mount_points:  # a file that is mounted cannot be replaced
        raise _error(errno.EBUSY, need.path)
    if stat.S_ISREG(kind) and _flags(need.path) & (_IMMUTABLE | _APPEND):
        raise _error(errno.EPERM, need.path)


def nearest_existing(path: str) -> str:
    """The innermost part of a path that exists: the path itself or one above it."""
    while not os.path.lexists(path) and path not in ("/", ""):
        path = os.path.dirname(path)
    return path or "."


def _require_directory(path: str) -> None:
    """Raise OSError if no name can be made, moved or removed in a directory."""
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise _error(errno.ENOTDIR, path)
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        raise _error(errno.EROFS, path)
    if _flags(path) & (_IMMUTABLE | _APPEND):
        raise _error(errno.EPERM, path)
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        raise _error(errno.EACCES, path)


def _flags(path: str) -> int:
    """The attributes of a file that lsattr shows; 0 if the file system has none."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except OSError:
        return 0
    try:
        attributes: int = struct.unpack("i", fcntl.ioctl(fd, _GETFLAGS, bytes(4)))[0]
        return attributes
    except OSError:
        return 0
    finally:
        os.close(fd)


def first_without_space(needs: Iterable[Need]) -> Need | None:
    """The first need for which no space is left after those before it; None if all have space."""
    blocks: dict[int, int] = {}
    names: dict[int, int] = {}
    for need in needs:
        directory = nearest_existing(os.path.dirname(need.path))
        space, device = os.statvfs(directory), os.stat(directory).st_dev
        size = space.f_frsize or space.f_bsize or 1
        used = sum(-(-one // size) for one in need.sizes)
        blocks[device] = blocks.get(device, 0) + used
        names[device] = names.get(device, 0) + len(need.sizes)
        # Root may use the reserved blocks. A file system that reports 0 blocks has no such limit.
        free = space.f_bfree if os.geteuid() == 0 else space.f_bavail
        full = space.f_blocks and blocks[device] > free
        if need.sizes and (full or (space.f_files and names[device] > space.f_ffree)):
            return need
    return None


def _error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)
