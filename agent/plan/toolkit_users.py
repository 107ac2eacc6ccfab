"""The users of a toolkit's directory, and toolkit directories that were left behind.

Invariant: reads only. A directory of programs stays as long as a pod runs by one of them, or as
long as a remaining file names one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from agent.errors import AgentError, Refused
from agent.host.files import Change
from agent.host.paths import HostPath, HostRoot, is_below
from agent.options.settings import Settings
from agent.plan import own_specs, pod_guard
from agent.runtimes import find
from agent.runtimes.base import ConfiguredRuntime
from agent.runtimes.config_file import Files
from agent.runtimes.desired_state import programs_of
from agent.state.store import Memory
from agent.toolkit import install, tree

# A spec of NVIDIA's device plugin: k8s.device-plugin.nvidia.com-gpu.json
_PLUGIN = "k8s.device-plugin."


@dataclass(frozen=True)
class ChangedNode:
    """A node after a change: the changes, and its whole configuration then."""

    node: ConfiguredRuntime
    changes: tuple[Change, ...]
    files: Files


def refusal(
    settings: Settings, host: HostRoot, changed: ChangedNode, names: tuple[str, ...],
    left: tuple[str, ...] = (),
) -> Refused | None:  # fmt: skip
    """The refusal to remove a directory (`names` are its host paths), None if it can be removed.
    `left` are programs that the removal leaves in place. Raises Refused or Unreachable."""
    node = changed.node
    if used := pod_guard.toolkit_refusal(host, node, names):
        return used
    spec_dirs = find.spec_directories(node.runtime)
    if (spec := own_specs.foreign_spec_with(settings, host, spec_dirs, names)) is not None:
        of_plugin = (
            " once no device plugin runs here: it is the plugin's, which writes it when it starts "
            "and leaves it behind"
        )
        return Refused(
            f"cannot remove the toolkit: {spec} has hooks in {names[0]}, without which no "
            "container with its devices would start; remove that file first"
            + (of_plugin if spec.name.startswith(_PLUGIN) else "")
        )

    def is_removed(path: str) -> bool:
        return is_below(path, *names) and path not in left

    overlay = {item.path.host: item.after for item in changed.changes}
    for file, path in node.hook_programs(overlay):
        if is_removed(path):
            return Refused(
                f"cannot remove the toolkit: the OCI hook {file} runs {path}, without which no "
                "container would start; remove that file first"
            )
    effective = node.effective(changed.files)
    for handler in effective.runtimes:
        for path in programs_of(effective.table(handler)):
            if is_removed(path):
                return Refused(
                    f"cannot remove the toolkit: handler {handler} of the restored configuration "
                    f"runs {path}; take it out, or leave the toolkit where it is"
                )
    return None


@dataclass(frozen=True)
class MovedToolkit:
    """A directory in which we installed the toolkit under other options. `needed_by` is the reason
    why it has to stay, None if it can be removed."""

    directory: HostPath
    needed_by: str | None

    @property
    def warning(self) -> str:
        """The warning for a plan."""
        if self.needed_by is None:
            return f"the toolkit in {self.directory} is removed: nothing needs it any more"
        return (
            f"the toolkit in {self.directory} is left from another --toolkit-install-dir "
            f"({self.needed_by}); it goes with an apply once nothing needs it"
        )


def moved_toolkits(
    settings: Settings, host: HostRoot, changed: ChangedNode, memory: Memory, current: HostPath
) -> tuple[MovedToolkit, ...]:
    """Our toolkit directories other than the current one: those that are remembered, and those of
    programs that handlers and hooks name now."""
    found = {}
    for name in (*memory.moved, *_program_directories(changed.node)):
        try:
            path = host.resolve(name)
            if path.host != current.host and tree.read_list(path.agent) is not None:
                found[path.host] = path
        except Refused:
            continue
    return tuple(
        MovedToolkit(path, why_kept(settings, host, changed, name))
        for name, path in sorted(found.items())
    )


def _program_directories(node: ConfiguredRuntime) -> Iterator[str]:
    effective = node.effective(node.files)
    programs = [path for name in effective.runtimes for path in programs_of(effective.table(name))]
    programs += [path for _, path in node.hook_programs({})]
    return (os.path.dirname(path) for path in dict.fromkeys(programs) if path.startswith("/"))


def why_kept(settings: Settings, host: HostRoot, changed: ChangedNode, name: str) -> str | None:
    """Why a directory (its host path) stays, None if nothing needs it."""
    try:
        install.require_trusted(host, name, f"remove the toolkit in {name}")
        error: AgentError | None = refusal(settings, host, changed, (name,))
    except AgentError as unknown:
        error = unknown
    return error.message.partition(": ")[2] or error.message if error else None
