"""The interface to all container runtimes. The rest of the program uses a runtime only through it.

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
    """Where a runtime is, also while it is down: its kind and its CRI socket. `unit` is the name of
    its systemd unit; None if the unit is not known, or not needed."""

    kind: str
    socket: HostPath
    unit: str | None = None


@dataclass(frozen=True)
class Runtime:
    """A runtime that answers: its endpoint, its process (None if the process cannot be seen from
    here), and its answer."""

    endpoint: Endpoint
    process: Process | None
    answer: Answer

    @property
    def kind(self) -> str:
        """The kind, as --runtime names it."""
        return self.endpoint.kind

    @property
    def socket(self) -> HostPath:
        """The CRI socket."""
        return self.endpoint.socket

    @property
    def version(self) -> str:
        """The version as the runtime spells it."""
        return self.answer.version


@dataclass(frozen=True)
class EditRequest:
    """The input of `ConfiguredRuntime.edits`: the settings, what the agent remembers (`store`,
    `memory`), the decision, and NVIDIA's programs for which there can be a handler (`available`).
    `hook_program` is the host path of the program that an OCI hook would run, None if there is
    none."""

    settings: Settings
    store: Store
    memory: Memory
    decision: Decision
    available: tuple[Binary, ...]
    hook_program: str | None = None

    @property
    def own_names(self) -> tuple[str, ...]:
        """The names of handlers that are ours, whichever program they run."""
        available = (binary.handler for binary in self.available)
        return (*OUR_NAMES, *available, self.settings.runtime_name)


@dataclass(frozen=True)
class Edits:
    """The changes, in the order of their writes, after which `desired` holds at the next start.

    `files` are the files after the changes. `base` is the handler from which our handlers inherit.
    `low_level` is the low-level runtime that our present handlers call. Each of the two is None if
    it is not known.
    """

    changes: tuple[Change, ...]
    desired: Desired
    files: Files
    base: str | None = None
    low_level: str | None = None


@dataclass(frozen=True)
class Defect:
    """A fault in configuration files: `text` describes the fault, `remedy` says what to do.
    `deadly`: the runtime does not start on the files, or does not serve the CRI. `harmful`: pods
    fail, or settings are not read."""

    text: str
    remedy: str
    deadly: bool = False
    harmful: bool = True


class CannotSwitch(Refused):
    """No edit can switch native CDI on, although it is on in the desired state."""


class RestartHazard(Refused):
    """The runtime would not start again after a restart. `path` is the file that causes this.
    `later` is the text of a warning, for a node that needs no restart now."""

    def __init__(self, path: HostPath, why: str, remedy: str, runtime: str) -> None:
        super().__init__(f"cannot restart {runtime}: {path} {why}; {remedy}")
        self.path = path
        self.later = f"{path} {why}: it would not come back from a restart; {remedy}"


class RuntimeAdapter(ABC):
    """One kind of runtime. A method that is not abstract returns the answer of most runtimes.

    `kind`: the name in options and in the journal. The runtime's executable and its systemd unit
    have this name too.
    `title`: the name in messages.
    `low_level`: the OCI runtimes that distributions ship with this runtime, the usual one first.
    `shape`: the types of the settings that the agent reads in the runtime's files.
    `starts_again`: does systemd start the runtime again after a SIGTERM?
    `lists_handlers`: do the runtime's lists of pods show the handler of each pod?
    `shows_reloaded`: does the runtime show settings that it has only reloaded, and that come into
    force with a restart?
    `restart_note`: a note for a person who waits for a restart.
    `stop_seconds`: how long a restart may wait for containers that are being stopped.
    `cgroup_driver_since`: the first version that tells the kubelet its cgroup driver (the CRI's
    call RuntimeConfig).
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
        """The answer, with the settings that this runtime shows outside the CRI. `socket` is an
        agent path, `timeout` is in seconds. Raises Unreachable."""
        return answer

    def explained(
        self, error: Unimplemented, settings: Settings, host: HostRoot, socket: HostPath
    ) -> Unimplemented:
        """The error that the CRI is not served, with the cause if the files of a runtime of this
        kind show the cause; else the same error."""
        return error

    @abstractmethod
    def configured_runtime(
        self, settings: Settings, host: HostRoot, runtime: Runtime, overlay: Overlay | None = None
    ) -> ConfiguredRuntime:
        """Load the files of a runtime of this kind, and find its executable. Files in `overlay`
        replace those on disk. Raises Refused for files with which the runtime does not start."""

    @abstractmethod
    def evidence(self, answer: Answer) -> tuple[Evidence, ...]:
        """The evidence of CDI in an answer, the best source first."""

    @abstractmethod
    def shown_handlers(self, answer: Answer) -> tuple[str | None, Mapping[str, Data] | None]:
        """The name of the default runtime, and the table of each handler by its name. The keys of
        a table are spelled as in the files. Each of the two is None if the runtime does not show
        it."""

    def table_problems(
        self, table: Data, running: Data, shown: Mapping[str, Data]
    ) -> Iterable[str]:
        """The differences between a handler's desired table and its running table, in words.
        `shown` are all tables that the runtime shows."""
        wrong = (k for k, value in table.items() if not same_value(k, value, running.get(k)))
        return (f"{key} is not as wanted" for key in wrong)

    def unproven(self, desired: Desired, answer: Answer) -> list[str]:
        """The differences between the desired state and the running runtime, in words; empty if
        there is none. If the runtime shows only the names of its handlers, only names are
        compared."""
        default, tables = self.shown_handlers(answer)
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
        """The host paths of files and directories to watch while the runtime's configuration cannot
        be read. Raises AgentError or OSError after the last path that is known."""

    def low_level_program(self, effective: Effective, name: str) -> str | None:
        """The OCI runtime that a handler of others runs. None if the handler names none, or if it
        runs virtual machines."""
        table = effective.table(name)
        path = table.get("runtime_path") if table.get("runtime_type") != "vm" else None
        return path if isinstance(path, str) else None

    def pod_handler(self, info: Mapping[str, object]) -> str:
        """The handler of a pod, "" for the default. `info` is the pod's verbose status. Called only
        if `lists_handlers` is false."""
        return ""

    def pod_programs(
        self, info: Mapping[str, object], running: Effective, handler: str
    ) -> tuple[str, ...]:
        """The programs that run the containers of a pod. `info` is the pod's verbose status. If the
        status does not show the programs, those in the present table of `handler` count."""
        return tuple(programs_of(running.table(handler or running.default)))


@dataclass(frozen=True)
class ConfiguredRuntime(ABC):
    """A runtime of this node with its configuration files. A method that is not abstract returns
    the answer of most runtimes.

    `host`: the host root of the node.
    `files`: the files that the runtime loads. The root file comes first, even if it does not exist.
    `executable`: the host path of the executable that a restart will run, None if it is not known.
    `drop_in`: the file for our own settings.
    `imports_drop_in`: is the drop-in loaded only because another file imports it?
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
        """The root file, whether or not it exists."""
        return self.files[0]

    @abstractmethod
    def load(self, overlay: Overlay | None = None) -> Files:
        """Read the files again. Files in `overlay` replace those on disk. Raises Refused."""

    @abstractmethod
    def effective(self, files: Files) -> Effective:
        """The effective configuration after a start on these files."""

    def running(self) -> Effective:
        """The configuration that the running runtime shows. The files fill in what the runtime does
        not show."""
        by_files = self.effective(self.files)
        default, tables = self.adapter.shown_handlers(self.runtime.answer)
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
        """The edits that a request needs, and warnings. Raises Refused."""

    @abstractmethod
    def preflight(self, candidate: Candidate) -> Preflight:
        """Check the future files with the runtime's own executable. Raises Refused if it rejects
        them."""

    @abstractmethod
    def launch(
        self, executable: str, desired: Desired, files: Mapping[str, bytes | None]
    ) -> Launch:
        """The arguments and the view of a trial start. `files` are contents by host path (None: no
        such file), and replace the real files."""

    def restart_hazard(self, files: Files) -> RestartHazard | None:
        """The first obstacle to a start of the runtime on these files, None if there is none."""
        return None

    def defects(self) -> Iterable[Defect]:
        """The defects in the present files, the worst first. Files on which the runtime does not
        start are not among them, because `configured_runtime` refuses those."""
        return ()

    def rendered(self) -> Iterable[tuple[str, str, str]]:
        """The files that another program writes anew at each start. Each item is the file's host
        path, the name of that program, and the source from which the program makes the file."""
        return ()

    def cgroup_drivers(self) -> Mapping[str, str]:
        """The cgroup driver ("systemd" or "cgroupfs") by handler, for the handlers whose files name
        one."""
        return {}

    def sandbox_image(self) -> str | None:
        """The image of the sandbox container of each pod, None if it is not known. If Status does
        not show the image, an adapter may run the executable."""
        image = get(self.runtime.answer.config, ("sandboxImage",))
        return image if isinstance(image, str) and image else None

    def comparable_settings(self, file: ConfigFile) -> tuple[object, list[Data]]:
        """Two things to compare: the settings that the running runtime shows, and the sections of
        `file` that set the same keys."""
        return self.runtime.answer.config or {}, [file.data]

    def reload_keys(self, desired: Desired) -> tuple[Path, ...]:
        """The keys of the desired state that this runtime shows after a reload although only a
        restart puts them in force."""
        return ()

    def pod_states(self, effective: Effective, below: str | None) -> Mapping[str, object]:
        """For each handler ("" is the default), a value that must not change while pods of the
        handler run. `below` is the low-level runtime that NVIDIA's runtime calls. Most runtimes
        require only that the handler exists."""
        return dict.fromkeys(("", *effective.runtimes))

    def passes_annotation(self, effective: Effective, prefix: str) -> bool:
        """Does the runtime pass a container's annotation with this prefix on to NVIDIA's
        runtime?"""
        return True

    def hook_programs(self, overlay: Overlay) -> Iterable[tuple[HostPath, str]]:
        """The OCI hooks that the runtime will read: each item is a file, and a program that it
        names. Files in `overlay` replace those on disk."""
        return ()

    def watch_paths(self) -> Iterator[str]:
        """The host paths of files and directories that are watched, because a change of one can
        require a convergence."""
        yield from (self.drop_in.host, os.path.dirname(self.drop_in.host))
        yield from (file.name for file in self.files if file.name)

    @abstractmethod
    def own_keys(self, data: Data, *, switch: bool) -> Iterable[Path]:
        """The paths of our keys in a file's data: our handlers, and a default runtime that is one
        of them. With `switch`, also a CDI switch that is on."""

    def revert_operations(
        self, name: str, ops: list[Op], data: tuple[Data, Data], imported: tuple[str, ...] | None
    ) -> list[Op]:
        """The operations with which a revert takes our keys out of the file at the host path
        `name`: `ops`, adapted to this runtime. `data` are the file's data now and before our first
        change. `imported` are the imports that we wrote, None if our drop-in stays."""
        return ops

    def adapted_revert(self, changes: tuple[Change, ...]) -> tuple[Change, ...]:
        """The changes of a revert, adapted to this runtime. For example, containerd's adapter
        empties a file that another file imports by name, and does not remove it."""
        return changes
