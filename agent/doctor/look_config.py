"""What the runtime's files say, and what they name.

Invariant: reads only.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from agent.decide import CDI_PREFIX, NVIDIA_PREFIX
from agent.doctor.facts import ConfigFacts, DefectFacts, HandlerFacts, NotSeen, ToolkitFacts
from agent.errors import AgentError, Refused, reason
from agent.host import files, writable
from agent.host.paths import HostRoot
from agent.runtimes import low_level
from agent.runtimes.base import ConfiguredRuntime, Effective
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.desired_state import LINUX, is_nvidia, is_sandbox, leaves
from agent.toml.edit import Path, dotted
from agent.toolkit import programs, tree

_HOSTS_CONFIG = "/etc/nvidia-container-runtime/config.toml"
_DIRECTORIES = ("conf.d", "config.d")  # where tools put drop-ins that nothing loads
_LOW_LEVEL = ("runc", "crun")  # NVIDIA's default
_SCRIPT = 1 << 16  # bytes of a wrapper
_SWITCHES = ("enable_cdi", "default_runtime_name", "default_runtime")


def config(
    host: HostRoot, node: ConfiguredRuntime, unloaded: ConfigFile | None, dormant: str
) -> ConfigFacts:
    """The configuration. `unloaded` is the first file that the runtime has not loaded, and
    `dormant` is that of ConfigFacts."""
    effective = node.effective(node.files)
    hazard = node.restart_hazard(host, node.files)
    prefixes = (CDI_PREFIX, NVIDIA_PREFIX)
    return ConfigFacts(
        root=node.root.name,
        files=tuple(item.path.host for item in node.files if item.state is not None),
        drop_in=node.drop_in.host,
        overrides=tuple(_overrides(node)),
        strays=tuple(_strays(host, node)),
        rendered=tuple((item.path, item.program, item.source) for item in node.rendered()),
        default=effective.default,
        handlers={name: _handler(host, node, effective, name) for name in effective.runtimes},
        defects=tuple(
            DefectFacts(d.text, d.remedy, d.deadly, d.harmful) for d in node.defects(host)
        ),
        unloaded=unloaded.path.host if unloaded else "",
        dormant=dormant,
        hazard=(hazard.path.host, hazard.later) if hazard else None,
        locked=_locked(node.root),
        enable_cdi=effective.enable_cdi,
        passes={prefix: node.passes_annotation(effective, prefix) for prefix in prefixes},
        hooks=tuple(
            (path.host, program, programs.runs(host, program) is not None)
            for path, program in node.hook_programs(host, {})
        ),
    )


def _locked(root: ConfigFile) -> str:
    """Why the root file cannot be written by root."""
    if os.geteuid() != 0:
        return ""
    try:
        writable.require(writable.Need(root.path.agent))
    except OSError as error:
        return reason(error)
    return ""


def _handler(
    host: HostRoot, node: ConfiguredRuntime, effective: Effective, name: str
) -> HandlerFacts:
    table = effective.runtimes[name]
    named = low_level.executables(table)
    if not named and table.get("runtime_type") == LINUX and effective.linux_runtime:
        named = (effective.linux_runtime,)
    return HandlerFacts(
        name,
        nvidia=is_nvidia(effective, name),
        sandbox=is_sandbox(table),
        programs=named,
        missing=tuple(path for path in _with_wrapped(host, named) if _is_missing(host, path)),
        cgroups=node.cgroup_drivers().get(name, ""),
    )


def _with_wrapped(host: HostRoot, named: tuple[str, ...]) -> Iterator[str]:
    """Programs, and those that they are wrappers of, as NVIDIA's installer and this agent make
    them: `NAME` is a script that runs `NAME.real`."""
    for path in named:
        yield path
        if not path.startswith("/"):
            continue
        with contextlib.suppress(AgentError):
            found = files.read(host.resolve(path).agent, path, _SCRIPT)
            if found and found.data.startswith(b"#!") and f"{path}.real".encode() in found.data:
                yield f"{path}.real"


def _is_missing(host: HostRoot, name: str) -> bool:
    """Is there no such program? What we may not look at counts as there, and so does a name alone,
    which the runtime looks up in its own PATH, but for NVIDIA's."""
    if "/" not in name:
        places = (f"{above}/{name}" for above in programs.DIRECTORIES)
        return programs.is_nvidia(name) and not any(programs.runs(host, p) for p in places)
    try:
        found = os.stat(host.resolve(name).agent)
    except PermissionError:
        return False
    except (OSError, Refused):
        return True
    return not (stat.S_ISREG(found.st_mode) and found.st_mode & 0o111)


def _overrides(node: ConfiguredRuntime) -> Iterator[tuple[str, str, str]]:
    """Keys of NVIDIA's in our drop-in to which a later file gives another value."""
    places = [file.path.host for file in node.files]
    if node.drop_in.host not in places:
        return
    number = places.index(node.drop_in.host)
    ours = node.files[number]
    above = tuple(node.own_keys(ours.data, switch=True))
    for path, value in leaves(ours.data):
        if not any(path[: len(key)] == key for key in above) and path[-1] not in _SWITCHES:
            continue
        for later in node.files[number + 1 :]:
            for other, said in leaves(later.data):
                if _tail(other) == _tail(path) and said != value:
                    yield dotted(_tail(path)), ours.path.host, later.path.host


def _tail(path: Path) -> Path:
    """The key without the section, which has another name in each version of the file."""
    return path[2:] if path[0] == "plugins" else path


def _strays(host: HostRoot, node: ConfiguredRuntime) -> Iterator[tuple[str, bool]]:
    """Files that look like drop-ins and are not loaded, and whether they speak of NVIDIA."""
    loaded = {file.path.host for file in node.files}
    beside, ending = os.path.split(node.drop_in.host)[0], os.path.splitext(node.drop_in.host)[1]
    root = os.path.dirname(node.root.path.host)
    for directory in dict.fromkeys((beside, *(f"{root}/{name}" for name in _DIRECTORIES))):
        try:
            above = host.resolve(directory)
            names = files.names(above.agent)
        except (AgentError, OSError, ValueError):
            continue
        for path in (above.child(name) for name in sorted(names) if name.endswith(ending)):
            if path.host not in loaded and os.path.isfile(path.agent):
                yield path.host, _speaks_of_nvidia(path.agent)


def _speaks_of_nvidia(path: str) -> bool:
    try:
        found = files.read(path)
    except Refused:
        return False
    return found is not None and b"nvidia" in found.data


def toolkit(host: HostRoot, node: ConfiguredRuntime) -> ToolkitFacts:
    """The settings of the runtime that handlers of NVIDIA's call. Raises NotSeen."""
    effective = node.effective(node.files)
    named = [
        path
        for name, table in effective.runtimes.items()
        if is_nvidia(effective, name)
        for path in low_level.executables(table)
    ]
    if not named:
        raise NotSeen("no handler runs NVIDIA's runtime")
    beside = [os.path.join(os.path.dirname(path), tree.CONFIG) for path in named]
    for name in (*(path for path in beside if path.startswith("/")), _HOSTS_CONFIG):
        if found := tree.read_config_file(host.resolve(name).agent):
            labelled = all(_has_label(host, path) for path in named if path.startswith("/"))
            calls = found.runtimes or _LOW_LEVEL
            there = low_level.first(host, calls) is not None
            return ToolkitFacts(name, found.prefixes, found.variables, calls, there, labelled)
    raise NotSeen("there is no config.toml of NVIDIA's toolkit")


def _has_label(host: HostRoot, path: str) -> bool:
    """Has a program a label of its own? One that is not there lacks none."""
    try:
        label = os.getxattr(host.resolve(path).agent, "security.selinux")
    except FileNotFoundError:
        return True
    except (OSError, Refused):
        return False
    return b"unlabeled_t" not in label
