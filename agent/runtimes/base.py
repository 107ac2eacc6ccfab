"""What every container runtime has in common. The rest of the program knows no more of it.

`RuntimeAdapter` is one kind of runtime. `ConfiguredRuntime` is a runtime of that kind on this node,
with the files that it loads. Everything that differs between runtimes is behind these two classes.
`registry` lists the kinds. A new runtime is a folder with an adapter, and a line in the registry.

Invariant: nothing here, and nothing outside the folders of the runtimes, names one of them.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from agent.cri.client import Answer, Unimplemented
from agent.cri.process import Process
from agent.cri.versions import Version, parse_version
from agent.decide import Decision, Evidence, Switch
from agent.errors import Refused
from agent.host.files import Change
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings
from agent.runtimes.config_file import ConfigFile, Files, Overlay, Shape
from agent.runtimes.desired_state import (
    OUR_NAMES,
    Desired,
    Effective,
    programs_of,
    same_value,
)
from agent.state.store import Memory, Store
from agent.toml.document import Data, Op, Path, get
from agent.toolkit.programs import Binary

if TYPE_CHECKING:
    from agent.runtimes.preflight import Candidate, Preflight
    from agent.runtimes.trial import Launch


@dataclass(frozen=True)
class Endpoint:
    """The socket of a runtime, which is known also while the runtime is down. `unit` is its systemd
    unit, if that is needed."""

    kind: str
    socket: HostPath
    unit: str | None = None


@dataclass(frozen=True)
class Runtime:
    """A runtime that answers: its process (None if it cannot be seen) and its answer."""

    endpoint: Endpoint
    process: Process | None
    answer: Answer

    @property
    def kind(self) -> str:
        """The kind, as an option names it (--runtime)."""
        return self.endpoint.kind

    @property
    def socket(self) -> HostPath:
        """Its CRI socket."""
        return self.endpoint.socket

    @property
    def version(self) -> str:
        """The version as the runtime spells it."""
        return self.answer.version


@dataclass(frozen=True)
class EditRequest:
    """What edits are made from, besides the node: the decision, the programs that are `available`
    as handlers, and what is remembered. `hook_program` is the host path of the program that an OCI
    hook would run, None if there is none."""

    settings: Settings
    store: Store
    memory: Memory
    decision: Decision
    available: tuple[Binary, ...]
    hook_program: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of handlers that are ours whatever they run."""
        available = (binary.handler for binary in self.available)
        return (*OUR_NAMES, *available, self.settings.runtime_name)


@dataclass(frozen=True)
class Edits:
    """The changes, in the order of their writes, after which `desired` holds at the next start.

    `files` are the files as they will be. `base` is the handler from which ours inherit. `called`
    is the low-level program that our present handlers call. Both are None if they are not known.
    """

    changes: tuple[Change, ...]
    desired: Desired
    files: Files
    base: str | None = None
    called: str | None = None


@dataclass(frozen=True)
class Defect:
    """A fault in configuration files, which `text` describes. `deadly`: the runtime does not start
    on them, or does not serve the CRI. `harmful`: pods fail, or settings are not read."""

    text: str
    remedy: str
    deadly: bool = False
    harmful: bool = True


class CannotSwitch(Refused):
    """No edit can switch native CDI on, although it is on in the desired state."""


class RestartHazard(Refused):
    """The runtime would not start again after a restart. `path` is the file that causes this.
    `later` is the warning for a node that needs no restart now."""

    def __init__(self, path: HostPath, why: str, remedy: str, runtime: str) -> None:
        super().__init__(f"cannot restart {runtime}: {path} {why}; {remedy}")
        self.path = path
        self.later = f"{path} {why}: it would not come back from a restart; {remedy}"


class RuntimeAdapter(ABC):
    """One kind of runtime. A method that is not abstract has the answer of most runtimes.

    `kind`: the name in options and in the journal. The runtime's executable and its systemd unit
    have this name too. `title`: the name for a person.
    `low_level`: the OCI runtimes that it is shipped with, the usual one first.
    `shape`: the types of the settings that are read of its files.
    `starts_again`: does systemd start it again after a SIGTERM?
    `lists_handlers`: do its lists of pods say which handler a pod was created with?
    `shows_reloaded`: does it show settings that it has only reloaded, and that a restart puts in
    force?
    `restart_note`: what a person should know while it restarts.
    `stop_seconds`: how long a restart may wait for containers that are being stopped.
    `cgroup_driver_since`: the first version that tells a kubelet its cgroup driver (RuntimeConfig).
    """

    kind: str
    title: str
    low_level: tuple[str, ...]
    shape: Shape = ()
    starts_again = True
    lists_handlers = True
    shows_reloaded = False
    restart_note = ""
    stop_seconds = 0
    cgroup_driver_since: Version = (0, 0, 0)

    def version_of(self, runtime: Runtime) -> Version:
        """The version of a runtime of this kind. Raises Refused if it is not known."""
        version = parse_version(runtime.version)
        if version is None:
            raise Refused(
                f"cannot work with {self.title} {runtime.version!r}: that is not a version number"
            )
        return version

    def completed(self, answer: Answer, socket: str, timeout: float) -> Answer:
        """The answer with what this runtime shows besides the CRI. `socket` is an agent path,
        `timeout` is in seconds. Raises Unreachable."""
        return answer

    def explained(
        self, error: Unimplemented, settings: Settings, host: HostRoot, socket: HostPath
    ) -> Unimplemented:
        """The error with the reason why a process of this kind does not serve the CRI, if its
        files show the reason."""
        return error

    @abstractmethod
    def look(
        self, settings: Settings, host: HostRoot, runtime: Runtime, overlay: Overlay | None = None
    ) -> ConfiguredRuntime:
        """The files and the executable of a runtime of this kind. Files in `overlay` replace those
        on disk. Raises Refused."""

    @abstractmethod
    def evidence(self, answer: Answer) -> tuple[Evidence, ...]:
        """The evidence of CDI that it shows, best source first."""

    @abstractmethod
    def shown(self, answer: Answer) -> tuple[str | None, Mapping[str, Data] | None]:
        """The default runtime, and the tables of the handlers with the keys of a file; None for
        what the runtime does not show."""

    def table_problems(
        self, table: Data, running: Data, shown: Mapping[str, Data]
    ) -> Iterable[str]:
        """What the running table of a handler lacks of the desired one, in words. `shown` are all
        tables that the runtime shows."""
        wrong = (k for k, value in table.items() if not same_value(k, value, running.get(k)))
        return (f"{key} is not as wanted" for key in wrong)

    def unproven(self, desired: Desired, answer: Answer) -> list[str]:
        """What the running runtime lacks of the desired state, in words; empty for nothing. If it
        shows only the names of handlers, only these are compared."""
        default, tables = self.shown(answer)
        listed = answer.handlers or tuple(tables or ())
        found = [
            f"handler {name} is still there"
            for name in desired.absent
            if name in listed or name in (tables or ())
        ]
        for name, table in desired.handlers.items():
            if tables is not None and name not in tables:
                found.append(f"handler {name} is missing")
            elif name not in listed:
                found.append(f"handler {name} is not listed")
            elif tables is not None:
                problems = self.table_problems(table, tables[name], tables)
                found += [f"handler {name}: {text}" for text in problems]
        if tables is None:
            return found
        if desired.default not in (None, default):
            found.append(f"the default runtime is {default}, not {desired.default}")
        if desired.enable_cdi and self.evidence(answer)[0].switch in (Switch.ABSENT, Switch.FALSE):
            found.append("enableCDI is not on")
        return found

    @abstractmethod
    def watch_paths(
        self, settings: Settings, host: HostRoot, running: Process | None
    ) -> Iterator[str]:
        """The host paths and directories on which a runtime depends whose configuration cannot be
        read. Raises AgentError or OSError after the paths that are known."""

    def low_level_program(self, effective: Effective, name: str) -> str | None:
        """The OCI runtime that a handler of others runs, None if the handler names none, or runs
        virtual machines."""
        table = effective.table(name)
        path = table.get("runtime_path") if table.get("runtime_type") != "vm" else None
        return path if isinstance(path, str) else None

    def pod_handler(self, info: Mapping[str, object]) -> str:
        """The handler of a pod from its verbose status, "" for the default. It is used if
        `lists_handlers` is false."""
        return ""

    def pod_programs(
        self, info: Mapping[str, object], running: Effective, handler: str
    ) -> tuple[str, ...]:
        """The programs that run the containers of a pod: those in its handler's present table, if
        the pod itself does not say."""
        return tuple(programs_of(running.table(handler or running.default)))


@dataclass(frozen=True)
class ConfiguredRuntime(ABC):
    """A runtime of this node with the files that it loads. A method that is not abstract has the
    answer of most runtimes.

    `host`: the host root of the node. `files`: the files that it loads. The root file comes first,
    even if it does not exist. `executable`: host path of the executable that a restart will run,
    None if it is not known.
    `drop_in`: our own file. `imports_drop_in`: it is loaded only because another file imports it.
    """

    adapter: ClassVar[RuntimeAdapter]
    imports_drop_in: ClassVar[bool] = False

    host: HostRoot
    runtime: Runtime
    files: Files
    executable: str | None
    drop_in: HostPath

    @property
    def root(self) -> ConfigFile:
        """The root file."""
        return self.files[0]

    @abstractmethod
    def load(self, overlay: Overlay | None = None) -> Files:
        """The files, read again. Files in `overlay` replace those on disk. Raises Refused."""

    @abstractmethod
    def effective(self, files: Files) -> Effective:
        """The effective configuration after a start on these files."""

    def running(self) -> Effective:
        """The configuration that the running runtime shows; that of its files if it shows
        nothing."""
        by_files = self.effective(self.files)
        default, tables = self.adapter.shown(self.runtime.answer)
        shown = tables or {name: {} for name in self.runtime.answer.handlers if name}
        tables = {name: table or by_files.table(name) for name, table in shown.items()}
        return replace(
            by_files,
            default=default or by_files.default,
            runtimes={**by_files.runtimes, **tables},
        )

    def evidence(self) -> tuple[Evidence, ...]:
        """The evidence of CDI, best source first. The executable is run only if the runtime
        shows nothing."""
        return self.adapter.evidence(self.runtime.answer)

    @abstractmethod
    def edits(self, request: EditRequest) -> tuple[Edits, tuple[str, ...]]:
        """The edits, and warnings. Raises Refused."""

    @abstractmethod
    def preflight(self, candidate: Candidate) -> Preflight:
        """The check of the future files by the runtime's own executable. Raises Refused."""

    @abstractmethod
    def launch(
        self, executable: str, desired: Desired, files: Mapping[str, bytes | None]
    ) -> Launch:
        """How a trial start is made with `files` (by host path) in the place of the real ones."""

    def restart_hazard(self, files: Files) -> RestartHazard | None:
        """What would keep the runtime from a start on these files, None for nothing."""
        return None

    def defects(self) -> Iterable[Defect]:
        """What is wrong with the files as they are, the worst first. `look` has refused files with
        which the runtime does not start."""
        return ()

    def rendered(self) -> Iterable[tuple[str, str, str]]:
        """The files (host paths) that a program writes anew at each start, with the name of that
        program, and the file from which it makes them."""
        return ()

    def cgroup_drivers(self) -> Mapping[str, str]:
        """The cgroup driver of each handler, "systemd" or "cgroupfs", as far as the files say
        it."""
        return {}

    def sandbox_image(self) -> str | None:
        """The image of which each pod has a container, None if it is not known. Some runtimes
        do not show it in Status; then the executable is run."""
        found = get(self.runtime.answer.config, ("sandboxImage",))
        return found if isinstance(found, str) and found else None

    def shows(self, file: ConfigFile) -> tuple[object, list[Data]]:
        """The settings that the running runtime shows, and the sections of a file in which the same
        settings are."""
        return self.runtime.answer.config or {}, [file.data]

    def reload_keys(self, desired: Desired) -> tuple[Path, ...]:
        """The keys that this runtime shows after a reload although only a restart puts them in
        force. Empty for a runtime that shows only what is in force."""
        return ()

    def pod_states(self, effective: Effective, below: str | None) -> Mapping[str, object]:
        """The state of each handler ("" is the default) that has to stay as it is for its pods.
        `below` is the low-level program that NVIDIA's runtime calls. By default a handler only has
        to exist."""
        return dict.fromkeys(("", *effective.runtimes))

    def passes_annotation(self, effective: Effective, prefix: str) -> bool:
        """Does a container's annotation with this prefix reach NVIDIA's runtime?"""
        return True

    def hook_programs(self, overlay: Overlay) -> Iterable[tuple[HostPath, str]]:
        """The files with OCI hooks that the runtime will read, each with the program it names."""
        return ()

    def watch_paths(self) -> Iterator[str]:
        """Host paths and directories whose change can make this node wrong."""
        yield from (self.drop_in.host, os.path.dirname(self.drop_in.host))
        yield from (file.name for file in self.files if file.name)

    @abstractmethod
    def own_keys(self, data: Data, *, switch: bool) -> Iterable[Path]:
        """The paths of our keys in a file's data: our handlers, a default runtime that is one of
        them, and, with `switch`, a CDI switch that is on."""

    def restored(
        self, name: str, ops: list[Op], data: tuple[Data, Data], imported: tuple[str, ...] | None
    ) -> list[Op]:
        """The operations `ops`, which take our keys out of the file at the host path `name`, with
        further ones that this runtime needs. `data` are the file's data now and before us.
        `imported` are the imports that we wrote, None if our drop-in stays."""
        return ops

    def finished(self, changes: tuple[Change, ...]) -> tuple[Change, ...]:
        """The changes of a revert, adapted to this runtime. For example, a file that another file
        imports by name is emptied instead of removed."""
        return changes
