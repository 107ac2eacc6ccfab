"""What of its files the running runtime has in force.

Somebody can have changed files after the runtime was started. A restart activates them. Where a
trial start shows what comes of that, they are no obstacle; where none can be made, nobody has seen
the runtime start on them. CRI-O also shows new handlers after a reload, although pods still get the
old ones: what it shows counts for nothing where the file that says it may be younger than the
process.

Invariant: reads only, but for `remember_proven`. A file is in force if it is older than the
process, if we wrote it and proved it, or if the runtime shows every setting of it. A process that
we have seen proven is believed; so is one where nothing can be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agent.cri import process
from agent.errors import Refused, Unreachable
from agent.plan.context import Context, best_effort
from agent.runtimes import registry
from agent.runtimes.base import ConfiguredRuntime, Edits, Endpoint
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.desired_state import leaves, same
from agent.runtimes.key_ownership import is_proven
from agent.state.store import Memory
from agent.toml.edit import Data, get

_MISSING = object()


def first_unloaded(ctx: Context, node: ConfiguredRuntime) -> ConfigFile | None:
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


def unproven_after_reload(
    ctx: Context, node: ConfiguredRuntime, edits: Edits, memory: Memory
) -> tuple[str, ...]:
    """What makes a restart necessary although all that is shown is right."""
    running, keys = node.runtime.process, node.reload_keys(edits.desired)
    if not keys or running is None or memory.proven == (ctx.boot_id, *running.identity):
        return ()
    title = node.adapter.title
    for key in keys:
        now, later = node.owner(node.files, key), node.owner(edits.files, key)
        if later is None or is_proven(memory, later):
            continue
        if now is None:
            return (f"{title} shows what no file says, and may only have reloaded it",)
        if process.changed_since_start(running, now.path.agent, ctx.wall):
            return (
                f"{now.path} was changed after {title} was started: it may only have reloaded it",
            )
    return ()


def remember_proven(ctx: Context, endpoint: Endpoint) -> None:
    """The process that was proven just now is believed from here on."""
    if not registry.adapter(endpoint.kind).shows_reloaded:
        return
    try:
        identity = ctx.identity(endpoint)
    except Unreachable:
        return
    if identity is not None:
        proven = (ctx.boot_id, *identity)
        best_effort(ctx.log, lambda: ctx.store.remember(replace(ctx.store.memory(), proven=proven)))
