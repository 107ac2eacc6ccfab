"""CDI specs that keep containerd from starting again, although its configuration is right.

Invariant: reads only. containerd is not restarted while it would read such a spec, because from
then on it would crash at every start, with the old files too.
"""

from __future__ import annotations

import os

from agent.cdi.specs import crashes, spec_files
from agent.decide import DEFAULT_DIRS
from agent.errors import AgentError
from agent.host.paths import HostPath, HostRoot
from agent.runtimes.base import RestartHazard
from agent.runtimes.config_file import Files
from agent.runtimes.containerd import merge
from agent.runtimes.containerd.generations import Generation


def first_deadly(host: HostRoot, gen: Generation, files: Files) -> RestartHazard | None:
    """The first CDI spec that would make a containerd with these configuration files crash or wait
    for ever, None if there is none."""
    effective = merge.effective(gen, files)
    if effective.enable_cdi is not True:
        return None
    dirs = effective.section.get("cdi_spec_dirs")
    for name in dirs if isinstance(dirs, list) else DEFAULT_DIRS:
        name = os.path.normpath(str(name))
        try:
            above = host.resolve(os.path.dirname(name)).host
        except AgentError:
            continue
        agent = host.agent_path(os.path.join(above, os.path.basename(name)))
        # A directory that is a link itself is not read (observed), links above it are followed.
        if os.path.islink(agent):
            continue
        if hazard := _first_in_directory(host, gen, HostPath(agent, name)):
            return hazard
    return None


def _first_in_directory(
    host: HostRoot, gen: Generation, directory: HostPath
) -> RestartHazard | None:
    for path in spec_files.pipes(host, directory):
        why = "is a pipe, and containerd waits for what is in it"
        return RestartHazard(path, why, "remove it", "containerd")
    for path, data in spec_files.entries(host, directory) if gen.brittle_cdi else ():
        if what := crashes.crash_cause(data):
            is_kind = what.startswith("kind ")
            rule = "a vendor or class of one letter" if is_kind else "it"
            remedy = f"{'rename the kind' if is_kind else 'repair'} or remove the file"
            why = f"has {what}, and containerd before 2.4 crashes on {rule}"
            return RestartHazard(path, why, remedy, "containerd")
    return None
