"""Whom the host belongs to: files and directories in which root believes.

Invariant: what somebody else than root can write is not used as if it were root's.
"""

from __future__ import annotations

import os
import stat

from agent.errors import Refused, reason
from agent.host import safe
from agent.host.files import FileState


def distrust(found: FileState | os.stat_result) -> str | None:
    """Why somebody else than root could decide what is in a file or directory, and what to do."""
    if isinstance(found, FileState):
        uid, mode = found.uid, found.mode
    else:
        uid, mode = found.st_uid, stat.S_IMODE(found.st_mode)
    if why := _owner(uid):
        return why
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written by others (mode {mode:04o}), who could become root; chmod go-w it"
    return None


def distrust_owner(found: os.stat_result) -> str | None:
    """The same where only the owner counts: of a link, of a device, in a sticky directory."""
    return _owner(found.st_uid)


def _owner(uid: int) -> str | None:
    if uid in (0, os.geteuid()):
        return None
    return f"belongs to user {uid}, who could become root with it; chown it to root"


def require(path: str, purpose: str, subject: str = "it", *, sticky_is_fine: bool = False) -> None:
    """The directory at an agent path is root's alone, or not there: then it is nobody's.

    In a sticky one others can make files, which are theirs then, but cannot touch ours. Raises
    Refused: cannot `purpose`, and why; the message calls the directory `subject`.
    """
    try:
        with safe.directory(path) as directory:
            found = os.fstat(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Refused(f"cannot {purpose}: {reason(error)}") from error
    sticky = sticky_is_fine and found.st_mode & stat.S_ISVTX and found.st_uid in (0, os.geteuid())
    why = None if sticky else distrust(found)
    if why:
        raise Refused(f"cannot {purpose}: {subject} {why}")
