"""Whole directories that take each other's place, so that whoever looks finds one of the two.

Invariant: nothing is written below a name that is in use. A tree is built below a name of its own
and gets the other one's in one step (renameat2); paths are agent paths, their links followed
before, and no link is followed from there on (`agent.host.safe`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat

from agent.host import files, safe, syscalls, temporary

_BLOCK = 1 << 20
_EXCHANGE = 2


def building(path: str) -> str:
    """A name beside `path` for what is to take its place."""
    above, base = os.path.split(path)
    return os.path.join(above, temporary.name_for(base))


def unfinished(path: str) -> list[str]:
    """What is below such names. Raises OSError."""
    above, base = os.path.split(path)
    if not os.path.isdir(above):
        return []
    found = (name for name in files.names(above) if temporary.base_of(name) == base)
    return [os.path.join(above, name) for name in found]


def writable(path: str) -> bool:
    """Can anything be made in a directory, or where it would have to be made first?"""
    while not os.path.isdir(path) and path != "/":
        path = os.path.dirname(path)
    return os.access(path, os.W_OK)


def copy(source: str, path: str, mode: int) -> tuple[str, os.stat_result]:
    """Copy a file durably to a new name; gives its SHA-256 and what it is. Raises OSError."""
    above, base = os.path.split(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    hashed = hashlib.sha256()
    with files.opened(source) as file, safe.directory_to_change(above) as directory:
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


def share(source: str, path: str) -> os.stat_result:
    """Give a file a second name; where its file system knows none, a copy. Raises OSError."""
    (below, name), (above, base) = os.path.split(source), os.path.split(path)
    with safe.directory(below) as old, safe.directory_to_change(above) as new:
        try:
            os.link(name, base, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)
            return os.stat(base, dir_fd=new, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP):
                raise
        mode = stat.S_IMODE(os.stat(name, dir_fd=old, follow_symlinks=False).st_mode)
    return copy(source, path, mode)[1]


def share_tree(source: str, path: str) -> None:
    """The same for whatever is at an agent path: directories and links are made anew."""
    found = os.lstat(source)
    if stat.S_ISLNK(found.st_mode):
        link(os.readlink(source), path)
    elif stat.S_ISDIR(found.st_mode):
        files.make_directory(path, stat.S_IMODE(found.st_mode))
        for name in files.names(source):
            share_tree(os.path.join(source, name), os.path.join(path, name))
        files.sync_directory(path)
    elif stat.S_ISREG(found.st_mode):
        share(source, path)


def link(target: str, path: str) -> None:
    """Make a symbolic link. Raises OSError."""
    above, base = os.path.split(path)
    with safe.directory_to_change(above) as directory:
        os.symlink(target, base, dir_fd=directory)


def exchange(one: str, other: str) -> None:
    """Two directories beside each other take each other's name, in one step.

    Raises OSError, with nothing done: EINVAL or ENOSYS where file system or kernel cannot. That is
    why making it durable is somebody else's: its failure must not be taken for one of this.
    """
    above, first = os.path.split(one)
    names = os.fsencode(first), os.fsencode(os.path.basename(other))
    with safe.directory_to_change(above) as fd:
        syscalls.call(syscalls.RENAMEAT2, fd, names[0], fd, names[1], _EXCHANGE)


def are_same(one: str, other: str) -> bool:
    """Is what is at two agent paths one file under two names, or directories of such? Raises
    OSError."""
    first, second = os.lstat(one), os.lstat(other)
    if (first.st_mode, first.st_uid) != (second.st_mode, second.st_uid):
        return False
    if stat.S_ISLNK(first.st_mode):
        return os.readlink(one) == os.readlink(other)
    if not stat.S_ISDIR(first.st_mode):
        return os.path.samestat(first, second)
    found = sorted(files.names(one))
    return found == sorted(files.names(other)) and all(
        are_same(os.path.join(one, name), os.path.join(other, name)) for name in found
    )


def remove(path: str, last: str = "") -> None:
    """Remove a directory with all that is in it; one that is gone is fine. Raises OSError.

    `last` is the file that goes last: while anything is left, it tells what this is.
    """
    above, base = os.path.split(path)
    try:
        with safe.directory_to_change(above) as parent:
            with safe.directory_to_change(path) as directory:
                for name in sorted(os.listdir(directory), key=lambda name: name == last):
                    _remove(directory, name)
            os.rmdir(base, dir_fd=parent)
            os.fsync(parent)
    except FileNotFoundError:
        return


def _remove(above: int, name: str) -> None:
    found = os.stat(name, dir_fd=above, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
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
