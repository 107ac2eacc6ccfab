"""A CRI-O that shows what it has only reloaded.

On SIGHUP CRI-O shows new handlers at once, in its Status and in its configuration, and pods still
get the old ones, in every version (observed on 1.37, read in 1.24 to 1.36). What it shows counts
for nothing where the file that says it may be younger than the process.

Invariant: reads only, but for `remember`. A process that we have seen proven, or that was started
after our last word on the file, is believed; so is one where nothing can be told. No doubt comes
back after a restart of ours, whatever the clocks say.
"""

from __future__ import annotations

from dataclasses import replace

from agent.cri import process
from agent.errors import Unreachable
from agent.plan.context import Context, tidy
from agent.runtimes import registry
from agent.runtimes.base import ConfiguredRuntime, Edits, Endpoint
from agent.runtimes.key_ownership import is_proven
from agent.state.store import Memory


def gaps(ctx: Context, node: ConfiguredRuntime, edits: Edits, memory: Memory) -> tuple[str, ...]:
    """What makes a restart necessary although all that is shown is right."""
    running, keys = node.runtime.process, node.reload_keys(edits.wanted)
    if not keys or running is None or memory.proven == (ctx.boot_id, *running.identity):
        return ()
    title = node.adapter.title
    for key in keys:
        now, then = node.owner(node.files, key), node.owner(edits.files, key)
        if then is None or is_proven(memory, then):
            continue
        if now is None:
            return (f"{title} shows what no file says, and may only have reloaded it",)
        if process.changed_since_start(running, now.path.agent, ctx.wall):
            return (
                f"{now.path} was changed after {title} was started: it may only have reloaded it",
            )
    return ()


def remember(ctx: Context, endpoint: Endpoint) -> None:
    """The process that was proven just now is believed from here on."""
    if not registry.adapter(endpoint.kind).shows_reloaded:
        return
    try:
        identity = ctx.identity(endpoint)
    except Unreachable:
        return
    if identity is not None:
        proven = (ctx.boot_id, *identity)
        tidy(ctx, lambda: ctx.store.remember(replace(ctx.store.memory(), proven=proven)))
