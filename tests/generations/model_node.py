"""A node whose containerd is the scripted one's rules, in this process: no daemon, no socket.

    with ModelNode(directory, "2.2.7", shape) as node:
        node.agent.apply()
        node.status()

The program under test runs here, too, from its first look to what it publishes; replaced are only
the places where it would meet another process. What stands in for the runtime is the test double,
which shares no code with the program. Rules of 2.0.11, 2.2.7, 2.3.4 and 2.4.0-beta.0 were observed
on real ones, which cannot be had here; 2.1.9 is also tried for real (tests/conformance).
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from unittest import mock

from agent.cri import client, process
from agent.cri.process import Process
from agent.errors import Unreachable
from agent.host.paths import HostRoot
from agent.options.settings import resolve
from agent.plan import propose
from agent.plan.context import Context
from agent.plan.propose import Proposal
from agent.runtimes import command, trial
from agent.runtimes.containerd import deadly_specs
from agent.runtimes.restart import Restart
from agent.runtimes.trial import Launch
from agent.state.store import Store
from agent.status import Publisher
from agent.transaction import converge, revert
from agent.transaction.converge import Outcome
from tests.conformance.cri import Answer
from tests.conformance.shapes import Shape
from tests.conformance.trees import Tree, snapshot
from tests.doubles.containerd.generation import Table, generation_of, reported_version
from tests.doubles.containerd.load import Loaded, Node, RefusedError, built_in, load
from tests.doubles.containerd.populate import effective
from tests.doubles.containerd.status import config_info, why_dead


class _NoPods:
    """What a runtime without pods answers."""

    def sandboxes(self) -> tuple[client.Sandbox, ...]:
        return ()

    def containers(self) -> tuple[client.Container, ...]:
        return ()


@dataclass(frozen=True)
class _Stage(Node):
    """The machine with files presented in the place of its own: their content, or none."""

    files: Mapping[str, bytes | None] = field(default_factory=dict)
    directory: str = ""

    def real(self, name: str) -> str:
        known = os.path.realpath(name)
        if known not in self.files:
            return name
        staged = os.path.join(self.directory, known.replace("/", "+"))
        content = self.files[known]
        if content is not None:
            Path(staged).write_bytes(content)
        return staged

    def glob(self, pattern: str) -> list[str]:
        names = {name for name in super().glob(pattern) if os.path.exists(self.real(name))}
        level = pattern.count("/")
        names |= {
            name
            for name, content in self.files.items()
            if content is not None
            and name.count("/") == level
            and fnmatch.fnmatchcase(name, pattern)
        }
        return sorted(names)


@dataclass(frozen=True)
class Texts(Shape):
    """A shape whose files are given here, by their names in the directory of the root file."""

    texts: Mapping[str, str] | None = None


class ModelNode:
    """The node; its runtime runs on the files as they were when it was last started."""

    def __init__(self, directory: Path, version: str, shape: Shape) -> None:
        self.directory = directory
        self.version = version
        self.shape = shape
        self.etc = directory / "etc"
        self.root = self.etc / "containerd/config.toml"
        self.toolkit = directory / "usr/local/nvidia/toolkit"
        self.validations = directory / "validations"
        self.driver: Path | None = None
        self.socket = directory / "run/containerd.sock"
        self.starts = 0
        self.problem = ""  # why the daemon does not run
        self.dead = ""  # why its CRI is not served
        self.config: Table = {}
        self._generation = generation_of(version)
        self._patches: list[Any] = []

    def __enter__(self) -> Self:
        self._make_files()
        replaced: tuple[tuple[object, str, Callable[..., object]], ...] = (
            (process, "find", lambda *_: self._process()),
            (process, "peer_pid", lambda *_: self._process().pid),
            (client, "ask", lambda *_, **__: self._answer()),
            (client, "pod_questions", lambda *_, **__: contextlib.nullcontext(_NoPods())),
            # It would look into this machine's spec directories.
            (deadly_specs, "first_deadly", lambda *_: None),
            (command, "config_dump", lambda _host, _program, file, *_, **__: self._dump(file)),
        )
        for module, name, function in replaced:
            patch = mock.patch.object(module, name, function)
            patch.start()
            self._patches.append(patch)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for patch in reversed(self._patches):
            patch.stop()

    def start(self) -> None:
        """Start the daemon on the files as they are now."""
        self.starts += 1
        self.problem = self.dead = ""
        try:
            loaded = self._load(str(self.root))
            document = effective(self._generation, loaded)
        except RefusedError as error:
            self.problem = str(error)
            return
        if loaded.missing:
            self.problem = loaded.missing
            return
        self.dead = why_dead(self._generation, document) or ""
        self.config = {} if self.dead else config_info(self._generation, document)

    @property
    def runs(self) -> bool:
        """Whether the CRI is served."""
        return not self.problem and not self.dead

    def status(self) -> Answer:
        """What the runtime answers now."""
        assert self.runs, self.problem or self.dead
        return Answer(reported_version(self.version), True, _copy(self.config))

    def dump(self) -> Mapping[str, Any]:
        """The effective configuration, as the runtime's own binary would print it."""
        found = self._dump(str(self.root) if self.root.exists() else None)
        assert found.data is not None, found.error
        return found.data

    def tree(self) -> Tree:
        """Every file of the node's configuration."""
        return snapshot(self.etc)

    def whole(self) -> Tree:
        """Every file that the program under test could write."""
        return {path: entry for path, entry in snapshot(self.directory).items() if path != "."}

    def propose(self) -> Proposal:
        """`plan`."""
        ctx = self._context()
        return propose.propose(ctx, ctx.store.memory())

    def apply(self) -> Outcome:
        """`apply`."""
        return converge.converge(self._context())

    def revert(self) -> None:
        """`revert`."""
        revert.revert(self._context())

    def _context(self) -> Context:
        given = {
            "host_root": "/",
            "runtime": "containerd",
            "socket": str(self.socket),
            "drop_in_config": str(self.root.parent / "conf.d/99-nvidia.toml"),
            "state_dir": str(self.directory / "state"),
            "status_dir": str(self.validations),
            "toolkit_install_dir": str(self.toolkit.parent),
            "executable_path": "/usr/bin/containerd",
            "cdi_output_dir": "",
            "driver_root": str(self.directory / "no-driver"),  # and not one that the machine has
        }
        for option in self.shape.options:
            name, _, value = option.removeprefix("--").partition("=")
            given[name.replace("-", "_")] = value
        host, clock = HostRoot("/"), _Clock()
        return Context(
            settings=resolve(given, {}, "toolkit-agent"),
            host=host,
            store=Store(given["state_dir"], host),
            publisher=Publisher(given["status_dir"]),
            wall=time.time,
            clock=clock.now,
            sleep=clock.sleep,
            choose_restart=lambda *_: Restart("signal", "it", lambda _: self.start()),
            start_trial=lambda _, launch, problems: self._start_trial(launch, problems),
        )

    def _process(self) -> Process:
        if self.problem:
            raise Unreachable(f"cannot reach {self.socket}: {self.problem}")
        pid = 1000 + self.starts
        return Process(pid, pid, "/usr/bin/containerd", str(self.root), None, (), "/proc")

    def _answer(self) -> client.Answer:
        self._process()
        if self.dead:
            raise client.Unimplemented(f"cannot use {self.socket}: it does not serve CRI v1; look")
        return self._said(self.config)

    def _said(self, config: Table) -> client.Answer:
        names = ("", *config["containerd"]["runtimes"])
        version = reported_version(self.version)
        return client.Answer("containerd", version, True, _copy(config), names)

    def _start_trial(
        self, launch: Launch, problems: Callable[[client.Answer], list[str]]
    ) -> trial.Result:
        """What a start on the presented files comes to."""
        with tempfile.TemporaryDirectory() as directory:
            stage = _Stage(files=launch.view.files, directory=directory)
            try:
                loaded = self._load(str(self.root), stage)
                document = effective(self._generation, loaded)
            except RefusedError as error:
                return trial.Result(failure=str(error))
        failure = loaded.missing or why_dead(self._generation, document)
        if failure:
            return trial.Result(failure=failure)
        return trial.Result(
            "; ".join(problems(self._said(config_info(self._generation, document))))
        )

    def _load(self, file: str, node: Node | None = None) -> Loaded:
        node = node or Node()
        if file == str(self.root) and not os.path.exists(node.real(file)):
            return Loaded(built_in(self._generation), ())
        return load(self._generation, file, node)

    def _dump(self, file: str | None) -> command.Dump:
        try:
            loaded = Loaded(built_in(self._generation), ()) if file is None else self._load(file)
            return command.Dump(_copy(effective(self._generation, loaded)))
        except RefusedError as error:
            return command.Dump(None, str(error), rejected=True)

    def _make_files(self) -> None:
        for name in ("run", "validations"):
            (self.directory / name).mkdir(parents=True)
        self.toolkit.mkdir(parents=True)
        for name in self.shape.binaries:
            (self.toolkit / name).touch(0o755)
        write_files(self.directory, self.shape)


def write_files(directory: Path, shape: Shape) -> None:
    """Write the configuration of a shape below a node's directory."""
    root = directory / "etc/containerd"
    root.mkdir(parents=True)
    for name, text in _texts(shape).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("@NODE@", str(directory)), encoding="utf-8")
        path.chmod(shape.modes.get(name, 0o644))


def _texts(shape: Shape) -> Mapping[str, str]:
    if isinstance(shape, Texts):
        return shape.texts or {}
    source = shape.directory
    files = (path for path in source.rglob("*") if path.is_file())
    return {str(path.relative_to(source)): path.read_text("utf-8") for path in files}


def _copy(data: Table) -> Table:
    """A deep copy of plain data, several times as fast as copy.deepcopy."""
    found: Table = pickle.loads(pickle.dumps(data))  # noqa: S301 - our own bytes
    return found


class _Clock:
    """Time that passes only where somebody waits."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def now(self) -> float:
        """Seconds since some moment."""
        return self._seconds

    def sleep(self, seconds: float) -> None:
        """Let them pass."""
        self._seconds += seconds
