"""A made-up node: a file that changes, one that comes, one that goes, and a runtime on them."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from agent.cri import client, process
from agent.cri.client import Answer
from agent.cri.process import Process
from agent.errors import AgentError, Unreachable
from agent.host import files
from agent.host.files import Change, FileState
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import resolve
from agent.plan.context import Context
from agent.runtimes import restart
from agent.runtimes.base import ConfiguredRuntime, Endpoint, Runtime
from agent.runtimes.desired_state import Desired, Effective
from agent.runtimes.restart import Kind, Restart
from agent.state.store import Memory, Store
from agent.status import READY, TWIN, Publisher
from agent.systemd.units import Systemd, SystemdError, Unit
from agent.transaction import change, quiet_moment, recover
from agent.transaction.change import Request
from tests.unit.support.faults import Faults, Killed

OLD = {"config.toml": "old", "goes.toml": "goes"}
NEW = {"config.toml": "new", "conf.d/99-nvidia.toml": "comes"}
NAMES = ("conf.d/99-nvidia.toml", "goes.toml", "config.toml")  # the root file last
WANTED = Desired({"nvidia": {"options": {"BinaryName": "/n"}}})
SETTINGS = replace(resolve({}, {}, "toolkit-agent"), proof_timeout=5.0)
STATUS = {READY: "before", TWIN: "before"}


class Node:
    """The made-up node. `verdict` is what the runtime does with the new files: good, bad, dead."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.etc = directory / "etc/containerd"
        self.verdict = "good"
        self.clock = 0.0
        self.restarts = 0
        self.seen = True  # is the process behind the socket visible?
        monkeypatch.setattr(process, "find", lambda *_: self.find())
        monkeypatch.setattr(client, "ask", lambda *_, **__: self.ask())
        monkeypatch.setattr(restart, "resume", lambda *_: self.way())
        monkeypatch.setattr(quiet_moment, "wait", lambda *_, **__: None)
        self.reset()

    def reset(self) -> None:
        """The node before the change, readiness published."""
        for name in ("etc", "state", "status"):
            shutil.rmtree(self.directory / name, ignore_errors=True)
        self.etc.mkdir(parents=True)
        for name, text in OLD.items():
            (self.etc / name).write_text(text)
            (self.etc / name).chmod(0o640)
        (self.directory / "status").mkdir()
        for name, text in STATUS.items():
            (self.directory / "status" / name).write_text(text)
            (self.directory / "status" / name).chmod(0o644)
        with Faults.none().installed():  # without waiting for the disk
            self.context().store.create()
        self.loaded, self.pid, self.restarts = OLD, 100, 0
        self.started = ticks(-100)  # seconds before now

    def tree(self) -> dict[str, str]:
        """Files of the configuration, without what an interrupted change may leave."""
        return {
            str(p.relative_to(self.etc)): p.read_text()
            for p in self.etc.rglob("*")
            if p.is_file() and not p.name.endswith("~")
        }

    def strays(self) -> list[str]:
        """What should not lie there when nothing is in progress."""
        return [p.name for p in self.directory.rglob("*~")]

    def status(self) -> dict[str, str]:
        """The published files."""
        found = (self.directory / "status").iterdir()
        return {p.name: p.read_text() for p in found if not p.name.endswith("~")}

    def modes(self) -> set[int]:
        """Modes of the files that were there before."""
        return {(self.etc / n).stat().st_mode & 0o777 for n in OLD if (self.etc / n).exists()}

    def context(self) -> Context:
        """A fresh process: nothing is known but what is on the disk."""
        host = HostRoot("/")
        return Context(
            settings=SETTINGS,
            host=host,
            store=Store(str(self.directory / "state"), host),
            publisher=Publisher(str(self.directory / "status")),
            clock=lambda: self.clock,
            sleep=self.sleep,
            reach=self.reach,
        )

    def reach(self, host: HostRoot, unit: str) -> tuple[Systemd, Unit]:
        """This machine's systemd is none of a test's business."""
        raise SystemdError("there is none")

    def sleep(self, seconds: float) -> None:
        """Pass time."""
        self.clock += seconds

    def find(self) -> Process | None:
        """The process behind the socket."""
        if self._dead():
            raise Unreachable("cannot reach it")
        found = Process(self.pid, self.started, "/c", None, "c.service", ("c",), "/proc")
        return found if self.seen else None

    def _dead(self) -> bool:
        return self.verdict == "dead" and self.loaded == NEW

    def ask(self) -> Answer:
        """What the runtime says of the files that it loaded."""
        if self._dead():
            raise Unreachable("cannot reach it")
        handlers: dict[str, object] = {"runc": {}}
        if self.loaded == NEW and self.verdict != "bad":
            handlers["nvidia"] = {"options": {"BinaryName": "/n"}}
        config = {"containerd": {"runtimes": handlers, "defaultRuntimeName": "runc"}}
        return Answer("containerd", "2.1.9", True, config, ())

    def act(self, _: Process | None = None) -> None:
        """Restart: the files are loaded as they are at this moment."""
        self.loaded = self.tree()
        assert self.loaded in (OLD, NEW), "the runtime was started on half a change"
        self.pid += 1
        self.started = ticks(0)
        self.restarts += 1

    def way(self, kind: Kind = "systemd") -> Restart:
        """How it is restarted."""
        return Restart(kind, "c.service", self.act)

    def path(self, name: str) -> HostPath:
        """Both names of a file."""
        return HostPath(str(self.etc / name), str(self.etc / name))

    def changes(self) -> tuple[Change, ...]:
        """From OLD to NEW."""
        return tuple(
            Change(
                self.path(name),
                files.read(str(self.etc / name)),
                FileState(NEW[name].encode(), 0o640, os.geteuid(), os.getegid())
                if name in NEW
                else None,
            )
            for name in NAMES
        )

    def request(
        self, way: Restart | None, changes: tuple[Change, ...] | None = None,
        memory: Memory | None = None,
    ) -> Request:  # fmt: skip
        """The change that a plan would ask for."""
        runtime = Runtime(Endpoint("containerd", self.path("s")), self.find(), self.ask())
        configured = SimpleNamespace(
            runtime=runtime, files=(), load=lambda: (), executable=None,
            effective=lambda _: Effective("runc", {"runc": {}}, None, {}),
        )  # fmt: skip
        node, memory = cast("ConfiguredRuntime", configured), memory or Memory()
        return Request("apply", node, changes or self.changes(), way, WANTED, memory, "f")

    def apply(self, kind: Kind | None = "systemd") -> change.Completed:
        """Carry the change out; `kind` None: only files have to be written."""
        ctx = self.context()
        way = self.way(kind) if kind else None
        return change.carry_out(ctx, self.request(way, memory=ctx.store.memory()))

    def outcome(self, faults: Faults) -> str:
        """Carry it out with faults; gives the class of what came of it."""
        try:
            with faults.installed():
                self.apply()
        except (AgentError, Killed) as error:
            return type(error).__name__
        return "Done"

    def calls(self) -> int:
        """How many calls a change makes where nothing fails."""
        self.reset()
        faults = Faults.none()
        assert self.outcome(faults) == ("Done" if self.verdict == "good" else "NotAccepted")
        return len(faults.calls)

    def check_recovery(self) -> None:
        """The next start ends in old or new, with files, runtime and status agreeing."""
        with Faults.none().installed():  # without waiting for the disk
            outcome = recover.recover(self.context()).outcome
        assert self.context().store.journal() is None
        assert outcome in (None, "committed", "undone")
        assert self.tree() in (OLD, NEW)
        assert self.modes() == {0o640}
        if outcome == "undone":
            assert self.tree() == OLD
            assert self.status() == STATUS
        if outcome == "committed":
            assert self.tree() == NEW
            assert self.context().store.memory().files
        if self.tree() == OLD:
            assert not (self.etc / "conf.d").exists()
        assert self.loaded == self.tree() or self.restarts == 0


def ticks(seconds: float) -> int:
    """The moment so many seconds from now, in the clock ticks since boot of /proc."""
    return int((time.clock_gettime(time.CLOCK_BOOTTIME) + seconds) * os.sysconf("SC_CLK_TCK"))
