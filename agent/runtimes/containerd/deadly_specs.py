"""CDI specs with which containerd does not start again, although its configuration is right.

Invariant: reads only. No restart is made on files with which this containerd would read a CDI spec
that makes it crash. It would crash at every start from then on, with the old files too.
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


def _crash(path: HostPath, what: str) -> RestartHazard:
    kind = what.startswith("kind ")
    rule = "a vendor or class of one letter" if kind else "it"
    remedy = "rename the kind or remove the file" if kind else "repair or remove the file"
    return RestartHazard(
        path, f"has {what}, and containerd before 2.4 crashes on {rule}", remedy, "containerd"
    )


def deadly(host: HostRoot, gen: Generation, files: Files) -> RestartHazard | None:
    """The first CDI spec that would make a containerd with these files crash or wait for ever, None
    if there is none."""
    effective = merge.effective(gen, files)
    if effective.enable_cdi is not True:
        return None
    dirs = effective.section.get("cdi_spec_dirs")
    for name in dirs if isinstance(dirs, list) else DEFAULT_DIRS:
        directory = _directory(host, os.path.normpath(str(name)))
        if directory is None:
            continue
        for path in spec_files.pipes(host, directory):
            return RestartHazard(
                path, "is a pipe, and containerd waits for what is in it", "remove it", "containerd"
            )
        for path, data in spec_files.entries(host, directory) if gen.brittle_cdi else ():
            if what := crashes.crash(data):
                return _crash(path, what)
    return None


def _directory(host: HostRoot, name: str) -> HostPath | None:
    """A spec directory, under its own name. One that is a link itself is not read (observed),
    links above it are followed."""
    try:
        above = host.resolve(os.path.dirname(name))
    except AgentError:
        return None
    agent = host.agent_path(os.path.join(above.host, os.path.basename(name)))
    return None if os.path.islink(agent) else HostPath(agent, name)
