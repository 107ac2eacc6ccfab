"""A runtime that does not exist: one file of TOML, and an adapter that says all about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from agent.cri.client import Answer
from agent.cri.process import Process
from agent.decide import Evidence, Switch
from agent.host import files
from agent.host.files import Change, FileState, new_state
from agent.host.isolation import View
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings
from agent.runtimes.base import (
    ConfiguredRuntime,
    EditRequest,
    Edits,
    Runtime,
    RuntimeAdapter,
)
from agent.runtimes.config_file import ConfigFile, Files, Overlay
from agent.runtimes.desired_state import Desired, Effective, own_keys
from agent.runtimes.preflight import UNKNOWN, Candidate, Preflight
from agent.runtimes.registry import Registered
from agent.runtimes.trial import Launch
from agent.toml import document
from agent.toml.document import Data, Op, Path, Set, get

FILE = "/etc/made-up.toml"
REGISTERED = Registered("made-up", "made-up", ("/run/made-up.sock",), __name__)


class MadeUp(RuntimeAdapter):
    """The kind of runtime."""

    kind = "made-up"
    title = "Made-up"
    low_level = ("runc",)

    def configured_runtime(
        self, settings: Settings, host: HostRoot, runtime: Runtime, overlay: Overlay | None = None
    ) -> MadeUpNode:
        """Its one file."""
        loaded = load(host, overlay or {})
        return MadeUpNode(host, runtime, loaded, None, loaded[0].path)

    def evidence(self, answer: Answer) -> tuple[Evidence, ...]:
        """It always reads CDI specs."""
        return (Evidence("cri-status", Switch.TRUE, ("/etc/cdi",)),)

    def shown_handlers(self, answer: Answer) -> tuple[str | None, Mapping[str, Data] | None]:
        """As in its file."""
        return get(answer.config, ("default",)), get(answer.config, ("handlers",))

    def watch_paths(
        self, settings: Settings, host: HostRoot, running: Process | None
    ) -> Iterator[str]:
        """Its file."""
        yield FILE


ADAPTER = MadeUp()


@dataclass(frozen=True)
class MadeUpNode(ConfiguredRuntime):
    """It, with its file, which is the drop-in too."""

    adapter = ADAPTER

    def load(self, overlay: Overlay | None = None) -> Files:
        """Its file by now."""
        return load(self.host, overlay or {})

    def effective(self, files: Files) -> Effective:
        """What the file says; runc is built in."""
        data = files[0].data
        tables = {"runc": {"runtime_path": "/usr/bin/runc"}, **data.get("handlers", {})}
        return Effective(data.get("default", "runc"), tables, None, data)

    def edits(self, request: EditRequest) -> tuple[Edits, tuple[str, ...]]:
        """A table for each handler."""
        tables = {one.handler: {"runtime_path": one.path} for one in request.available}
        now = self.root.data.get("handlers", {})
        ops: list[Op] = [Set(("handlers", n), t) for n, t in tables.items() if now.get(n) != t]
        if request.decision.is_default and self.root.data.get("default") != "nvidia":
            ops.append(Set(("default",), "nvidia"))
        before = self.root.state
        text = document.decoded(before.data if before else b"", FILE)
        data = document.encoded(document.edit(text, ops, FILE))
        after = replace(before, data=data) if before else new_state(data)
        changes = (Change(self.root.path, before, after),) if ops else ()
        desired = Desired(tables, "nvidia" if request.decision.is_default else None)
        return Edits(changes, desired, self.load({FILE: after})), ()

    def preflight(self, candidate: Candidate) -> Preflight:
        """It cannot be asked."""
        return Preflight(False, UNKNOWN)

    def launch(
        self, executable: str, desired: Desired, files: Mapping[str, bytes | None]
    ) -> Launch:
        """It is started without anything."""
        return Launch((executable,), {}, View("/tmp", (), (), files, ()), FILE, str)

    def own_keys(self, data: Data, *, switch: bool) -> Iterable[Path]:
        """Handlers, and a default that is one."""
        return own_keys(data, ("handlers",), ("default",))


def load(host: HostRoot, overlay: Overlay) -> Files:
    """Its one file, there or not."""
    path = HostPath(host.agent_path(FILE), FILE)
    state: FileState | None = overlay[FILE] if FILE in overlay else files.read(path.agent, FILE)
    return (ConfigFile(FILE, path, state, document.parse(state.data, FILE) if state else {}),)
