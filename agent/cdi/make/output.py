"""The output file of `cdi generate`, and the program of its hooks.

Invariant: the file has its whole content at every moment; only the file and missing directories
above it are written.
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
    """Host path of the program of hooks; None if there is none.

    `asked` is a path, which is not checked, or the name of a program. Raises UsageError for an
    unknown name, and Refused if the named program is not on the host.
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
        directory = programs.directory_name(settings, host)
        raise Refused(
            f"cannot make hooks: there is no {asked} in {directory} or /usr/bin; give its path "
            "with --nvidia-cdi-hook-path"
        )
    return found


def write(host: HostRoot, asked: str, form: str, text: str) -> HostPath:
    """Write a spec to the path of the option, and give that path. A name without an ending gets
    that of the form, because runtimes read no other file. Raises Refused."""
    if os.path.splitext(asked)[1] not in (".json", ".yaml"):
        asked = f"{asked}.{form}"
    path = host.locate(os.path.join(os.getcwd(), asked))
    try:
        files.make_directories(os.path.dirname(path.agent))
        files.write(path.agent, files.new_state(text.encode()))
    except OSError as error:
        raise Refused(f"cannot write {path}: {reason(error)}") from error
    return path
