"""Files of ours that stay behind when another toolkit takes the node over.

Another toolkit writes its own handlers, and perhaps the file anew that imported ours. Then our CDI
specs and our programs lie there and nothing in the runtime's configuration runs them.

Invariant: reads only. Files are left over only where the configuration runs NVIDIA's programs, and
none of ours: without any, the node is one to be repaired.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.cdi.specs import own
from agent.host.paths import HostPath, is_below
from agent.plan import low_level
from agent.plan.context import Context
from agent.runtimes import kinds
from agent.runtimes import node as nodes
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.crio import merge
from agent.runtimes.desired import is_ours
from agent.runtimes.kinds import AnyNode
from agent.state.store import Memory
from agent.toml.edit import Data, get
from agent.toolkit import install


@dataclass(frozen=True, slots=True)
class LeftOver:
    """A file or a directory (host path) that nothing uses; `what` it is, and what removes it."""

    path: str
    what: str
    remedy: str

    def data(self) -> dict[str, str]:
        """For JSON."""
        return {"path": self.path, "what": self.what, "remedy": self.remedy}


def left_over(ctx: Context, node: AnyNode | None, memory: Memory) -> tuple[LeftOver, ...]:
    """Our specs and the directories of our toolkit that nothing uses any more; none where the
    configuration is not ours to change. Raises Refused."""
    current = install.installed(ctx)
    directories = (*current, *memory.moved)
    if node is None or not memory.files or not directories:
        return ()
    programs = [path for path in _programs(ctx, node) if path.startswith("/")]
    if not programs or any(is_below(path, *directories) for path in programs):
        return ()
    found = [(path.host, "CDI spec") for path in _specs(ctx, node)]
    found += [(path, "toolkit") for path in (*current[:1], *memory.moved)]
    remedy = _remedy(node, memory)
    return tuple(LeftOver(path, what, remedy) for path, what in found)


def _specs(ctx: Context, node: AnyNode) -> tuple[HostPath, ...]:
    return own.ours(ctx, nodes.spec_directories(node.runtime, ctx.host))


def _programs(ctx: Context, node: AnyNode) -> Iterator[str]:
    """NVIDIA's programs that the configuration runs, by handlers and hooks."""
    tables = kinds.effective(node, node.files).runtimes
    for name, table in tables.items():
        if is_ours(name, table):
            yield from low_level.executables(table)
    yield from (path for _, path in kinds.hook_programs(node, ctx.host, {}))


def _remedy(node: AnyNode, memory: Memory) -> str:
    """What removes all of it. A revert takes NVIDIA's handlers out of every file that we wrote to,
    the other toolkit's included."""
    theirs = next((f for f in node.files if f.path.host in memory.files and _has_handler(f)), None)
    if theirs is None:
        return "toolkit-agent revert --keep-edits --toolkit"
    return (
        f"remove it by hand: revert --keep-edits would take the handlers of NVIDIA out of "
        f"{theirs.path} too, which are another toolkit's by now"
    )


def _has_handler(file: ConfigFile) -> bool:
    """Does a file define a handler of NVIDIA's?"""
    plugins: Data = file.data.get("plugins", {})
    tables = [get(section, ("containerd", "runtimes")) for section in plugins.values()]
    tables.append(get(file.data, merge.RUNTIMES))
    return any(is_ours(name, table) for found in tables if found for name, table in found.items())
