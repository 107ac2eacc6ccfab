"""The check whether the running runtime has loaded its present files.

Somebody can have changed files after the start of the runtime, and a restart activates them. A
trial start shows whether the runtime starts on such files. If no trial start is possible, a restart
is refused. CRI-O shows new handlers after a reload, although pods still get the old ones, so its
settings are no evidence while a file may be younger than the process.

Invariant: reads only. A file is in force if it is older than the process, if we wrote and proved
it, or if the runtime shows every setting in it. A process that was proven before counts as right,
and so does a process whose start is not known.
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
    """The first file whose present content the running runtime has not loaded; None if there is no
    such file, or if the process cannot be seen. `wall` returns seconds since the epoch."""
    running = node.runtime.process
    if running is None:
        return None
    changed = (f for f in node.files if process.changed_since_start(running, f.path.agent, wall))
    unproven = (file for file in changed if not is_proven(memory, file))
    return next((file for file in unproven if not _is_shown(node, file)), None)


def refusal(file: ConfigFile, purpose: str, why_no_trial: str) -> Refused:
    """The error for a restart that would activate `file` without a trial start. `why_no_trial` is
    the reason why none is possible, `purpose` is "apply" or "revert"."""
    return Refused(
        f"cannot {purpose}: {file.path} was changed after the runtime was started, and the running "
        f"runtime does not show its settings; no trial start can be made ({why_no_trial}); restart "
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
    """The data with one spelling of all keys (`_key`)."""
    if not isinstance(value, Mapping):
        return value
    return {_key(key): _plain(item) for key, item in value.items()}


def _key(name: str) -> str:
    """One spelling for `stream_idle_timeout` in a file and `streamIdleTimeout` in Status."""
    return name.replace("_", "").lower()


def unproven_after_reload(
    node: ConfiguredRuntime, edits: Edits, memory: Memory, boot_id: str, wall: Callable[[], float]
) -> tuple[str, ...]:
    """The reasons for a restart although the runtime shows all desired values: it may only have
    reloaded them. Empty if no restart is needed. `boot_id` and `wall` are those of Context."""
    running, keys = node.runtime.process, node.reload_keys(edits.desired)
    if not keys or running is None or memory.proven == (boot_id, *running.identity):
        return ()
    title = node.adapter.title
    for key in keys:
        now, later = owner(node.files, key), owner(edits.files, key)
        if later is None or is_proven(memory, later):
            continue
        if now is None:
            return (f"{title} shows a setting that no file has, and may only have reloaded it",)
        if process.changed_since_start(running, now.path.agent, wall):
            return (
                f"{now.path} was changed after {title} was started: it may only have reloaded it",
            )
    return ()
