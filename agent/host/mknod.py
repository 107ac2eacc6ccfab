"""Making device nodes.

Invariant: a name shows a node with its final numbers and mode, or what was there before.
"""

from __future__ import annotations

import contextlib
import os
import stat

from agent.errors import reason
from agent.host import nofollow
from agent.host.files import temporary_name

_MKNOD = 27  # CAP_MKNOD, capabilities(7)
_NOT_ONE = "it is no device node; move it away"


def obstacle(path: str) -> str | None:
    """Why no node can be made at an agent path, as far as that shows without trying; or None."""
    try:
        if not stat.S_ISCHR(os.stat(path, follow_symlinks=False).st_mode):
            return _NOT_ONE
    except FileNotFoundError:
        pass
    except OSError as error:
        return reason(error)
    if not os.access(os.path.dirname(path), os.W_OK):
        return "its directory cannot be written"
    return None if _may_make() else "there is no right to (CAP_MKNOD)"


def _may_make() -> bool:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            rights = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return True  # the attempt will show it
    return bool(rights >> _MKNOD & 1)


def make(path: str, major: int, minor: int, mode: int) -> None:
    """Make a character device at a resolved agent path. Raises OSError.

    It replaces a character device only, never a file, a link or a directory.
    """
    with nofollow.open_parent(path) as (directory, base):
        temporary = temporary_name(base)
        try:
            found = os.stat(base, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            found = None
        if found is not None and not stat.S_ISCHR(found.st_mode):
            raise OSError(_NOT_ONE)
        numbers = os.makedev(major, minor)
        os.mknod(temporary, stat.S_IFCHR | 0o600, numbers, dir_fd=directory)
        try:
            _set_mode(directory, temporary, numbers, mode)
            os.rename(temporary, base, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)
            raise


def _set_mode(above: int, name: str, numbers: int, mode: int) -> None:
    """Give a new node its mode, by its descriptor, because the driver's container can write to /dev
    of its root and could put a link or another file in the place of the node."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        found = os.fstat(fd)
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != numbers:
            raise OSError("somebody put something else in its place; look at what is there")
        os.chmod(f"/proc/self/fd/{fd}", mode)  # fchmod(2) refuses a descriptor of O_PATH
    finally:
        os.close(fd)
