"""What the runtime's files say, and what they name.

Invariant: reads only.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import replace

from agent.decide import CDI_PREFIX, NVIDIA_PREFIX
from agent.doctor.facts import (
    MISSING,
    ConfigFacts,
    DefectFacts,
    HandlerFacts,
    NotSeen,
    ToolkitFacts,
)
from agent.errors import AgentError, Refused, reason
from agent.host import files, writable
from agent.host.paths import HostRoot
from agent.runtimes import low_level
from agent.runtimes.base import ConfiguredRuntime
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.desired_state import (
    LINUX,
    Effective,
    is_nvidia,
    is_sandbox,
    leaves,
    programs_of,
)
from agent.toml import document
from agent.toml.document import Path, dotted, get
from agent.toolkit import programs
from agent.toolkit.config import CONFIG, config_of

_HOSTS_CONFIG = "/etc/nvidia-container-runtime/config.toml"
_DIRECTORIES = ("conf.d", "config.d")  # where tools put drop-ins that nothing loads
_LOW_LEVEL = ("runc", "crun")  # NVIDIA's default
# Keys of NVIDIA's config.toml that name a path of the host.
_HOST_PATHS = (
    ("nvidia-container-cli", "path"),
    ("nvidia-container-cli", "root"),
    ("nvidia-container-cli", "ldconfig"),
    ("nvidia-container-runtime-hook", "path"),
    ("nvidia-ctk", "path"),
)
_SCRIPT = 1 << 16  # bytes of a wrapper
_SHELLS = ("/bin/sh", "/usr/bin/env")  # every host with a shell has them
_WRAPPED = re.compile(rb"/[^\s\"']+\.real\b")  # what a wrapper runs
_MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine of an ELF file
_PROGRAM_KEYS = ("binaryname", "runtime_path")
_UNNAMED = (("default_runtime",), ("untrusted_workload_runtime",))  # handlers by another name
_SWITCHES = ("enable_cdi", "default_runtime_name", "default_runtime")


def config(
    host: HostRoot,
    node: ConfiguredRuntime,
    unloaded: ConfigFile | None = None,
    reloaded: str = "",
    dormant: str = "",
) -> ConfigFacts:
    """The configuration. `unloaded` is the first file that the runtime has not loaded; `reloaded`
    and `dormant` are those of ConfigFacts."""
    effective = node.effective(node.files)
    hazard = node.restart_hazard(node.files)
    prefixes = (CDI_PREFIX, NVIDIA_PREFIX)
    unloaded_files = tuple(_strays(host, node))
    return ConfigFacts(
        root=node.root.name,
        files=tuple(item.path.host for item in node.files if item.state is not None),
        drop_in=node.drop_in.host,
        overrides=tuple(_overrides(node)),
        lost=tuple(_lost(node, effective)),
        strays=tuple((path, nvidia) for path, usual, nvidia in unloaded_files if usual),
        aside=tuple(path for path, usual, nvidia in unloaded_files if nvidia and not usual),
        rendered=tuple(node.rendered()),
        default=effective.default,
        handlers={name: _handler(host, node, effective, name) for name in effective.runtimes},
        defects=tuple(DefectFacts(d.text, d.remedy, d.deadly, d.harmful) for d in node.defects()),
        unloaded=unloaded.path.host if unloaded else "",
        reloaded=reloaded,
        dormant=dormant,
        hazard=(hazard.path.host, hazard.later) if hazard else None,
        locked=_locked(node.root),
        enable_cdi=effective.enable_cdi,
        passes={prefix: node.passes_annotation(effective, prefix) for prefix in prefixes},
        hooks=tuple(
            (path.host, program, programs.runs(host, program) is not None)
            for path, program in node.hook_programs({})
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
    named = tuple(programs_of(table))
    if not named and table.get("runtime_type") == LINUX and effective.linux_runtime:
        named = (effective.linux_runtime,)
    return HandlerFacts(
        name,
        nvidia=is_nvidia(effective, name),
        sandbox=is_sandbox(table),
        programs=named,
        missing=tuple(
            (path, why) for path in _with_wrapped(host, named) if (why := _why_not_run(host, path))
        ),
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
            if found and found.data.startswith(b"#!"):
                yield from (os.fsdecode(name) for name in _WRAPPED.findall(found.data))


def _why_not_run(host: HostRoot, name: str) -> str:
    """What is there instead of a program that can be run; "" for such a one. What we may not look
    at counts as there, and so does a name alone, which the runtime looks up in its own PATH, but
    for NVIDIA's."""
    if "/" not in name:
        places = (f"{above}/{name}" for above in programs.DIRECTORIES)
        lacks = programs.is_nvidia(name) and not any(programs.runs(host, p) for p in places)
        return MISSING if lacks else ""
    try:
        found = os.stat(host.resolve(name).agent)
    except PermissionError:
        return ""
    except (OSError, Refused):
        link = os.path.islink(host.agent_path(name))
        return "a dangling link" if link else MISSING
    if not stat.S_ISREG(found.st_mode):
        return "no file"
    return _why_not_loaded(host, name) if found.st_mode & 0o111 else "a file that is not executable"


def _why_not_loaded(host: HostRoot, name: str) -> str:
    """What a program is that the kernel does not start."""
    try:
        with open(host.resolve(name).agent, "rb") as file:
            head = file.read(256)
    except (OSError, Refused):
        return ""
    if head.startswith(b"#!"):
        words = os.fsdecode(head[2:].partition(b"\n")[0]).split()
        lacks = words and words[0] not in _SHELLS and not _exists(host, words[0])
        return f"a script without its interpreter {words[0]}" if lacks else ""
    machine = int.from_bytes(head[18:20], "little")
    other = head[:4] == b"\x7fELF" and machine != _MACHINES.get(os.uname().machine, machine)
    return "a program for another processor" if other else ""


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


def _lost(node: ConfiguredRuntime, effective: Effective) -> Iterator[tuple[str, str, str]]:
    """Handlers in loaded files that run NVIDIA's runtime, and that the runtime does not have:
    their table belongs to a section of another version or name, or a later file hides it."""
    for file in node.files:
        for path, value in leaves(file.data):
            if not isinstance(value, str) or not programs.is_nvidia(value):
                continue
            in_options = path[-2:-1] == ("options",)
            above = path[:-2] if in_options else path[:-1]
            keys = (*_PROGRAM_KEYS, "runtime") if in_options else _PROGRAM_KEYS
            if path[-1].lower() not in keys or above[-1:] in _UNNAMED or not above:
                continue
            if value not in programs_of(effective.table(above[-1])):
                yield above[-1], file.path.host, dotted(above)


def _strays(host: HostRoot, node: ConfiguredRuntime) -> Iterator[tuple[str, bool, bool]]:
    """Files that the runtime does not load, each with whether it has the name and the place of a
    drop-in, and whether it speaks of NVIDIA's runtime."""
    loaded = {file.path.host for file in node.files}
    beside, ending = os.path.split(node.drop_in.host)[0], os.path.splitext(node.drop_in.host)[1]
    root = os.path.dirname(node.root.path.host)
    for directory in dict.fromkeys((beside, *(f"{root}/{name}" for name in _DIRECTORIES), root)):
        try:
            above = host.resolve(directory)
            names = files.names(above.agent)
        except (AgentError, OSError, ValueError):
            continue
        for path in (above.child(name) for name in sorted(names)):
            if path.host not in loaded and os.path.isfile(path.agent):
                usual = directory != root and path.host.endswith(ending)
                yield path.host, usual, _names_nvidias(path.agent)


def _names_nvidias(path: str) -> bool:
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
        for path in programs_of(table)
    ]
    if not named:
        raise NotSeen("no handler runs NVIDIA's runtime")
    beside = [os.path.join(os.path.dirname(path), CONFIG) for path in named]
    for name in (*(path for path in beside if path.startswith("/")), _HOSTS_CONFIG):
        if found := files.read(host.resolve(name).agent, name):
            labelled = all(_has_label(host, path) for path in named if path.startswith("/"))
            return replace(_settings(host, name, found.data), labelled=labelled)
    raise NotSeen("there is no config.toml of NVIDIA's toolkit")


def _settings(host: HostRoot, name: str, text: bytes) -> ToolkitFacts:
    """What a config.toml says."""
    try:
        data = document.parse(text, name)
    except (Refused, ValueError, RecursionError) as error:
        return ToolkitFacts(name, broken=error.message if isinstance(error, Refused) else "no TOML")
    found = config_of(data)
    calls = found.runtimes or _LOW_LEVEL
    others = [path for name in calls if (path := low_level.first(host, (name,)))]
    paths = [(".".join(key), str(get(data, key, "")).removeprefix("@")) for key in _HOST_PATHS]
    return ToolkitFacts(
        name, found.prefixes, found.variables, calls,
        not all(map(programs.is_nvidia, others)),
        mode=str(get(data, ("nvidia-container-runtime", "mode"), "auto") or "auto"),
        no_cgroups=get(data, ("nvidia-container-cli", "no-cgroups"), False) is True,
        absent=tuple(
            (key, path) for key, path in paths
            if path.startswith("/") and not _exists(host, path)
        ),
    )  # fmt: skip


def _exists(host: HostRoot, name: str) -> bool:
    """Is something there? What we may not look at counts as there."""
    try:
        os.stat(host.resolve(name).agent)
    except PermissionError:
        return True
    except (OSError, Refused):
        return False
    return True


def _has_label(host: HostRoot, path: str) -> bool:
    """Has a program a label of its own? One that is not there lacks none."""
    try:
        label = os.getxattr(host.resolve(path).agent, "security.selinux")
    except FileNotFoundError:
        return True
    except (OSError, Refused):
        return False
    return b"unlabeled_t" not in label
