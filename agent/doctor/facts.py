"""What one look at a node found, as plain data: what the checks judge.

Invariant: every part can be missing by itself. `Part.get` raises NotSeen with the reason then, so
that a check that needs it says so, and no other check suffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_Value = TypeVar("_Value")

MISSING = "nothing"  # why a program cannot be run that is not there


class NotSeen(Exception):
    """A part of the facts is missing; the message says why."""


@dataclass(frozen=True)
class Part(Generic[_Value]):
    """A part of the facts, or `why` it is missing."""

    value: _Value | None = None
    why: str = "it was not asked for"

    def get(self) -> _Value:
        """The part. Raises NotSeen."""
        if self.value is None:
            raise NotSeen(self.why)
        return self.value


@dataclass(frozen=True)
class RuntimeFacts:
    """The runtime that answers.

    `switch` is what it shows of `enableCDI` ("true", "false", "null", "absent", "unseen");
    `spec_dirs` is None where it does not show them. `next_version` is that of its executable, ""
    where it cannot be told; `gone`: that executable is not there. `process` is its pid, "" where it
    cannot be seen. `tells_cgroups`: does it tell a kubelet its cgroup driver?
    """

    title: str
    version: str
    socket: str
    ready: bool = True
    process: str = ""
    unit: str = ""
    executable: str = ""
    next_version: str = ""
    gone: bool = False
    default: str | None = None
    handlers: tuple[str, ...] = ()
    switch: str = "true"
    spec_dirs: tuple[str, ...] | None = None
    tells_cgroups: bool = False

    @property
    def native(self) -> bool | None:
        """Does it inject CDI devices itself? None where it does not say."""
        if self.switch in ("true", "null"):
            return True
        if self.spec_dirs is not None and self.switch in ("absent", "unseen"):
            return True
        return None if self.switch == "unseen" else False


@dataclass(frozen=True)
class Down:
    """Why no runtime can be asked: the error in words, the sockets that are there, the state of its
    unit, and the reason that the runtime gives where it is started on its files ("" where it
    starts, or cannot be tried)."""

    error: str
    sockets: tuple[str, ...] = ()
    unit: str = ""
    reason: str = ""
    denied: bool = False


@dataclass(frozen=True)
class HandlerFacts:
    """A handler of the files. `nvidia`: it runs NVIDIA's runtime; `missing` are programs that it
    names and that cannot be run, each with what is there instead; `cgroups` is "systemd",
    "cgroupfs" or "" where it is not told."""

    name: str
    nvidia: bool = False
    sandbox: bool = False
    programs: tuple[str, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    cgroups: str = ""


@dataclass(frozen=True)
class DefectFacts:
    """A defect of the files, as the runtime's adapter knows it."""

    text: str
    remedy: str
    deadly: bool = False
    harmful: bool = True


@dataclass(frozen=True)
class ConfigFacts:
    """The files that the runtime loads, in its order, and what they make together.

    `overrides` are keys of NVIDIA's that a later file sets to something else: key, file, later
    file. `lost` are handlers of NVIDIA's in tables that the runtime does not read: handler, file,
    table. `strays` are files in directories for drop-ins that nothing loads, each with whether it
    speaks of NVIDIA; `aside` are files of other names and places that do. `rendered` are files that
    a program writes anew: path, program, source. `unloaded` is a file that changed after the
    process was started, and of which it does not show all; `reloaded` is one that it has only
    reloaded; `dormant` is why the runtime, which runs, would not start on the files now. `hazard`
    is a file of which it would end at a start, and why. `locked` is why the root file cannot be
    written. `passes`: does a handler pass annotations with this prefix on? `hooks` are OCI hooks:
    file, program, whether the program is there.
    """

    root: str
    files: tuple[str, ...]
    drop_in: str
    overrides: tuple[tuple[str, str, str], ...] = ()
    lost: tuple[tuple[str, str, str], ...] = ()
    strays: tuple[tuple[str, bool], ...] = ()
    aside: tuple[str, ...] = ()
    rendered: tuple[tuple[str, str, str], ...] = ()
    default: str = "runc"
    handlers: Mapping[str, HandlerFacts] = field(default_factory=dict)
    defects: tuple[DefectFacts, ...] = ()
    unloaded: str = ""
    reloaded: str = ""
    dormant: str = ""
    hazard: tuple[str, str] | None = None
    locked: str = ""
    passes: Mapping[str, bool] = field(default_factory=dict)
    enable_cdi: bool | None = None
    hooks: tuple[tuple[str, str, bool], ...] = ()

    @property
    def nvidia_default(self) -> bool:
        """Is the default handler NVIDIA's?"""
        found = self.handlers.get(self.default)
        return found is not None and found.nvidia

    @property
    def nvidia_handlers(self) -> tuple[HandlerFacts, ...]:
        """The handlers that run NVIDIA's runtime."""
        return tuple(item for item in self.handlers.values() if item.nvidia)


@dataclass(frozen=True)
class SpecProblem:
    """A problem of a spec file or of a directory; an `error` costs containers their devices."""

    file: str
    writer: str
    text: str
    remedy: str
    where: str = ""
    error: bool = True


@dataclass(frozen=True)
class SpecFacts:
    """The CDI specs: directories that are read, problems, devices by state ("resolvable" etc.) with
    file and reason, directories with specs that nothing reads, and `misnamed` files, which are
    specs by their content and not by their names, and `open` files and directories, which other
    users can write."""

    directories: tuple[str, ...] = ()
    problems: tuple[SpecProblem, ...] = ()
    devices: tuple[tuple[str, str, str, str, str], ...] = ()  # name, file, writer, state, why
    unread: tuple[tuple[str, tuple[str, ...]], ...] = ()
    misnamed: tuple[str, ...] = ()
    open: tuple[str, ...] = ()


@dataclass(frozen=True)
class AgentFacts:
    """What this agent knows and did: `managed` where it changed the node. `problem` is why `apply`
    refuses now, `code` the kind of that error; `published` the lines of the status file,
    `not_published` why there are none; `barrier` is what is wrong with the file of the same content
    that device plugins read; `specs_gone`: a spec of ours is not there."""

    managed: bool = False
    problem: str = ""
    code: str = ""
    published: Mapping[str, str] = field(default_factory=dict)
    not_published: str = ""
    barrier: str = ""
    specs_gone: bool = False
    error: str = ""
    drift: tuple[str, ...] = ()
    unfinished: str = ""
    failed: str = ""
    left: tuple[tuple[str, str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    restart: str = ""


@dataclass(frozen=True)
class ToolkitFacts:
    """NVIDIA's toolkit: the config.toml that handlers of NVIDIA's read, the annotation prefixes
    that it answers, whether an unprivileged container may ask by variable, the low-level runtimes
    that it tries, whether one of them is there, and whether its programs have a label of SELinux.
    `broken` is why the file cannot be read; `mode` is that of nvidia-container-runtime; `absent`
    are keys that name a path of the host where nothing is.
    """

    config: str
    prefixes: tuple[str, ...] = ()
    variables: bool = False
    calls: tuple[str, ...] = ()
    callable: bool = True
    labelled: bool = True
    broken: str = ""
    mode: str = "auto"
    no_cgroups: bool = False
    absent: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class KubeletFacts:
    """The kubelet: the cgroup driver and the socket that it was told, "" where it was not; `source`
    is where it says so."""

    cgroups: str = ""
    cgroups_source: str = ""
    socket: str = ""


@dataclass(frozen=True)
class PluginFacts:
    """A process of NVIDIA's device plugin, with the settings of it that have to fit the node.
    `driver_root` is where it says that the driver is on the host."""

    pid: int
    strategy: tuple[str, ...] = ()
    prefix: str = ""
    hook: str = ""
    hook_missing: bool = False
    driver_root: str = "/"


@dataclass(frozen=True)
class DriverFacts:
    """The driver: GPUs on the PCI bus, the version of the loaded module, the version of the
    libraries, device nodes that are missing, and `problem` where there is none; `other` is the
    driver that holds the GPUs in its place; `platform` is WSL2 or Tegra; `root` is the host path
    below which the driver's files are."""

    gpus: int = 0
    module: str = ""
    library: str = ""
    missing_nodes: tuple[str, ...] = ()
    problem: str = ""
    other: str = ""
    platform: str = ""
    root: str = ""


@dataclass(frozen=True)
class UnitFacts:
    """A systemd unit that goes down with the runtime's, and its state in words. `bound`: also where
    the runtime ends by itself, after which systemd does not start it again."""

    name: str
    state: str
    up: bool = True
    bound: bool = False


@dataclass(frozen=True)
class MachineFacts:
    """The rest of the node. `installers` are processes of other toolkits' installers, `sockets` of
    runtimes that answer, each with who answers. `unread` are files of the host that this user may
    not read. `profiles` are AppArmor's in force, `confined` is the one of the runtime's process.
    `nri` has NRI's socket, `nri_asked` the processes that want to be a plugin of it, and
    `nri_plugins` those that the runtime starts. `dra` is where a DRA driver of NVIDIA's is seen.
    """

    root: bool = True
    enforcing: bool = False
    installers: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    confined: str = ""
    nri: bool = False
    nri_asked: tuple[str, ...] = ()
    nri_plugins: tuple[str, ...] = ()
    dra: str = ""


@dataclass(frozen=True)
class Facts:
    """All of it."""

    machine: MachineFacts = MachineFacts()
    runtime: Part[RuntimeFacts] = Part()
    down: Down | None = None  # where there is no runtime
    config: Part[ConfigFacts] = Part()
    refused: str = ""  # why the configuration cannot be used
    specs: Part[SpecFacts] = Part()
    agent: Part[AgentFacts] = Part()
    toolkit: Part[ToolkitFacts] = Part()
    kubelet: Part[KubeletFacts] = Part()
    plugins: Part[tuple[PluginFacts, ...]] = Part()
    driver: Part[DriverFacts] = Part()
    units: Part[tuple[UnitFacts, ...]] = Part()
