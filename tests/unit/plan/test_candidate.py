"""A failed candidate is tried again only after a change; unloaded files are found."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cri.client import Answer
from agent.cri.process import Process
from agent.errors import CandidateFailed
from agent.host.paths import HostPath, HostRoot
from agent.plan import candidate, in_force
from agent.runtimes.base import Edits, Endpoint, Runtime
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.containerd import load
from agent.runtimes.containerd.adapter import ContainerdNode
from agent.runtimes.containerd.generations import generation
from agent.runtimes.desired_state import Desired
from agent.state.store import Failure, Store
from tests.unit.support.made_node import ticks

HOST = HostRoot("/")
SECTION = '[plugins."io.containerd.grpc.v1.cri"]\n'


class Scene:
    """A node with a root file, an executable and a file that the configuration names."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "config.toml"
        self.spec = directory / "base.json"
        self.executable = directory / "containerd"
        for path in (self.spec, self.executable):
            path.write_text("x")
        self.write("")
        self.running = Process(7, ticks(5), "/c", str(self.root), None, ("c",), "/proc")
        self.shown: dict[str, object] = {}
        self.now = 1000.0
        self.store = Store(str(directory / "state"))
        self.store.create()

    def write(self, keys: str) -> None:
        """The root file with these keys of the CRI."""
        self.root.write_text(f'version = 2\n{SECTION}{keys}base = "{self.spec}"\n')

    def node(self) -> ContainerdNode:
        """The node as it is now."""
        gen = generation((1, 7, 0))
        answer = Answer("containerd", "1.7.24", True, self.shown, ())
        socket = HostPath("/s", "/s")
        runtime = Runtime(Endpoint("containerd", socket), self.running, answer)
        files = load.load(HOST, gen, str(self.root))
        return ContainerdNode(HOST, runtime, files, str(self.executable), HostPath("/d", "/d"), gen)

    def edits(self) -> Edits:
        """No edits: the files as they are."""
        return Edits((), Desired({}), self.node().files)

    def refusal(self) -> CandidateFailed | None:
        """Is the candidate one that failed before `now`?"""
        return candidate.known_failure(self.store, self.node(), self.edits(), self.now)

    def unloaded(self) -> ConfigFile | None:
        """The first file that the runtime has not loaded."""
        return in_force.first_unloaded(self.store.memory(), self.node(), time.time)

    def fail(self) -> None:
        """The candidate fails."""
        mark = candidate.fingerprint(self.node(), self.edits())
        self.store.remember_failure(mark, Failure("it died", self.now))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_same_candidate_is_refused(scene: Scene) -> None:
    """Until a day has passed; a clock that was set back does not prolong it."""
    assert not scene.refusal()
    scene.fail()
    assert scene.refusal()
    scene.now += 86399
    assert scene.refusal()
    scene.now += 2
    assert not scene.refusal()
    scene.now = 10.0
    assert not scene.refusal()


def test_message_says_what_to_do(scene: Scene) -> None:
    """And why it failed."""
    scene.fail()
    found = scene.refusal()
    assert found is not None
    assert "(it died)" in found.message
    assert "apply --retry" in found.message


def test_changed_cause_makes_another_candidate(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Configuration, what it names, executable, flags, agent: each makes another candidate."""
    scene.fail()
    changes: dict[str, Callable[[], object]] = {
        "configuration": lambda: scene.write("x = 1\n"),
        "named file": lambda: scene.spec.write_text("longer"),
        "named file is gone": scene.spec.unlink,
        "executable": lambda: scene.executable.write_text("longer"),
        "flags": lambda: setattr(scene, "running", replace(scene.running, command=("c", "-l"))),
        "agent": lambda: monkeypatch.setattr(candidate, "__version__", "9"),
    }
    for name, change in changes.items():
        change()
        assert not scene.refusal(), name
        scene.fail()
        assert scene.refusal(), name


def test_unit_is_a_part_of_it(scene: Scene, tmp_path: Path) -> None:
    """Its file, and drop-ins of it."""
    units = tmp_path / "etc/systemd/system"
    (units / "c.service.d").mkdir(parents=True)
    (units / "c.service").write_text("[Service]\n")
    scene.running = replace(scene.running, unit="c.service")
    node = replace(scene.node(), host=HostRoot(str(tmp_path)))
    marks = [candidate.fingerprint(node, scene.edits())]
    (units / "c.service.d/env.conf").write_text("[Service]\n")
    marks.append(candidate.fingerprint(node, scene.edits()))
    (units / "c.service").write_text("[Service]\nRestart=no\n")
    marks.append(candidate.fingerprint(node, scene.edits()))
    assert len(set(marks)) == 3


def test_failure_of_an_earlier_version_is_forgotten(scene: Scene) -> None:
    """It has no time: it may be of any day."""
    mark = candidate.fingerprint(scene.node(), scene.edits())
    path = Path(scene.store.path("failed.json"))
    path.write_text(f'{{"format": 1, "candidates": {{"{mark}": "it died"}}}}')
    assert scene.store.failures() == {mark: Failure("it died", 0.0)}
    scene.now = 1e9
    assert not scene.refusal()


# --- files that the runtime has not loaded -----------------------------------------------------


def test_older_file_is_loaded(scene: Scene) -> None:
    """Whatever the runtime shows."""
    scene.now = os.stat(scene.root).st_ctime
    scene.running = replace(scene.running, start=ticks(60))
    assert scene.unloaded() is None


@pytest.mark.parametrize(
    ("keys", "shown", "loaded"),
    [
        ("", {"base": "", "enableCDI": True}, False),
        ('stream_idle_timeout = "4h"\n', {"streamIdleTimeout": "4h"}, True),
        ('stream_idle_timeout = "4 hours"\n', {"streamIdleTimeout": "4h"}, False),
        ("enable_cdi = true\n", {"enableCDI": True}, True),
        ("[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/c'\n",
         {"registry": {"configPath": "/c"}}, True),
        ("unknown = 1\n", {}, False),
    ],
)  # fmt: skip
def test_younger_file_counts_as_loaded_where_the_runtime_shows_it(
    keys: str, shown: dict[str, object], loaded: bool, scene: Scene
) -> None:
    """It is loaded if the runtime shows all that it says of the CRI."""
    scene.running = replace(scene.running, start=ticks(-60))
    scene.write(keys)
    path = ("registry",) if "registry" in keys else ()
    below = shown if not path else shown["registry"]
    assert isinstance(below, dict)
    if loaded:
        below["base"] = str(scene.spec)
    scene.shown = shown
    found = scene.unloaded()
    assert (found is None) is loaded
    if found is not None:
        refusal = in_force.refusal(found, "apply", "no rights")
        assert str(scene.root) in refusal.message
        assert "(no rights)" in refusal.message
