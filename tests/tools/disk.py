"""Let nothing in this process wait for a disk.

The agent syncs each file and directory that it changes: milliseconds each, thousands of times. What
is on the disk after a power failure no test can see; the tests count these calls and let them fail.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike


def never_wait() -> None:
    """From now on os.fsync returns at once, with the errors of a wrong descriptor as before."""
    os.fsync = os.fdatasync = _check


def _check(fd: FileDescriptorLike) -> None:
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
