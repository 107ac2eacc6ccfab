"""Replacing a whole directory in one step, so that a reader finds the old one or the new one.

Invariant: no file is written below a name that is in use. A tree is built under a temporary name,
and then exchanges its name with the old tree in one call (renameat2). Paths are resolved agent
paths, and no link in them is followed (`agent.host.nofollow`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat

from agent.host import files, nofollow, syscalls
from agent.host.writable import nearest_existing

_BLOCK = 1 << 20
_EXCHANGE = 2


def draft_name(path: str) -> str:
    """A new temporary path beside `path`, for the tree that will replace `path`."""
    above, base = os.path.split(path)
    return os.path.join(above, files.temporary_name(base))


def unfinished_drafts(path: str) -> list[str]:
    """The trees that killed processes left under temporary paths beside `path`. Raises OSError."""
    above, base = os.path.split(path)
    if not os.path.isdir(above):
        return []
    drafts = (name for name in files.names(above) if files.final_name(name) == base)
    return [os.path.join(above, name) for name in drafts]


def is_writable(path: str) -> bool:
    """Can entries be made in a directory, or in the innermost one above it that exists?"""
    return os.access(nearest_existing(path), os.W_OK)


def copy(source: str, path: str, mode: int) -> tuple[str, os.stat_result]:
    """Copy the file `source` durably to the new path `path` with this mode. Returns the SHA-256 of
    its content, and the status of the copy. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    hashed = hashlib.sha256()
    with files.open_file(source) as file, nofollow.open_parent(path) as (directory, base):
        fd = os.open(base, flags, 0o600, dir_fd=directory)
        try:
            while part := file.read(_BLOCK):
                hashed.update(part)
                files.write_all(fd, part)
            os.fchmod(fd, mode)
            os.fsync(fd)
            return hashed.hexdigest(), os.fstat(fd)
        finally:
            os.close(fd)


def hard_link(source: str, path: str) -> os.stat_result:
    """Give the file `source` the second name `path`, or copy it if that is not possible. Returns
    the status of the new name. Raises OSError."""
    with nofollow.open_parent(source) as (old, name), nofollow.open_parent(path) as (new, base):
        try:
            os.link(name, base, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)
            return os.stat(base, dir_fd=new, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP):
                raise
        mode = stat.S_IMODE(os.stat(name, dir_fd=old, follow_symlinks=False).st_mode)
    return copy(source, path, mode)[1]


def hard_link_tree(source: str, path: str) -> None:
    """As `hard_link`, for a file or a whole directory. Directories and symbolic links are
    copied."""
    status = os.lstat(source)
    if stat.S_ISLNK(status.st_mode):
        make_symlink(os.readlink(source), path)
    elif stat.S_ISDIR(status.st_mode):
        files.make_directory(path, stat.S_IMODE(status.st_mode))
        for name in files.names(source):
            hard_link_tree(os.path.join(source, name), os.path.join(path, name))
        files.sync_directory(path)
    elif stat.S_ISREG(status.st_mode):
        hard_link(source, path)


def make_symlink(target: str, path: str) -> None:
    """Make a symbolic link. Raises OSError."""
    with nofollow.open_parent(path) as (directory, base):
        os.symlink(target, base, dir_fd=directory)


def exchange(one: str, other: str) -> None:
    """Exchange the names of two directories in the same parent directory, in one step.

    Raises OSError, and then nothing is changed: EINVAL or ENOSYS if the file system or the kernel
    cannot do it. The result is not forced to disk; the caller does that, so that it can tell the
    two errors apart.
    """
    with nofollow.open_parent(one) as (fd, first):
        names = os.fsencode(first), os.fsencode(os.path.basename(other))
        syscalls.call(syscalls.RENAMEAT2, fd, names[0], fd, names[1], _EXCHANGE)


def are_same(one: str, other: str) -> bool:
    """Are two agent paths hard links of one file, equal symbolic links, or directories whose
    entries are the same in this sense? Raises OSError."""
    first, second = os.lstat(one), os.lstat(other)
    if (first.st_mode, first.st_uid) != (second.st_mode, second.st_uid):
        return False
    if stat.S_ISLNK(first.st_mode):
        return os.readlink(one) == os.readlink(other)
    if not stat.S_ISDIR(first.st_mode):
        return os.path.samestat(first, second)
    entries = sorted(files.names(one))
    return entries == sorted(files.names(other)) and all(
        are_same(os.path.join(one, name), os.path.join(other, name)) for name in entries
    )


def remove(path: str, last: str = "") -> None:
    """Remove a directory and everything in it, durably, if it exists. Raises OSError.

    `last` is the name of the entry that is removed last. If the process is killed before that, the
    entry still marks the directory as ours.
    """
    try:
        with nofollow.open_parent(path) as (parent, base):
            with nofollow.open_directory(path, os.O_RDONLY) as directory:
                for name in sorted(os.listdir(directory), key=lambda name: name == last):
                    _remove(directory, name)
            os.rmdir(base, dir_fd=parent)
            os.fsync(parent)
    except FileNotFoundError:
        return


def _remove(above: int, name: str) -> None:
    status = os.stat(name, dir_fd=above, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=above)
        return
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=above)
    try:
        for inner in os.listdir(fd):
            _remove(fd, inner)
    finally:
        os.close(fd)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=above)
