"""Reading and writing files that are not ours, so that each is always whole: old or new.

Invariant: a name never shows partial bytes. New content is written beside the file under a name
that no reader takes (it ends in `~`), forced to disk, given the old file's owner, mode and SELinux
label, and renamed over it; then the directory is forced to disk.

Every path here is an agent path whose links were followed before (`HostRoot.resolve`). Its
directory is opened first, without following any link, and all the rest happens relative to that
descriptor: where somebody puts a link in the place of a directory meanwhile, there is an error, and
no file anywhere else.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from io import FileIO

from agent.errors import Refused, reason
from agent.host import budget, safe
from agent.host.budget import Budget
from agent.host.paths import HostPath
from agent.host.temporary import base_of, name_for

LIMIT = budget.TOML.size  # bytes; a configuration file larger than this is refused
_LABEL = "security.selinux"
_PRIVATE = 0o700  # the mode of a directory until it has its own


@dataclass(frozen=True, slots=True)
class FileState:
    """A regular file as read: its bytes, and what has to stay as it is when it is rewritten.

    `links` is how many names it has; a rewrite changes the one that was asked for.
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


@dataclass(frozen=True, slots=True)
class Change:
    """One file: what it is and what it becomes, None where it is not there. `outside`: a directory
    for what may not lie beside it, where its own is read whole, whatever the names in it."""

    path: HostPath
    before: FileState | None
    after: FileState | None
    outside: HostPath | None = None


def new_state(data: bytes = b"", mode: int = 0o644) -> FileState:
    """A file that was not there before: ours, like any file that we would make."""
    return FileState(data, mode, os.geteuid(), os.getegid())


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read(path: str, name: str | None = None, limit: int = LIMIT) -> FileState | None:
    """The file at an agent path, or None where there is none.

    Raises Refused for anything but a readable regular file of at most `limit` bytes; `name` is
    what the message calls it. No part of the path may be a link (resolve it before).
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
    """A descriptor to read a file by, without following a link or waiting. Raises OSError."""
    above, base = os.path.split(path)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with safe.directory(above) as directory:
        return os.open(base, flags, dir_fd=directory)


@contextlib.contextmanager
def opened(path: str) -> Iterator[FileIO]:
    """The regular file at an agent path whose links were followed before, for reading. Raises
    OSError."""
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
    """The same of an open file; its kind is judged before it is read. Raises OSError, Refused."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise Refused(f"cannot read {name}: it is {kind}; move it away")
    data = _read_all(fd, limit + 1)
    if len(data) > limit:
        raise Refused(f"cannot read {name}: it is larger than {limit} bytes; make it smaller")
    mode = stat.S_IMODE(found.st_mode)
    return FileState(data, mode, found.st_uid, found.st_gid, _label(fd), found.st_nlink)


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
    """Put `state` at `path`, atomically and durably. Raises OSError; nothing is left behind.

    `temporary` names the file that it is first, beside `path`, for who has to find it again after
    having been killed.
    """
    above, base = os.path.split(path)
    temporary = temporary or name_for(base)
    with safe.directory_to_change(above) as directory:
        _stage(directory, temporary, state)
        try:
            os.rename(temporary, base, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            _unlink(directory, temporary)
            raise
        os.fsync(directory)


def place(path: str, state: FileState, *, fresh: bool, transient: str, outside: str) -> None:
    """The same in a directory whose reader takes every name in it: no name there ever shows
    anything but whole, final bytes. Raises OSError, or Refused where there is no way.

    `fresh`: there must be no such file yet. One that is replaced has its new bytes under the name
    `transient` for a moment. `outside`: a path on the same file system for what is not finished,
    used where the file system knows no files without a name.
    """
    above, base = os.path.split(path)
    with safe.directory_to_change(above) as directory:
        fd = _nameless(directory)
        if fd is None:
            _bring_in(directory, base, state, fresh=fresh, outside=outside)
        else:
            try:
                _fill(fd, state)
                _name(fd, directory, base, None if fresh else transient)
            finally:
                os.close(fd)
        os.fsync(directory)


def _nameless(directory: int) -> int | None:
    try:
        return os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
        return None


def has_nameless(path: str) -> bool:
    """Has the file system of a directory files without a name? None of the names in it changes."""
    try:
        with safe.directory_to_change(path) as directory:
            fd = _nameless(directory)
    except OSError:
        return True  # another cause; the write will tell
    if fd is None:
        return False
    os.close(fd)
    return True


def _name(fd: int, directory: int, base: str, transient: str | None) -> None:
    source = f"/proc/self/fd/{fd}"
    os.link(source, transient or base, dst_dir_fd=directory, follow_symlinks=True)
    if transient is not None:
        try:
            os.rename(transient, base, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            _unlink(directory, transient)
            raise


def _bring_in(directory: int, base: str, state: FileState, *, fresh: bool, outside: str) -> None:
    above, name = os.path.split(outside)
    with safe.directory_to_change(above) as other:
        _unlink(other, name)
        _stage(other, name, state)
        try:
            move = os.link if fresh else os.rename  # a link takes nobody's place
            move(name, base, src_dir_fd=other, dst_dir_fd=directory)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise Refused(
                f"cannot write {base} in one step: its file system has no files without a name, "
                f"and {above} is on another mount; mount {above} as a whole"
            ) from error
        finally:
            _unlink(other, name)


def stage(path: str, state: FileState, name: str | None = None) -> str:
    """Write `state` durably beside `path` without giving it that name; returns where it is."""
    above, base = os.path.split(path)
    name = name or name_for(base)
    with safe.directory_to_change(above) as directory:
        _stage(directory, name, state)
    return os.path.join(above, name)


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
    """Write all of it, in however many pieces. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _fill(fd: int, state: FileState) -> None:
    write_all(fd, state.data)
    found = os.fstat(fd)
    if (found.st_uid, found.st_gid) != (state.uid, state.gid):
        os.fchown(fd, state.uid, state.gid)
    os.fchmod(fd, state.mode)
    if state.label is not None and state.label != _label(fd):
        with contextlib.suppress(OSError):  # a label of another policy cannot be kept
            os.setxattr(fd, _LABEL, state.label)
    os.fsync(fd)


def sweep(directory: str, names: Collection[str] | None = None) -> None:
    """Remove what killed processes left in a directory: files that did not get their name yet.

    `names`: only those that were to be called so. As good as it goes: a leftover does no harm. A
    living process that loses one in this way gets an error from its rename.
    """
    with contextlib.suppress(OSError):
        with safe.directory(directory, os.O_RDONLY) as fd:
            found = os.listdir(fd)
        for entry in found:
            base = base_of(entry)
            if base is not None and (names is None or base in names):
                discard(os.path.join(directory, entry))


def discard(path: str) -> None:
    """Remove a file of ours that may or may not be there."""
    above, base = os.path.split(path)
    with contextlib.suppress(FileNotFoundError), safe.directory_to_change(above) as directory:
        _unlink(directory, base)


def _unlink(directory: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def remove(path: str) -> None:
    """Remove a file, durably; one that is gone already is fine. Raises OSError."""
    above, base = os.path.split(path)
    with contextlib.suppress(FileNotFoundError), safe.directory_to_change(above) as directory:
        _unlink(directory, base)
        os.fsync(directory)


def move(old: str, new: str) -> None:
    """Give a file another name on its file system, durably. Raises OSError."""
    (above, base), (below, name) = os.path.split(old), os.path.split(new)
    with safe.directory_to_change(above) as source, safe.directory_to_change(below) as directory:
        os.rename(base, name, src_dir_fd=source, dst_dir_fd=directory)
        os.fsync(directory)


def names(path: str, most: Budget = budget.DIRECTORY) -> list[str]:
    """What is in a directory. Raises OSError, also where there are too many names."""
    with safe.directory(path, os.O_RDONLY) as directory:
        try:
            return budget.names(directory, most)
        except budget.OverBudget as error:
            raise OSError(f"{error}; remove what is not needed") from error


def some_names(path: str, most: Budget) -> tuple[list[str], bool]:
    """The names in a directory, those that come first if there are more than `most`, and whether
    there are more. Raises OSError."""
    with safe.directory(path, os.O_RDONLY) as directory:
        return budget.some_names(directory, most)


def sync_directory(path: str) -> None:
    """Make names in a directory durable. Raises OSError."""
    with safe.directory_to_change(path) as directory:
        os.fsync(directory)


def missing_directories(path: str) -> tuple[str, ...]:
    """The directories that have to be made so that `path` is one, outermost first."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    return tuple(reversed(missing))


def make_directory(path: str, mode: int = 0o755) -> None:
    """Make a directory that is not there, durably, whatever the umask. Raises OSError."""
    above, name = os.path.split(path)
    with safe.directory_to_change(above) as directory:
        os.mkdir(name, _PRIVATE, dir_fd=directory)
        _set_mode(directory, name, mode)
        os.fsync(directory)


def _set_mode(above: int, name: str, mode: int) -> None:
    """Give the directory that was just made its mode, by its descriptor. Whoever can write the one
    above can put something else in its place: only an empty directory of ours, which is as good as
    the one that was made, gets the mode."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=above)
    try:
        if os.fstat(fd).st_uid != os.geteuid() or os.listdir(fd):
            raise OSError("somebody put something else in its place; look at what is there")
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def make_directories(path: str, mode: int = 0o755) -> None:
    """The same with those above it, as far as they are not there. Raises OSError."""
    for missing in missing_directories(path):
        with contextlib.suppress(FileExistsError):
            make_directory(missing, mode)


def remove_empty_directory(path: str) -> None:
    """Remove a directory in which nothing is. Raises OSError."""
    above, name = os.path.split(path)
    with safe.directory_to_change(above) as directory:
        os.rmdir(name, dir_fd=directory)
        os.fsync(directory)


def remove_directories(paths: Iterator[str] | tuple[str, ...]) -> None:
    """Remove directories that we made, innermost first, as far as they are empty."""
    for path in sorted(paths, key=len, reverse=True):
        if not os.path.isdir(path) or names(path):  # looked at first, for a read-only disk
            continue
        above, name = os.path.split(path)
        try:
            with safe.directory_to_change(above) as directory:
                os.rmdir(name, dir_fd=directory)
                os.fsync(directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
