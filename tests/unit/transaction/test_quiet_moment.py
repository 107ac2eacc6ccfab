"""A restart waits a limited time for pods that are being made."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cri import client
from agent.cri.client import Container, Sandbox
from agent.errors import Refused, Unreachable
from agent.host.paths import HostPath
from agent.plan.context import Context
from agent.transaction import quiet_moment
from tests.unit.support.made_node import Node
from tests.unit.support.recorded_log import RecordedLog

NOW = 1_000_000.0
WAIT = quiet_moment.wait
SOCKET = HostPath("/none/c.sock", "/none/c.sock")
OLD = Sandbox("s", "train", "ml", "", True, NOW - 60)
UNSTARTED = Container("c", "s", "main", 0, {}, started=False, created=NOW - 60)
RUNNING = Container("c", "s", "main", 0, {}, started=True, created=NOW - 60)


class World:
    """A clock, and a runtime whose pods are a function of it."""

    def __init__(self, ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.log = RecordedLog()
        self.pods: Callable[[float], list[Sandbox]] = lambda _: [OLD]
        self.started: Callable[[float], list[Container]] = lambda _: [RUNNING]
        self.timeouts: list[float] = []
        self.ctx = replace(
            ctx, clock=lambda: self.now, sleep=self.sleep, wall=lambda: NOW + self.now,
            log=self.log,
        )  # fmt: skip

        @contextmanager
        def questions(_: str, __: str, timeout: float) -> Iterator[World]:
            self.timeouts.append(timeout)
            yield self

        monkeypatch.setattr(client, "pod_questions", questions)
        monkeypatch.setattr(quiet_moment, "wait", WAIT)

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds

    def sandboxes(self) -> tuple[Sandbox, ...]:
        return tuple(self.pods(self.now))

    def containers(self) -> tuple[Container, ...]:
        return tuple(self.started(self.now))

    def wait(self, *, touched: bool = False) -> float:
        """Seconds that were waited."""
        WAIT(self.ctx, SOCKET, quiet_moment.LIMIT, touched=touched)
        return self.now


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(Node(tmp_path, monkeypatch).context(), monkeypatch)


def test_old_pods_are_no_reason_to_wait(world: World) -> None:
    assert world.wait() == 0
    assert world.log.lines == []


def test_created_container_is_waited_for(world: World) -> None:
    """However old it is: it may be started at any moment."""
    world.started = lambda now: [UNSTARTED] if now < 7 else [RUNNING]
    assert world.wait() == pytest.approx(7, abs=0.3)
    assert world.log.events() == ["waiting for a quiet moment"]
    assert world.log.lines[0].data["unfinished"] == ["container main of ml/train"]


def test_container_of_a_dead_sandbox_is_not_waited_for(world: World) -> None:
    """Its sandbox is dead, and stays listed until the kubelet collects it."""
    world.pods = lambda _: [replace(OLD, ready=False)]
    world.started = lambda _: [UNSTARTED]
    assert world.wait() == 0


@pytest.mark.parametrize("what", ["pod", "container"])
def test_young_pods_and_containers_are_waited_for(what: str, world: World) -> None:
    """A pod without a container yet, and a container that has just been started."""
    if what == "pod":
        world.pods = lambda _: [replace(OLD, created=NOW - 0.5)]
        world.started = lambda _: []
    else:
        world.started = lambda _: [replace(RUNNING, created=NOW - 0.5)]
    assert world.wait() == pytest.approx(quiet_moment.YOUNG - 0.5, abs=0.3)


def test_time_in_the_future_is_no_age(world: World) -> None:
    """What was created in an hour says nothing of its age."""
    world.pods = lambda _: [replace(OLD, created=NOW + 3600)]
    assert world.wait() == 0


def test_restart_happens_when_the_wait_is_over(world: World) -> None:
    """The restart happens all the same, and the log says beside what."""
    world.started = lambda _: [UNSTARTED]
    assert world.wait() == quiet_moment.LIMIT
    assert world.log.events() == ["waiting for a quiet moment", "restart without a quiet moment"]
    assert "ml/train" in world.log.lines[-1].data["unfinished"][0]
    assert all(0 < timeout <= 5 for timeout in world.timeouts)
    assert world.wait() == quiet_moment.LIMIT, "the time is up: nobody is asked again"
    assert len(world.log.lines) == 2


def test_runtime_that_does_not_answer_makes_no_pods(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: object) -> None:
        raise Unreachable("cannot reach it")

    monkeypatch.setattr(client, "pod_questions", nobody)
    assert world.wait() == 0


@pytest.mark.parametrize("touched", [False, True])
def test_signal_ends_the_wait(touched: bool, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the wait, before the first write and after it."""
    world.started = lambda _: [UNSTARTED]
    monkeypatch.setattr(signal, "sigpending", lambda: {signal.SIGTERM})
    with pytest.raises(Refused if touched else SystemExit):
        world.wait(touched=touched)
    assert world.now == 0


def test_signal_before_the_restart_undoes_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are undone, and nothing was restarted."""
    node = Node(tmp_path, monkeypatch)
    world = World(node.context(), monkeypatch)
    before = node.tree(), node.status()
    world.pods = lambda _: [OLD] if node.tree() == before[0] else [replace(OLD, created=NOW)]
    monkeypatch.setattr(
        signal, "sigpending", lambda: set() if node.tree() == before[0] else {signal.SIGTERM}
    )
    monkeypatch.setattr(node, "context", lambda: world.ctx)
    with pytest.raises(Refused, match="told to stop"):
        node.apply()
    assert (node.tree(), node.status()) == before
    assert node.restarts == 0
    assert world.ctx.store.journal() is None


def test_nothing_is_touched_while_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, journal and readiness are as before until the moment is there; a pod that comes while
    files are written is waited for too, within the same time."""
    node = Node(tmp_path, monkeypatch)
    world = World(node.context(), monkeypatch)
    before, seen = (node.tree(), node.status()), []

    def pods(now: float) -> list[Sandbox]:
        seen.append((node.tree(), node.status()))
        written = node.tree() != before[0]
        return [replace(OLD, created=NOW + now)] if now < 5 or (written and now < 9) else [OLD]

    world.pods = pods
    monkeypatch.setattr(node, "context", lambda: world.ctx)
    node.apply()
    assert seen[0] == before
    assert seen.count(before) > 20
    assert node.restarts == 1
    assert 9 <= world.now < 12
