"""Our files that stay behind when another toolkit takes the node over.

Another toolkit writes its own handlers, and may replace the file that imported ours. Then our CDI
specs and our programs are still there, but nothing in the runtime's configuration runs them.

Invariant: reads only. Files are left over only where the configuration runs NVIDIA's programs and
none of ours. Where it runs none at all, `apply` has to repair the node.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.host.paths import HostPath, HostRoot, is_below
from agent.options.settings import Settings
from agent.plan import own_specs
from agent.runtimes import find
from agent.runtimes.base import ConfiguredRuntime
from agent.runtimes.desired_state import is_ours, programs_of
from agent.state.store import Memory
from agent.toolkit import install

_REMEDY = "toolkit-agent revert --keep-edits --toolkit"


@dataclass(frozen=True)
class LeftOver:
    """A file or a directory (host path) that nothing uses, its kind in words, and the command that
    removes it."""

    path: str
    what: str
    remedy: str


def left_over(
    settings: Settings, host: HostRoot, node: ConfiguredRuntime | None, memory: Memory
) -> tuple[LeftOver, ...]:
    """Our specs and the directories of our toolkit that nothing uses any more. `node` is None where
    the options forbid a change of the configuration; then there are none. Raises Refused."""
    current = install.installed_paths(settings, host)
    directories = (*current, *memory.moved)
    if node is None or not memory.files or not directories:
        return ()
    programs = [path for path in _programs(node) if path.startswith("/")]
    if not programs or any(is_below(path, *directories) for path in programs):
        return ()
    found = [(path.host, "CDI spec") for path in _specs(settings, host, node)]
    found += [(path, "toolkit") for path in (*current[:1], *memory.moved)]
    return tuple(LeftOver(path, what, _REMEDY) for path, what in found)


def _specs(settings: Settings, host: HostRoot, node: ConfiguredRuntime) -> tuple[HostPath, ...]:
    spec_dirs = find.spec_directories(node.runtime)
    return own_specs.written_by_us(settings, host, spec_dirs)


def _programs(node: ConfiguredRuntime) -> Iterator[str]:
    """NVIDIA's programs that the configuration runs, by handlers and hooks."""
    tables = node.effective(node.files).runtimes
    for name, table in tables.items():
        if is_ours(name, table):
            yield from programs_of(table)
    yield from (path for _, path in node.hook_programs({}))
