"""What still needs the programs of a toolkit's directory, and directories that were left behind.

Invariant: reads only. A directory of programs stays as long as a pod runs by one of them, or a file
that stays names one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from agent.errors import AgentError, Refused
from agent.host.files import Change
from agent.host.paths import HostPath, is_below
from agent.plan import own_specs, pod_guard
from agent.plan.context import Context
from agent.runtimes import find, low_level
from agent.runtimes.base import ConfiguredRuntime, Files
from agent.state.store import Memory
from agent.toolkit import install, tree

# A spec of NVIDIA's device plugin: k8s.device-plugin.nvidia.com-gpu.json
_PLUGIN = "k8s.device-plugin."


@dataclass(frozen=True, slots=True)
class After:
    """A node as it will be: what changes, and all of its configuration."""

    node: ConfiguredRuntime
    changes: tuple[Change, ...]
    files: Files


def refusal(
    ctx: Context, after: After, names: tuple[str, ...], left: tuple[str, ...] = ()
) -> Refused | None:
    """Why a directory, by its host paths, cannot be removed; `left` are programs that will be there
    all the same. Raises Refused or Unreachable."""
    node = after.node
    if used := pod_guard.toolkit_refusal(ctx.host, node, names):
        return used
    looked = find.spec_directories(node.runtime)
    if (spec := own_specs.naming(ctx, looked, names)) is not None:
        whose = ""
        if os.path.basename(spec.host).startswith(_PLUGIN):
            whose = (
                " once no device plugin runs here: it is the plugin's, which writes it when it "
                "starts and leaves it behind"
            )
        return Refused(
            f"cannot remove the toolkit: {spec} has hooks in {names[0]}, without which no "
            f"container with its devices would start; remove that file first{whose}"
        )

    def goes(path: str) -> bool:
        return is_below(path, *names) and path not in left

    overlay = {item.path.host: item.after for item in after.changes}
    for file, path in node.hook_programs(ctx.host, overlay):
        if goes(path):
            return Refused(
                f"cannot remove the toolkit: the OCI hook {file} runs {path}, without which no "
                "container would start; remove that file first"
            )
    cri = node.effective(after.files)
    for handler in cri.runtimes:
        for path in low_level.executables(cri.table(handler)):
            if goes(path):
                return Refused(
                    f"cannot remove the toolkit: handler {handler} of the restored configuration "
                    f"runs {path}; take it out, or leave the toolkit where it is"
                )
    return None


@dataclass(frozen=True, slots=True)
class Moved:
    """A directory in which we installed the toolkit under other options; `why` it stays, if it
    has to."""

    directory: HostPath
    why: str | None

    @property
    def warning(self) -> str:
        """For a plan."""
        if self.why is None:
            return f"the toolkit in {self.directory} is removed: nothing needs it any more"
        return (
            f"the toolkit in {self.directory} is left from another --toolkit-install-dir "
            f"({self.why}); it goes with an apply once nothing needs it"
        )


def moved(ctx: Context, after: After, memory: Memory, current: HostPath) -> tuple[Moved, ...]:
    """Directories of ours that are not the current one: those that are remembered, and those that
    handlers and hooks name by now."""
    found = {}
    for host in (*memory.moved, *_named(ctx, after.node)):
        try:
            path = ctx.host.resolve(host)
            if path.host != current.host and tree.listed(path.agent) is not None:
                found[path.host] = path
        except Refused:
            continue
    return tuple(Moved(path, why_kept(ctx, after, host)) for host, path in sorted(found.items()))


def _named(ctx: Context, node: ConfiguredRuntime) -> Iterator[str]:
    cri = node.effective(node.files)
    programs = [path for name in cri.runtimes for path in low_level.executables(cri.table(name))]
    programs += [path for _, path in node.hook_programs(ctx.host, {})]
    return (os.path.dirname(path) for path in dict.fromkeys(programs) if path.startswith("/"))


def why_kept(ctx: Context, after: After, host: str) -> str | None:
    """Why a directory (its host path) stays; None where nothing needs it."""
    try:
        install.require(ctx.host, host, f"remove the toolkit in {host}")
        error: AgentError | None = refusal(ctx, after, (host,))
    except AgentError as unknown:
        error = unknown
    return error.message.partition(": ")[2] or error.message if error else None
