"""Making device nodes.

Invariant: a name shows a node with its numbers and its mode, or what was there before.
"""

from __future__ import annotations

import os
import stat

from agent.host import safe
from agent.host.temporary import name_for


def make(path: str, major: int, minor: int, mode: int) -> None:
    """Have a character device at an agent path whose links were followed. Raises OSError.

    Only another node is replaced, never a file, a link or a directory.
    """
    above, base = os.path.split(path)
    temporary = name_for(base)
    with safe.directory_to_change(above) as directory:
        try:
            found = os.stat(base, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            found = None
        if found is not None and not stat.S_ISCHR(found.st_mode):
            raise OSError("it is no device node; move it away")
        kind = stat.S_IFCHR | 0o600
        os.mknod(temporary, kind, os.makedev(major, minor), dir_fd=directory)
        try:
            os.chmod(temporary, mode, dir_fd=directory)
            os.rename(temporary, base, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            os.unlink(temporary, dir_fd=directory)
            raise
