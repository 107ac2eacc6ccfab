"""Files that the running runtime has not loaded: somebody changed them after its start.

A restart activates them. Where a trial start shows what comes of that, they are no obstacle. Where
none can be made, nobody has seen the runtime start on them.

Invariant: reads only. A file counts as loaded if it is older than the process, if we wrote it and
proved it, or if the runtime shows every setting of its CRI section.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.cri import process
from agent.errors import Refused
from agent.plan.context import Context
from agent.runtimes.base import ConfiguredRuntime
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.desired import leaves, same
from agent.runtimes.key_ownership import is_proven
from agent.toml.edit import Data, get

_MISSING = object()


def first(ctx: Context, node: ConfiguredRuntime) -> ConfigFile | None:
    """The first file that the running runtime has not loaded as it is; None where there is none, or
    where it cannot be told."""
    running = node.runtime.process
    if running is None:
        return None
    memory, files = ctx.store.memory(), node.files
    changed = (f for f in files if process.changed_since_start(running, f.path.agent, ctx.wall))
    unproven = (file for file in changed if not is_proven(memory, file))
    return next((file for file in unproven if not _is_shown(node, file)), None)


def refusal(file: ConfigFile, purpose: str, why_no_trial: str) -> Refused:
    """Why a restart that could not be tried may not be asked for."""
    return Refused(
        f"cannot {purpose}: {file.path} was changed after the runtime was started, and the running "
        f"runtime does not show what it says; no trial start can be made ({why_no_trial}); restart "
        "the runtime yourself first, nothing was changed"
    )


def _is_shown(node: ConfiguredRuntime, file: ConfigFile) -> bool:
    """Does the runtime show every setting of the file's CRI section?"""
    if file.unread:
        return False
    shown, sections = node.shows(file)
    return all(_shows(shown, section) for section in sections)


def _shows(shown: object, section: Data) -> bool:
    plain = _plain(shown)
    return all(
        same(value, get(plain, tuple(map(_key, path)), _MISSING)) for path, value in leaves(section)
    )


def _plain(value: Any) -> Any:
    """The same data with keys that are equal however they are spelled."""
    if not isinstance(value, Mapping):
        return value
    return {_key(key): _plain(item) for key, item in value.items()}


def _key(name: str) -> str:
    """`stream_idle_timeout` in a file is `streamIdleTimeout` in Status."""
    return name.replace("_", "").lower()
