"""What the rest of the program knows of a container runtime: the protocol and its data.

`RuntimeAdapter` is one kind of runtime. `ConfiguredRuntime` is a runtime of that kind on this node,
with the files that it loads. Everything in which runtimes differ is behind these two; `registry`
lists the kinds. A new runtime is a folder with an adapter, and a line in the registry.

Invariant: nothing here, and nothing outside the folders of the runtimes, names one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from agent.cri.client import Answer, Unimplemented
from agent.cri.process import Process
from agent.decide import Decision, Evidence
from agent.errors import Refused
from agent.host.files import Change
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings
from agent.runtimes.config_file import ConfigFile, Overlay
from agent.state.store import Memory, Store
from agent.toml.edit import Data, Op, Path
from agent.toolkit.programs import Binary

if TYPE_CHECKING:
    from agent.runtimes.desired_state import Desired
    from agent.runtimes.preflight import Candidate, Preflight
    from agent.runtimes.trial import Launch

Files: TypeAlias = tuple[ConfigFile, ...]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a runtime listens; there also while it is down. `unit` is the systemd unit that runs
    it, where we have to do with that."""

    kind: str
    socket: HostPath
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime that answers: its process (None where it cannot be seen) and its words."""

    endpoint: Endpoint
    process: Process | None
    answer: Answer

    @property
    def kind(self) -> str:
        """The kind, as --runtime has it."""
        return self.endpoint.kind

    @property
    def socket(self) -> HostPath:
        """Its CRI socket."""
        return self.endpoint.socket

    @property
    def version(self) -> str:
        """As the runtime spells it."""
        return self.answer.version


@dataclass(frozen=True, slots=True)
class Effective:
    """The effective configuration: built-in defaults and all files, as the runtime merges them.
    `linux_runtime` is what the v1.linux shim runs where a handler names nothing; empty without it.
    """

    default: str
    runtimes: Mapping[str, Data]
    enable_cdi: bool | None
    section: Data
    linux_runtime: str = ""

    def table(self, name: str) -> Data:
        """The table of a handler, empty where there is none."""
        return self.runtimes.get(name) or {}


@dataclass(frozen=True, slots=True)
class EditRequest:
    """What edits are made from, besides the node. `hook_program`: the host path of the program
    that an OCI hook would run, None where there is none."""

    settings: Settings
    store: Store
    memory: Memory
    decision: Decision
    available: tuple[Binary, ...]
    hook_program: str | None = None


@dataclass(frozen=True, slots=True)
class Edits:
    """What has to be written, in that order, so that `desired` holds at the next start. `files` are
    as they will be; `base` is the handler that ours inherit from, `called` the low-level program
    that those of before call; None where that is not told."""

    changes: tuple[Change, ...]
    desired: Desired
    files: Files
    base: str | None = None
    called: str | None = None


@dataclass(frozen=True, slots=True)
class Restoration:
    """How a file goes back: `ops` take our keys out, `original` is its data before us, `imported`
    are imports that we wrote; `drop_in_goes`: ours is not to be imported any more."""

    ops: list[Op]
    original: Data
    imported: tuple[str, ...]
    drop_in_goes: bool


class CannotSwitch(Refused):
    """The switch that is on in our wish cannot be set where it counts."""


class RestartHazard(Refused):
    """A restart would end the runtime for good; `later` is the warning where none is due, `path`
    the file to blame."""

    def __init__(self, path: HostPath, why: str, remedy: str, runtime: str) -> None:
        super().__init__(f"cannot restart {runtime}: {path} {why}; {remedy}")
        self.path = path
        self.later = f"{path} {why}: it would not come back from a restart; {remedy}"


class RuntimeAdapter(Protocol):
    """One kind of runtime."""

    @property
    def kind(self) -> str:
        """Its name in options and in the journal."""

    @property
    def title(self) -> str:
        """Its name for a person."""

    @property
    def low_level(self) -> tuple[str, ...]:
        """OCI runtimes that it comes with, the usual one first."""

    @property
    def starts_again(self) -> bool:
        """Does systemd start it again after a SIGTERM?"""

    @property
    def lists_handlers(self) -> bool:
        """Do its lists of pods say which handler a pod was created with?"""

    @property
    def shows_reloaded(self) -> bool:
        """Does it show settings that it has only reloaded, and that a restart puts in force?"""

    @property
    def restart_note(self) -> str:
        """What a person should know while it restarts; may be empty."""

    @property
    def stop_seconds(self) -> int:
        """How long a restart may wait for containers that are being stopped."""

    def completed(self, answer: Answer, socket: str, timeout: float) -> Answer:
        """The answer with what this runtime says of itself besides the CRI; `socket` is an agent
        path, `timeout` in seconds. Raises Unreachable."""

    def explained(
        self, error: Unimplemented, settings: Settings, host: HostRoot, socket: HostPath
    ) -> Unimplemented:
        """Why a process of this kind does not serve the CRI, where its files say so."""

    def look(
        self, settings: Settings, host: HostRoot, runtime: Runtime, overlay: Overlay | None = None
    ) -> ConfiguredRuntime:
        """The files and the executable of a runtime of this kind; files in `overlay` count as they
        are there. Raises Refused."""

    def check_shape(self, file: ConfigFile) -> None:
        """Raises Refused for a value of a wrong type where we are going to read."""

    def evidence(self, answer: Answer) -> tuple[Evidence, ...]:
        """What it says of CDI, best source first."""

    def shown_default(self, answer: Answer) -> object:
        """The default runtime that it shows, as it says it."""

    def shown_handlers(self, answer: Answer) -> object:
        """The tables of handlers that it shows, as it says them."""

    def unproven(self, desired: Desired, answer: Answer) -> list[str]:
        """What the running runtime lacks, in words; empty where it is as wanted."""

    def watch_paths(
        self, settings: Settings, host: HostRoot, running: Process | None
    ) -> Iterator[str]:
        """Host paths and directories on which a runtime depends that cannot be looked at. Raises
        AgentError or OSError after those that can be told."""

    def low_level_program(self, effective: Effective, name: str) -> str | None:
        """The OCI runtime that a handler which is not NVIDIA's runs; None where it names none."""

    def pod_handler(self, info: Mapping[str, object]) -> str:
        """The handler of a pod, "" for the default, from its verbose status; for a runtime whose
        lists do not say it."""

    def pod_programs(
        self, info: Mapping[str, object], running: Effective, handler: str
    ) -> tuple[str, ...]:
        """The programs by which the containers of a pod are run."""


class ConfiguredRuntime(Protocol):
    """A runtime of this node with the files that it loads; `files` starts with the root file, there
    or not."""

    @property
    def adapter(self) -> RuntimeAdapter:
        """Its kind."""

    @property
    def runtime(self) -> Runtime:
        """What answers."""

    @property
    def files(self) -> Files:
        """The files that it loads, the root file first, there or not."""

    @property
    def root(self) -> ConfigFile:
        """The root file."""

    @property
    def executable(self) -> str | None:
        """Host path of the executable that a restart will run; None where it cannot be told."""

    @property
    def drop_in(self) -> HostPath:
        """Our own file."""

    def load(self, host: HostRoot, overlay: Overlay | None = None) -> Files:
        """The files as they are by now; those in `overlay` as they are there. Raises Refused."""

    def effective(self, files: Files) -> Effective:
        """What the runtime makes of these files at its next start."""

    def running(self) -> Effective:
        """What the running runtime shows, over what its files say where it does not show it."""

    def evidence(self, host: HostRoot) -> tuple[Evidence, ...]:
        """What is seen of CDI, best source first; the executable is asked only where the runtime
        shows nothing."""

    def edits(self, host: HostRoot, request: EditRequest) -> tuple[Edits, tuple[str, ...]]:
        """What has to be written, and warnings. Raises Refused."""

    def preflight(self, host: HostRoot, candidate: Candidate) -> Preflight:
        """What the runtime's own executable makes of the files as they will be. Raises Refused."""

    def launch(
        self, host: HostRoot, executable: str, desired: Desired, files: Mapping[str, bytes | None]
    ) -> Launch:
        """How a trial start is made with `files` (by host path) in the place of the real ones."""

    def restart_hazard(self, host: HostRoot, files: Files) -> RestartHazard | None:
        """What the runtime would die of at a start on these files."""

    def needs_restart(self, changed: tuple[str, ...]) -> bool:
        """Does it see a change of these files (host paths) only at its next start?"""

    def shows(self, file: ConfigFile) -> tuple[object, list[Data]]:
        """What the running runtime shows of its settings, and the settings of a file that it would
        show."""

    def reload_keys(self, desired: Desired) -> tuple[tuple[str, ...], ...]:
        """Keys that this runtime shows after a reload although only a restart puts them in force;
        none for a runtime that shows what is in force."""

    def owner(self, files: Files, key: tuple[str, ...]) -> ConfigFile | None:
        """The file that has the last word on a key, for the keys of `reload_keys`."""

    def pod_states(self, effective: Effective, below: str | None) -> Mapping[str, object]:
        """What the pods of each handler ("" is the default) need to stay as it is; `below` is the
        low-level program that NVIDIA's runtime calls."""

    def passes_annotation(self, effective: Effective, prefix: str) -> bool:
        """Does a container's annotation with this prefix reach NVIDIA's runtime?"""

    def hook_programs(self, host: HostRoot, overlay: Overlay) -> Iterable[tuple[HostPath, str]]:
        """Files with OCI hooks that the runtime will read, each with the program that it names."""

    def watch_paths(self, host: HostRoot) -> Iterator[str]:
        """Host paths and directories whose change can make this node wrong."""

    @property
    def imports_drop_in(self) -> bool:
        """Is our drop-in loaded only because another file imports it?"""

    def own_keys(self, data: Data, *, switch: bool) -> Iterable[Path]:
        """Paths in a file's data of handlers of ours, of a default that is one, and, with `switch`,
        of a CDI switch that is on."""

    def restored(self, host: str, current: Data, restoration: Restoration) -> list[Op]:
        """The edits that take our keys out of the file of that host path, with what this runtime
        needs besides."""

    def finished(self, host: HostRoot, changes: tuple[Change, ...]) -> tuple[Change, ...]:
        """Changes of a revert with what this runtime needs besides: a file that another one imports
        by name is emptied instead of removed; nothing lies in a directory that is read whole."""
