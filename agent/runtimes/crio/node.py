"""A CRI-O node: what the running process loads, and where what we write has to go.

Invariant: reads only. The process behind the socket says which files count, and which settings its
flags and its environment fix; an option that disagrees with it is refused where we would write by
it, and otherwise has no say.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

from agent.cri.process import Process
from agent.errors import Refused
from agent.host.paths import HostPath, HostRoot, is_below
from agent.options.settings import Settings
from agent.runtimes import node as nodes
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.containerd.deadly_specs import Deadly
from agent.runtimes.containerd.load import Overlay
from agent.runtimes.containerd.merge import Cri
from agent.runtimes.crio import command_line, merge
from agent.runtimes.crio import load as crio_files
from agent.runtimes.crio.merge import Overrides, Rules, Setting
from agent.runtimes.node import Runtime
from agent.runtimes.versions import parse_version
from agent.toml.edit import Data

_OURS = "99-nvidia.conf"


@dataclass(frozen=True, slots=True)
class CrioNode:
    """A CRI-O with its configuration. `files` starts with the root file, there or not; `directory`
    is the name of that with the drop-ins, empty where it reads none; `drop_in` is our file: the
    root file where there is no such directory. `hook` is the file of the OCI hook, `hooks_read`
    where the running process looks for hooks and `hooks_later` where the next one will; `overlay`
    are files that it is looked at with as they will be."""

    runtime: Runtime
    rules: Rules
    files: tuple[ConfigFile, ...]
    executable: str | None
    directory: str
    drop_in: HostPath
    hook: HostPath
    hooks_read: tuple[str, ...]
    hooks_later: tuple[str, ...]
    overlay: Overlay = field(default_factory=dict)

    @property
    def root(self) -> ConfigFile:
        """The root file."""
        return self.files[0]

    @property
    def overrides(self) -> Overrides:
        """The settings that the flags and the environment of the running process fix."""
        return self.rules.overrides

    def kept_in(self, host: HostRoot, setting: Setting) -> str:
        """Where a flag or a variable of the running process durably stands, for messages."""
        return command_line.kept_in(host, self.runtime.process, setting.source)

    def load(self, host: HostRoot, overlay: Overlay | None = None) -> tuple[ConfigFile, ...]:
        """The files as they are by now, or will be. Raises Refused."""
        known = {**self.overlay, **(overlay or {})}
        return crio_files.load(host, self.root.name, self.directory, known)

    def effective(self, files: tuple[ConfigFile, ...]) -> Cri:
        """What CRI-O makes of these files at its next start."""
        return merge.effective(self.rules, files)

    def by_files(self, files: tuple[ConfigFile, ...]) -> Cri:
        """The same if nothing fixed the default runtime: what the files say of it."""
        free = replace(self.overrides, default=None)
        return merge.effective(replace(self.rules, overrides=free), files)

    def deadly(self, host: HostRoot, files: tuple[ConfigFile, ...]) -> Deadly | None:
        """A default runtime of which there would be no handler."""
        cri, fixed = self.effective(files), self.overrides.default
        if cri.default in cri.runtimes:
            return None
        path, what = (merge.owner(files, merge.DEFAULT) or self.root).path, "default_runtime"
        if fixed:
            place, what = self.kept_in(host, fixed), fixed.source
            path = HostPath(host.agent_path(place), place) if place.startswith("/") else path
        why = (
            f"makes {cri.default} the default runtime by {what}, and there would be no such handler"
        )
        return Deadly(path, why, "take that back first", "CRI-O")


def shown(runtime: Runtime) -> Data | None:
    """What the running CRI-O says of its own settings."""
    return merge.shown(runtime.answer.config, runtime.answer.dump)


def look(
    settings: Settings, host: HostRoot, runtime: Runtime, overlay: Overlay | None = None
) -> CrioNode:
    """The node of a CRI-O that was found. Raises Refused."""
    version = parse_version(runtime.version)
    if version is None:
        raise Refused(f"cannot work with CRI-O {runtime.version!r}: it is no version number")
    root, directory = places(settings, host, runtime.process)
    overrides = command_line.overrides(runtime.process)
    files = crio_files.load(host, root, directory, overlay)
    said = shown(runtime)
    later = merge.hooks_dirs(files, overrides)
    read = (said or {}).get("hooks_dir")
    return CrioNode(
        runtime=runtime,
        rules=merge.rules(version, files, said, overrides),
        files=files,
        executable=nodes.executable(settings, host, runtime.process),
        directory=directory,
        drop_in=drop_in(settings, host, directory, files[0]),
        hook=hook_file(settings, host, (*(read or ()), *later)),
        hooks_read=tuple(map(str, read)) if isinstance(read, list) else later,
        hooks_later=later,
        overlay=overlay or {},
    )


def places(settings: Settings, host: HostRoot, running: Process | None) -> tuple[str, str]:
    """Host names of the root file and of the drop-in directory, as the process was started; empty
    for what it reads none of.

    `--config` counts only where no process can be seen and there is such a file: gpu-operator names
    one that CRI-O never reads, and we do not write to it.
    """
    if running is not None:
        overrides = command_line.overrides(running)
        root = overrides.config.value if overrides.config else crio_files.ROOT
        directory = overrides.directory.value if overrides.directory else crio_files.DIRECTORY
        return host.seen_by_host(root), host.seen_by_host(directory)
    asked = host.name(settings.config) if settings.config else None
    there = asked is not None and os.path.isfile(host.agent_path(asked))
    return (asked if asked and there else crio_files.ROOT), crio_files.DIRECTORY


def drop_in(settings: Settings, host: HostRoot, directory: str, root: ConfigFile) -> HostPath:
    """Our drop-in: as asked for, else 99-nvidia.conf; the root file where CRI-O reads no directory,
    whatever was asked for. Raises Refused where CRI-O sees no such file."""
    if not directory:
        return root.path
    if not settings.drop_in_config and not settings.drop_in_config_host_path:
        return host.resolve(os.path.join(directory, _OURS))
    found = nodes.given_drop_in(settings, host)
    real = host.resolve(directory)
    if found.host == real.host or not is_below(found.host, real.host):
        raise Refused(
            f"cannot use {found} as drop-in: the running CRI-O takes drop-ins from {directory}; "
            "give a file in there, or leave --drop-in-config out"
        )
    return found


def hook_file(settings: Settings, host: HostRoot, read: tuple[str, ...]) -> HostPath:
    """The file of the OCI hook: in the directory that was asked for, or where CRI-O looks if it
    does not look in the usual one."""
    name = host.name(settings.crio_hooks_dir)
    if settings.origins["crio_hooks_dir"] == "default" and read:
        wanted = host.resolve(name).host
        if wanted not in [host.resolve(os.path.normpath(item)).host for item in read]:
            name = os.path.normpath(read[-1])
    above = host.resolve(name)
    join = os.path.join
    file = settings.crio_hook_filename
    return HostPath(join(above.agent, file), join(above.host, file))
