"""Reading and writing files that are not ours, so that each is always whole: old or new.

Invariant: a name never shows partial bytes. New content is written beside the file under a name
that no reader takes (it ends in `~`), forced to disk, given the old file's owner, mode and SELinux
label, and renamed over it; then the directory is forced to disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator

from agent.data import dataclass
from agent.errors import Refused, reason

LIMIT = 1 << 20  # bytes; a configuration file larger than this is refused
_LABEL = "security.selinux"


@dataclass(frozen=True, slots=True)
class FileState:
    """A regular file as read: its bytes, and what has to stay as it is when it is rewritten."""

    data: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    label: bytes | None = None

    @property
    def digest(self) -> str:
        return digest(self.data)


def new_state(data: bytes = b"", mode: int = 0o644) -> FileState:
    """A file that was not there before: ours, like any file that we would make."""
    return FileState(data, mode, os.geteuid(), os.getegid())


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read(path: str, name: str | None = None, limit: int = LIMIT) -> FileState | None:
    """The file at an agent path, or None where there is none.

    Raises Refused for anything but a readable regular file of at most `limit` bytes; `name` is
    what the message calls it. The path's last part must not be a link (resolve it before).
    """
    name = name or path
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return _read_open(fd, name, limit)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"cannot read {name}: {reason(error)}") from error


def _read_open(fd: int, name: str, limit: int) -> FileState:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise Refused(f"cannot read {name}: it is {kind}; move it away")
    data = _read_all(fd, limit + 1)
    if len(data) > limit:
        raise Refused(f"cannot read {name}: it is larger than {limit} bytes; make it smaller")
    mode = stat.S_IMODE(found.st_mode)
    return FileState(data, mode, found.st_uid, found.st_gid, _label(fd))


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
    temporary = stage(path, state, temporary)
    try:
        os.rename(temporary, path)
    except BaseException:
        discard(temporary)
        raise
    sync_directory(os.path.dirname(path))


def stage(path: str, state: FileState, name: str | None = None) -> str:
    """Write `state` durably beside `path` without giving it that name; returns where it is."""
    directory, base = os.path.split(path)
    temporary = os.path.join(directory, name or f".{base}.{secrets.token_hex(6)}~")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600)
    try:
        try:
            _fill(fd, state)
        finally:
            os.close(fd)
    except BaseException:
        discard(temporary)
        raise
    return temporary


def _fill(fd: int, state: FileState) -> None:
    view = memoryview(state.data)
    while view:
        view = view[os.write(fd, view) :]
    found = os.fstat(fd)
    if (found.st_uid, found.st_gid) != (state.uid, state.gid):
        os.fchown(fd, state.uid, state.gid)
    os.fchmod(fd, state.mode)
    if state.label is not None and state.label != _label(fd):
        with contextlib.suppress(OSError):  # a label of another policy cannot be kept
            os.setxattr(fd, _LABEL, state.label)
    os.fsync(fd)


def discard(path: str) -> None:
    """Remove a file of ours that may or may not be there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove(path: str) -> None:
    """Remove a file, durably; one that is gone already is fine. Raises OSError."""
    discard(path)
    with contextlib.suppress(FileNotFoundError):
        sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    """Make names in a directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def missing_directories(path: str) -> tuple[str, ...]:
    """The directories that have to be made so that `path` is one, outermost first."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    return tuple(reversed(missing))


def make_directories(path: str, mode: int = 0o755) -> None:
    """Make a directory and those above it, each durably. Raises OSError."""
    for directory in missing_directories(path):
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, mode)
        sync_directory(os.path.dirname(directory))


def remove_directories(paths: Iterator[str] | tuple[str, ...]) -> None:
    """Remove directories that we made, innermost first, as far as they are empty."""
    for path in sorted(paths, key=len, reverse=True):
        if not os.path.isdir(path):  # looked at first: rmdir fails on a read-only disk
            continue
        try:
            os.rmdir(path)
            sync_directory(os.path.dirname(path))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
