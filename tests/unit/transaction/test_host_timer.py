"""The timer on the host undoes a change whose agent is gone, with the host's own mv and rm."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.cri.process import Process
from agent.errors import RolledBack
from agent.host import files
from agent.host.files import FileState
from agent.host.paths import HostPath, HostRoot
from agent.plan.context import Context
from agent.runtimes.restart import Restart
from agent.systemd import units
from agent.systemd.units import RESTART_TIMEOUT, SystemdError, Ties, Timer, Unit
from agent.transaction import change, host_timer, recover
from agent.transaction.change import NotAccepted, Transaction
from agent.transaction.host_timer import FIRED, MARGIN
from tests.unit.support.faults import Faults, Killed
from tests.unit.support.made_node import NEW, OLD, SETTINGS, STATUS, Node
from tests.unit.support.recorded_log import RecordedLog


class Contained(HostRoot):
    """A host whose root we see as another one, here by accident under the same name."""

    @property
    def is_host(self) -> bool:
        return False


class Systemd:
    """Timers that fire when told to, with the machine's own programs; a restart is the node's."""

    def __init__(self, node: ContainedNode) -> None:
        self.node = node
        self.timers: dict[str, Timer] = {}
        self.stopped: list[str] = []
        self.broken = False

    def unit(self, name: str) -> Unit:
        return Unit(name, "loaded", "active")

    def ties(self, name: str) -> Ties:
        return Ties()

    def start(self, name: str) -> None:
        raise AssertionError(name)

    def restart(self, name: str, timeout: float = RESTART_TIMEOUT) -> None:
        self.node.act()

    def start_timer(self, timer: Timer) -> None:
        if self.broken:
            raise SystemdError("access denied")
        self.timers[timer.name] = timer

    def stop(self, name: str) -> None:
        self.stopped.append(name)
        self.timers.pop(name.removesuffix(".timer"), None)

    def fire(self) -> None:
        """The time of every timer has come."""
        for timer in list(self.timers.values()):
            self.run(timer)

    def run(self, timer: Timer) -> None:
        """What systemd does with a list of commands."""
        for command in timer.commands:
            program = command.argv[0]
            if program.endswith("/systemctl"):
                if command.argv[1] == "restart":
                    self.node.act()
                continue
            done = subprocess.run(command.argv, check=False, stderr=subprocess.DEVNULL)
            if done.returncode and not command.may_fail:
                return


class ContainedNode(Node):
    """The made-up node, with the agent in a container of it."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.systemd = Systemd(self)
        self.log = RecordedLog()
        super().__init__(directory, monkeypatch)
        # Not each machine has one; it is found and never run, see `Systemd.run`.
        (directory / "systemctl").touch(0o755)
        monkeypatch.setattr(host_timer, "_FOLDERS", (str(directory), *host_timer._FOLDERS))

    def context(self) -> Context:
        return replace(
            super().context(),
            host=Contained("/"),
            log=self.log,
        )

    def reach(self, host: HostRoot, unit: str) -> tuple[units.Systemd, Unit]:
        return self.systemd, self.systemd.unit(unit)

    def reset(self) -> None:
        super().reset()
        self.systemd.timers.clear()

    def carry_out(self, act: Callable[[Process | None], None], kind: Any = "systemd") -> None:
        """The change, with a restart of the test's."""
        way = Restart(kind, "c.service", act)
        request = self.request(way)
        change.carry_out(self.context(), request)

    def lost(self) -> Timer:
        """The agent is killed right after the restart; the switch that it leaves."""

        def act(process: Process | None) -> None:
            self.act(process)
            raise Killed

        with pytest.raises(Killed):
            self.carry_out(act)
        (timer,) = self.systemd.timers.values()
        return timer

    def guards(self) -> list[str]:
        return [path.name for path in (self.directory / "state").glob("switch-*")]


@pytest.fixture
def stride(request: pytest.FixtureRequest) -> int:
    """Every call with --long, else every third one."""
    return 1 if request.config.getoption("--long") else 3


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ContainedNode:
    return ContainedNode(tmp_path, monkeypatch)


def test_timer_is_set_before_the_restart_and_gone_after_the_proof(node: ContainedNode) -> None:
    """One timer, with the time that a proof takes and some more; nothing of it is left."""
    seen: list[Timer] = []

    def act(process: Process | None) -> None:
        seen.extend(node.systemd.timers.values())
        assert len(node.guards()) == 1
        ctx = node.context()
        journal = ctx.store.journal()
        assert journal is not None
        switch = Transaction(ctx, replace(journal, kind="crio")).switch
        crio = switch.timer("crio.service", SETTINGS.proof_timeout)
        assert crio.delay == SETTINGS.proof_timeout + MARGIN + 90, "it waits for its containers"
        node.act(process)

    node.carry_out(act)
    (timer,) = seen
    assert timer.delay == SETTINGS.proof_timeout + MARGIN
    assert node.systemd.stopped == list(timer.units)
    assert (node.systemd.timers, node.guards(), node.strays()) == ({}, [], [])
    node.systemd.run(timer)
    assert node.tree() == node.loaded == NEW, "a switch that could not be stopped does nothing"
    assert node.restarts == 1


def test_timer_undoes_for_an_agent_that_is_gone(node: ContainedNode) -> None:
    """Old bytes, modes and directories, and a runtime on them; the next start takes note."""
    node.verdict = "dead"
    timer = node.lost()
    for _ in range(2):  # twice is once
        node.systemd.run(timer)
        assert node.tree() == node.loaded == OLD
        assert node.modes() == {0o640}
        assert not (node.etc / "conf.d").exists()
        assert node.restarts == 2
    assert recover.recover(node.context()).outcome == "undone"
    assert node.restarts == 2, "it runs on its old files already"
    assert [item.reason for item in node.context().store.failures().values()] == [FIRED]
    assert (node.guards(), node.strays(), node.status()) == ([], [], STATUS)
    assert node.systemd.timers == {}


def test_agent_that_comes_back_in_time_proves_the_change(node: ContainedNode) -> None:
    """The runtime is right: it is proven, and the switch has nothing more to do."""
    timer = node.lost()
    assert recover.recover(node.context()).outcome == "committed"
    node.systemd.run(timer)
    assert node.tree() == node.loaded == NEW
    assert (node.guards(), node.strays()) == ([], [])


def test_timer_that_fires_during_the_proof_undoes_the_change(node: ContainedNode) -> None:
    """What it has begun is finished by us: the change is undone, with one answer for it."""

    def act(process: Process | None) -> None:
        node.act(process)
        if node.restarts == 1:
            with pytest.MonkeyPatch.context() as patch:
                # Files are back, and the runtime has not been told yet.
                patch.setattr(node, "act", lambda: None)
                node.systemd.fire()

    with pytest.raises(NotAccepted, match="the timer on the host"):
        node.carry_out(act)
    assert node.tree() == node.loaded == OLD
    assert (node.guards(), node.strays(), node.systemd.timers) == ([], [], {})


@pytest.mark.parametrize("verdict", ["good", "dead"])
def test_change_killed_before_any_call_is_old_or_new_after_the_timer(
    verdict: str, node: ContainedNode, stride: int
) -> None:
    """Whatever the switch finds, the next start ends in old or new."""
    node.verdict = verdict
    for k in range(1, node.calls() + 1, stride):
        node.reset()
        assert node.outcome(Faults.killed(k)) == "Killed"
        node.systemd.fire()
        node.check_recovery()
        assert node.guards() == []


def test_half_an_undo_is_finished_by_the_switch(node: ContainedNode) -> None:
    """An agent that dies while it undoes leaves the rest to the switch."""
    node.verdict = "dead"
    timer = node.lost()
    (node.etc / ".config.toml.toolkit-agent-undo~").rename(node.etc / "config.toml")
    node.systemd.run(timer)
    assert node.tree() == node.loaded == OLD


def test_host_without_timers_gets_the_change_all_the_same(node: ContainedNode) -> None:
    """Logged; the change goes on without."""
    node.systemd.broken = True
    node.carry_out(node.act)
    assert node.tree() == node.loaded == NEW
    assert "no switch on the host" in node.log.events()
    assert node.guards() == []


@pytest.mark.parametrize("name", ["a b", "a$b", "a%b", "a'b", "a\\b"])
def test_name_that_systemd_could_misread_sets_no_timer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No command line is made of it."""
    (tmp_path / name).mkdir()
    node = ContainedNode(tmp_path / name, monkeypatch)
    node.carry_out(node.act)
    assert node.tree() == NEW
    assert "no switch on the host" in node.log.events()
    assert "switch on the host set" not in node.log.events()


def test_signal_needs_no_timer(node: ContainedNode) -> None:
    """What is no unit of systemd is restarted by something that we do not know."""
    node.carry_out(node.act, "signal")
    assert not [event for event in node.log.events() if "switch" in event]


def test_failed_restart_keeps_the_timer_until_all_is_back(node: ContainedNode) -> None:
    """It is a net for the rollback too."""
    node.verdict = "bad"
    armed: list[int] = []

    def act(process: Process | None) -> None:
        armed.append(len(node.systemd.timers))
        node.act(process)

    with pytest.raises(RolledBack):
        node.carry_out(act)
    assert armed == [1, 1]
    assert node.systemd.timers == {}


@pytest.mark.parametrize("reserved", [True, False])
def test_timer_brings_originals_back_from_outside(
    reserved: bool, node: ContainedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside CRI-O's drop-ins nothing may lie: each is brought back in one step from outside, also
    where only the host may write there."""
    above, stage = str(node.etc.parent), files.stage
    plain = node.changes
    outside = HostPath(above, above)
    monkeypatch.setattr(
        node, "changes", lambda: tuple(replace(c, outside=outside) for c in plain())
    )

    def elsewhere(path: str, state: FileState, name: str | None = None) -> str:
        if not reserved and os.path.dirname(path) == above:
            raise OSError(errno.EROFS, "read-only")
        return stage(path, state, name)

    monkeypatch.setattr(files, "stage", elsewhere)
    node.verdict = "dead"
    timer = node.lost()
    moves = [c.argv for c in timer.commands if c.argv[0].endswith("/mv")]
    assert all(os.path.dirname(words[-2]) == above for words in moves[1:])
    assert len(moves) > 1
    node.systemd.run(timer)
    assert node.tree() == node.loaded == OLD
    assert node.modes() == {0o640}
    assert recover.recover(node.context()).outcome == "undone"
    assert node.strays() == []
