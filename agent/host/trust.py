"""Whom the host belongs to: files and directories in which root believes.

Invariant: what somebody else than root can write is not used as if it were root's.
"""

from __future__ import annotations

import os
import stat

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
