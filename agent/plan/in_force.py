"""Whether the running runtime has its present files in force.

Somebody can have changed files after the start of the runtime, and a restart activates them. That
is no obstacle if a trial start shows that the runtime starts on them. Without a trial start
nobody has seen it do so. CRI-O shows new handlers after a reload, although pods still get the old
ones. What it shows is therefore no evidence if the file may be younger than the process.

Invariant: reads only. A file is in force if it is older than the process, if we wrote it and proved
it, or if the runtime shows every setting in it. A process that was proven before is believed, and
so is one of which nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent.cri import process
from agent.errors import Refused
from agent.runtimes.base import ConfiguredRuntime, Edits
from agent.runtimes.config_file import ConfigFile, owner
from agent.runtimes.desired_state import leaves, same
from agent.runtimes.key_ownership import is_proven
from agent.state.store import Memory
from agent.toml.document import get

_MISSING = object()


def first_unloaded(
    memory: Memory, node: ConfiguredRuntime, wall: Callable[[], float]
) -> ConfigFile | None:
    """The first file whose present content the running runtime has not loaded; None if there is
    none, or if that is not known. `wall` gives the time (seconds since the epoch)."""
    running = node.runtime.process
    if running is None:
        return None
    changed = (f for f in node.files if process.changed_since_start(running, f.path.agent, wall))
    unproven = (file for file in changed if not is_proven(memory, file))
    return next((file for file in unproven if not _is_shown(node, file)), None)


def refusal(file: ConfigFile, purpose: str, why_no_trial: str) -> Refused:
    """The refusal of a restart that would activate this file without a trial start."""
    return Refused(
        f"cannot {purpose}: {file.path} was changed after the runtime was started, and the running "
        f"runtime does not show what it says; no trial start can be made ({why_no_trial}); restart "
        "the runtime yourself first, nothing was changed"
    )


def _is_shown(node: ConfiguredRuntime, file: ConfigFile) -> bool:
    """Does the runtime show every setting of the file's CRI section?"""
    if file.unread:
        return False
    shown, sections = node.comparable_settings(file)
    plain = _plain(shown)
    return all(
        same(value, get(plain, tuple(map(_key, path)), _MISSING))
        for section in sections
        for path, value in leaves(section)
    )


def _plain(value: Any) -> Any:
    """The same data with keys that are equal however they are spelled."""
    if not isinstance(value, Mapping):
        return value
    return {_key(key): _plain(item) for key, item in value.items()}


def _key(name: str) -> str:
    """`stream_idle_timeout` in a file is `streamIdleTimeout` in Status."""
    return name.replace("_", "").lower()


def unproven_after_reload(
    node: ConfiguredRuntime, edits: Edits, memory: Memory, boot_id: str, wall: Callable[[], float]
) -> tuple[str, ...]:
    """Why a restart is needed although the runtime shows all desired values. Empty if it is
    not. `boot_id` and `wall` are those of Context."""
    running, keys = node.runtime.process, node.reload_keys(edits.desired)
    if not keys or running is None or memory.proven == (boot_id, *running.identity):
        return ()
    title = node.adapter.title
    for key in keys:
        now, later = owner(node.files, key), owner(edits.files, key)
        if later is None or is_proven(memory, later):
            continue
        if now is None:
            return (f"{title} shows what no file says, and may only have reloaded it",)
        if process.changed_since_start(running, now.path.agent, wall):
            return (
                f"{now.path} was changed after {title} was started: it may only have reloaded it",
            )
    return ()
