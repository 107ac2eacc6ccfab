"""Where `cdi generate` writes a spec, and which program its hooks run.

Invariant: a file has its whole content at every moment; nothing but it and the directories above it
is written.
"""

from __future__ import annotations

import os

from agent.errors import Refused, UsageError, reason
from agent.host import files
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings
from agent.toolkit import programs

_NAMES = (programs.CDI_HOOK, programs.CTK)


def hook(settings: Settings, host: HostRoot, asked: str) -> str | None:
    """Host path of the program of hooks; None where there is none.

    A path is taken as it is, whether it is there or not. Raises UsageError for another name, and
    Refused where a name is asked for that is not there.
    """
    if asked.startswith("/"):
        return asked
    if asked and asked not in _NAMES:
        raise UsageError(
            f"cannot use {asked!r} as the program of hooks: give an absolute path, or "
            f"{' or '.join(_NAMES)}"
        )
    found = programs.find(settings, host, asked or programs.CDI_HOOK)
    if asked and found is None:
        raise Refused(
            f"cannot make hooks: there is no {asked} in {programs.spelled(settings, host)} or "
            "/usr/bin; give its path with --nvidia-cdi-hook-path"
        )
    return found


def write(host: HostRoot, asked: str, form: str, text: str) -> HostPath:
    """Write a spec where an option says, and give that path. A name without an ending gets that of
    the form, because a runtime reads no other file. Raises Refused."""
    if os.path.splitext(asked)[1] not in (".json", ".yaml"):
        asked = f"{asked}.{form}"
    path = host.locate(os.path.join(os.getcwd(), asked))
    try:
        files.make_directories(os.path.dirname(path.agent))
        files.write(path.agent, files.new_state(text.encode()))
    except OSError as error:
        raise Refused(f"cannot write {path}: {reason(error)}") from error
    return path
