"""The users of a toolkit's directory, and toolkit directories that were left behind.

Invariant: reads only. A directory of programs stays while a pod runs by one of the programs, or
while a remaining file names one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from agent.cdi.specs import own_specs
from agent.errors import AgentError, Refused
from agent.host.files import Change
from agent.host.paths import HostPath, is_below
from agent.options.settings import Settings
from agent.plan import pod_guard
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
    """A node after a change: the present node, the changes, and all its configuration files after
    the changes."""

    node: ConfiguredRuntime
    changes: tuple[Change, ...]
    files: Files


def refusal(
    settings: Settings, changed: ChangedNode, names: tuple[str, ...], left: tuple[str, ...] = ()
) -> Refused | None:
    """The error if a toolkit's directory cannot be removed because it is in use, None if it can.
    `names` are the host paths of the directory. `left` are programs in it that the removal leaves
    in place. Raises Refused or Unreachable."""
    node = changed.node
    if used := pod_guard.toolkit_refusal(node, names):
        return used
    spec_dirs = find.spec_directories(node.runtime)
    if (spec := own_specs.foreign_spec_with(settings, node.host, spec_dirs, names)) is not None:
        of_plugin = (
            " when no device plugin runs here: the plugin writes the file when it starts, and "
            "leaves it behind"
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
                    f"runs {path}; remove that handler, or leave the toolkit in place"
                )
    return None


@dataclass(frozen=True)
class MovedToolkit:
    """A directory in which we installed the toolkit under another --toolkit-install-dir.
    `needed_by` is the reason why it has to stay, None if it can be removed."""

    directory: HostPath
    needed_by: str | None

    @property
    def warning(self) -> str:
        """The warning for a plan."""
        if self.needed_by is None:
            return f"the toolkit in {self.directory} is removed: nothing needs it any more"
        return (
            f"the toolkit in {self.directory} is left from another --toolkit-install-dir "
            f"({self.needed_by}); the first `apply` after nothing needs it removes it"
        )


def moved_toolkits(
    settings: Settings, changed: ChangedNode, memory: Memory, current: HostPath
) -> tuple[MovedToolkit, ...]:
    """Our toolkit directories other than `current`: those in the memory, and those of programs that
    present handlers and hooks name."""
    moved = {}
    for name in (*memory.moved, *_program_directories(changed.node)):
        try:
            path = changed.node.host.resolve(name)
            if path.host != current.host and tree.read_list(path.agent) is not None:
                moved[path.host] = path
        except Refused:
            continue
    return tuple(
        MovedToolkit(path, reason_to_keep(settings, changed, name))
        for name, path in sorted(moved.items())
    )


def _program_directories(node: ConfiguredRuntime) -> Iterator[str]:
    effective = node.effective(node.files)
    programs = [path for name in effective.runtimes for path in programs_of(effective.table(name))]
    programs += [path for _, path in node.hook_programs({})]
    return (os.path.dirname(path) for path in dict.fromkeys(programs) if path.startswith("/"))


def reason_to_keep(settings: Settings, changed: ChangedNode, name: str) -> str | None:
    """The reason why the toolkit's directory at the host path `name` has to stay, None if nothing
    needs it."""
    try:
        install.require_trusted(changed.node.host, name, f"remove the toolkit in {name}")
        error: AgentError | None = refusal(settings, changed, (name,))
    except AgentError as unknown:
        error = unknown
    return error.message.partition(": ")[2] or error.message if error else None
