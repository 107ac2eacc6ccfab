"""Reading and writing files atomically: each file always has its old or its new content.

Invariant: a name never shows a part of a file. New content is written beside the file under a
temporary name (it ends in `~`, so that no reader of configuration or specs takes it), forced to
disk, given the old file's owner, mode and SELinux label, and renamed over the file. Then the
directory is forced to disk. "Durably" below means: forced to disk before the function returns.

Every path here is an agent path without links (`HostRoot.resolve`). The path's directory is opened
first, without following any link, and all further calls are relative to that descriptor. If
somebody puts a link in the place of a directory meanwhile, the call fails, and no file elsewhere
changes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from io import FileIO

from agent.errors import Refused, reason
from agent.host import budget, nofollow
from agent.host.budget import Budget
from agent.host.paths import HostPath

LIMIT = budget.TOML.size  # bytes; a configuration file larger than this is refused
_LABEL = "security.selinux"
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{12}~")


@dataclass(frozen=True)
class FileState:
    """The state of a regular file: its bytes, and the mode, the owner and the SELinux label that a
    rewrite keeps.

    `links` is the number of names of the file (hard links); a rewrite changes only one of them.
    """

    data: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    label: bytes | None = None
    links: int = 1

    @property
    def digest(self) -> str:
        return digest(self.data)


@dataclass(frozen=True)
class Change:
    """The state of one file before and after a change; None if the file does not exist. `outside`
    is a directory for temporary files. It is set if a program reads every file in the file's own
    directory."""

    path: HostPath
    before: FileState | None
    after: FileState | None
    outside: HostPath | None = None


def new_state(data: bytes = b"", mode: int = 0o644) -> FileState:
    """The state of a new file, with our user and group as its owner."""
    return FileState(data, mode, os.geteuid(), os.getegid())


def digest(data: bytes) -> str:
    """The SHA-256 of the data, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def temporary_name(base: str) -> str:
    """A new temporary name for a file that will be renamed to `base` in the same directory."""
    return f".{base}.{os.urandom(6).hex()}~"


def final_name(entry: str) -> str | None:
    """The name to which the file with this temporary name would be renamed; None for any other
    name."""
    match = _TEMPORARY.fullmatch(entry)
    return match[1] if match else None


def read(path: str, name: str | None = None, limit: int = LIMIT) -> FileState | None:
    """The state of the file at an agent path, None if the file does not exist.

    Raises Refused for anything but a readable regular file of at most `limit` bytes; `name` is the
    path in the message. No part of the path may be a link (resolve it before).
    """
    name = name or path
    try:
        fd = _open(path)
        try:
            return read_open(fd, name, limit)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"cannot read {name}: {reason(error)}") from error


def _open(path: str) -> int:
    """Open a file for reading, and return its descriptor. No link is followed, and a FIFO does not
    block. Raises OSError."""
    above, base = os.path.split(path)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with nofollow.open_directory(above) as directory:
        return os.open(base, flags, dir_fd=directory)


@contextlib.contextmanager
def open_file(path: str) -> Iterator[FileIO]:
    """A regular file at an agent path, open for reading. Raises OSError."""
    try:
        fd = _open(path)
    except OSError as error:
        error.filename = path
        raise
    with open(fd, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError("it is not a regular file; move it away")
        yield file


def read_open(fd: int, name: str, limit: int = LIMIT) -> FileState:
    """As `read`, for an open file. Raises OSError, Refused."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise Refused(f"cannot read {name}: it is {kind}; move it away")
    data = _read_all(fd, limit + 1)
    if len(data) > limit:
        raise Refused(f"cannot read {name}: it is larger than {limit} bytes; make it smaller")
    mode = stat.S_IMODE(status.st_mode)
    return FileState(data, mode, status.st_uid, status.st_gid, _label(fd), status.st_nlink)


def _read_all(fd: int, limit: int) -> bytes:
    parts = []
    while limit > 0 and (part := os.read(fd, min(limit, 1 << 16))):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)


def _label(fd: int) -> bytes | None:
    try:
        return os.getxattr(fd, _LABEL)
    except OSError:
        return None


def write(path: str, state: FileState, temporary: str | None = None) -> None:
    """Write `state` to `path`, atomically and durably. Raises OSError; then no temporary file is
    left.

    `temporary` is the name of the temporary file. A caller gives it to find the file after a kill.
    """
    with nofollow.open_parent(path) as (directory, base):
        temporary = temporary or temporary_name(base)
        _stage(directory, temporary, state)
        _rename_or_remove(directory, temporary, base)
        os.fsync(directory)


def _rename_or_remove(directory: int, temporary: str, base: str) -> None:
    try:
        os.rename(temporary, base, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        _unlink(directory, temporary)
        raise


def place(path: str, state: FileState, *, fresh: bool, transient: str, outside: str) -> None:
    """Write `state` to `path`, in a directory of which a program reads every file.

    Every name in that directory always shows complete, final content. With `fresh`, the file must
    not exist yet. Otherwise the new content also has the name `transient` for a moment. If the file
    system has no files without a name (O_TMPFILE), the incomplete file is written to the path
    `outside`. Raises OSError; Refused if `outside` would be needed and is on another file system.
    """
    with nofollow.open_parent(path) as (directory, base):
        fd = _open_nameless(directory)
        if fd is None:
            _move_in(directory, base, state, fresh=fresh, outside=outside)
        else:
            try:
                _fill(fd, state)
                name = base if fresh else transient
                os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory, follow_symlinks=True)
            finally:
                os.close(fd)
            if not fresh:
                _rename_or_remove(directory, transient, base)
        os.fsync(directory)


def _open_nameless(directory: int) -> int | None:
    try:
        return os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
        return None


def has_nameless_files(path: str) -> bool:
    """Does the file system of a directory have files without a name (O_TMPFILE)? The check changes
    no name. If another error prevents an answer, true: the later write reports that error."""
    try:
        with nofollow.open_directory(path, os.O_RDONLY) as directory:
            fd = _open_nameless(directory)
    except OSError:
        return True
    if fd is None:
        return False
    os.close(fd)
    return True


def _move_in(directory: int, base: str, state: FileState, *, fresh: bool, outside: str) -> None:
    with nofollow.open_parent(outside) as (other, name):
        _unlink(other, name)
        _stage(other, name, state)
        try:
            move = os.link if fresh else os.rename  # a link never replaces a file
            move(name, base, src_dir_fd=other, dst_dir_fd=directory)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            above = os.path.dirname(outside)
            raise Refused(
                f"cannot write {base} in one step: its file system has no files without a name, "
                f"and {above} is on another mount; mount {above} as a whole"
            ) from error
        finally:
            _unlink(other, name)


def stage(path: str, state: FileState, name: str | None = None) -> str:
    """Write `state` durably under a temporary name beside `path`, and return the temporary path.
    Raises OSError."""
    with nofollow.open_parent(path) as (directory, base):
        name = name or temporary_name(base)
        _stage(directory, name, state)
    return os.path.join(os.path.dirname(path), name)


def _stage(directory: int, name: str, state: FileState) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        try:
            _fill(fd, state)
        finally:
            os.close(fd)
    except BaseException:
        _unlink(directory, name)
        raise


def write_all(fd: int, data: bytes) -> None:
    """Write all bytes to a descriptor, in as many calls as needed. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _fill(fd: int, state: FileState) -> None:
    write_all(fd, state.data)
    status = os.fstat(fd)
    if (status.st_uid, status.st_gid) != (state.uid, state.gid):
        os.fchown(fd, state.uid, state.gid)
    os.fchmod(fd, state.mode)
    if state.label is not None and state.label != _label(fd):
        with contextlib.suppress(OSError):  # a label of another policy cannot be kept
            os.setxattr(fd, _LABEL, state.label)
    os.fsync(fd)


def sweep(directory: str, names: Collection[str] | None = None) -> None:
    """Remove the temporary files that killed processes left in a directory.

    With `names`, only those of files with these final names. Errors are ignored, because a
    temporary file has no effect. A living process that loses its temporary file gets an error from
    its rename.
    """
    with contextlib.suppress(OSError):
        with nofollow.open_directory(directory, os.O_RDONLY) as fd:
            entries = os.listdir(fd)
        for entry in entries:
            base = final_name(entry)
            if base is not None and (names is None or base in names):
                discard(os.path.join(directory, entry))


def discard(path: str) -> None:
    """Remove a file if it exists. Raises OSError."""
    with contextlib.suppress(FileNotFoundError), nofollow.open_parent(path) as (directory, base):
        _unlink(directory, base)


def remove(path: str) -> None:
    """Remove a file if it exists, durably. Raises OSError."""
    with contextlib.suppress(FileNotFoundError), nofollow.open_parent(path) as (directory, base):
        _unlink(directory, base)
        os.fsync(directory)


def _unlink(directory: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def move(old: str, new: str) -> None:
    """Rename a file, also over an existing one, durably. Raises OSError: EXDEV for another file
    system."""
    with (
        nofollow.open_parent(old) as (source, base),
        nofollow.open_parent(new) as (directory, name),
    ):
        os.rename(base, name, src_dir_fd=source, dst_dir_fd=directory)
        os.fsync(directory)


def names(path: str, most: Budget = budget.DIRECTORY) -> list[str]:
    """All names in a directory. Raises OSError, also if there are more than `most.values`."""
    with nofollow.open_directory(path, os.O_RDONLY) as directory:
        return budget.names(directory, most)


def some_names(path: str, most: Budget) -> tuple[list[str], bool]:
    """The first names in a directory, at most `most.values`, and whether there are more. Raises
    OSError."""
    with nofollow.open_directory(path, os.O_RDONLY) as directory:
        return budget.some_names(directory, most)


def sync_directory(path: str) -> None:
    """Force the names in a directory to disk. Raises OSError."""
    with nofollow.open_directory(path, os.O_RDONLY) as directory:
        os.fsync(directory)


def missing_directories(path: str) -> tuple[str, ...]:
    """The directories that have to be made so that the directory `path` exists, the outermost
    first."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    return tuple(reversed(missing))


def make_directory(path: str, mode: int = 0o755) -> None:
    """Make a directory with this mode, regardless of the umask, durably. Raises OSError, also if it
    exists."""
    with nofollow.open_parent(path) as (directory, name):
        os.mkdir(name, mode, dir_fd=directory)  # the final mode, because a kill can precede chmod
        _set_mode(directory, name, mode)
        os.fsync(directory)


def _set_mode(above: int, name: str, mode: int) -> None:
    """Give a new directory its mode, by its descriptor. A user who can write to the directory above
    can exchange the new directory. So the mode is set only if the directory is empty and ours; then
    it makes no difference whether it is the one that was made."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=above)
    try:
        if os.fstat(fd).st_uid != os.geteuid() or os.listdir(fd):
            raise OSError("somebody put another file in its place; examine that file")
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def make_directories(path: str, mode: int = 0o755) -> None:
    """Make a directory and the missing directories above it, durably. Raises OSError."""
    for missing in missing_directories(path):
        with contextlib.suppress(FileExistsError):
            make_directory(missing, mode)


def remove_empty_directory(path: str) -> None:
    """Remove an empty directory, durably. Raises OSError."""
    with nofollow.open_parent(path) as (directory, name):
        os.rmdir(name, dir_fd=directory)
        os.fsync(directory)


def remove_directories(paths: Iterable[str]) -> None:
    """Remove those of these directories that are empty, the innermost first. Raises OSError."""
    for path in sorted(paths, key=len, reverse=True):
        if not os.path.isdir(path) or names(path):  # checked first, because of read-only disks
            continue
        try:
            remove_empty_directory(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
