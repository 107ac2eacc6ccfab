"""One convergence of `run` hands its result back to the waiting process."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.cri.client import Answer
from agent.daemon import child, repeat_filter, supervisor
from agent.decide import Evidence, Question, Switch, decide
from agent.errors import AgentError, PutOff, Refused, RestartBudget, RollbackFailed, RolledBack
from agent.host.paths import HostPath
from agent.log import TransactionLog
from agent.plan.context import Context
from agent.plan.propose import Proposal
from agent.runtimes.base import Endpoint, Runtime
from agent.transaction.converge import Outcome
from tests.unit.support.made_node import Node
from tests.unit.support.recorded_log import RecordedLog


def fails(*_: object) -> None:
    raise Refused("cannot use it: it is broken")


def crashes(*_: object) -> None:
    raise ZeroDivisionError


def waits(*_: object) -> None:
    raise PutOff("cannot be ready yet: restart put off", 7.5)


class Child:
    """Runs convergences one after the other, as the supervisor would"""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.log = RecordedLog()
        self.ctx = replace(
            Node(directory, monkeypatch).context(),
            clock=lambda: self.now,
            log=self.log,
        )
        monkeypatch.setattr(child, "watch_paths", lambda *_: ("/a", "/b"))
        self._monkeypatch = monkeypatch
        self._told = os.memfd_create("told")

    def work(self, converge: Callable[..., object]) -> tuple[int, bytes]:
        """Exit code, and what was handed back."""
        self._monkeypatch.setattr(child, "converge", converge)
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        try:
            code = child.work(self.ctx, lock=self._told, pipe=writer, logged=self._told, since=0.0)
        except ZeroDivisionError:
            code = 1
        found = os.read(reader, 1000)
        os.close(reader)
        return code, found

    def errors(self) -> list[str]:
        return [line.data["error"] for line in self.log.lines if line.event == "failed"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    return Child(tmp_path, monkeypatch)


def test_failure_tells_what_to_watch_too(run: Child) -> None:
    """Else the next try would come with the time only, which is soon for the first failures and
    late for the others."""
    assert run.work(fails) == (3, b"cannot use it: it is broken\0/a\0/b\0")
    assert run.work(crashes) == (1, b"\0/a\0/b\0")


def test_failure_is_said_once_in_ten_minutes(run: Child) -> None:
    """Another cause at once; the same one again when it has lasted, or when it was over."""
    for _ in range(3):
        run.work(fails)
    assert run.errors() == ["cannot use it: it is broken"]
    run.now += repeat_filter.AGAIN + 1
    run.work(fails)
    assert len(run.errors()) == 2
    run.work(lambda _: done())
    run.work(fails)
    assert len(run.errors()) == 3
    level = set(run.log.events())
    assert level == {"failed", "converged"}


def test_warning_is_said_once_in_ten_minutes(run: Child) -> None:
    """Each for itself; a deed is said whenever it is done."""

    def warns(ctx: Context) -> None:
        ctx.log.warning("warning of the plan", text="a")
        ctx.log.warning("warning of the plan", text="b")
        ctx.log.info("runtime restarted", kind="systemd")
        fails()

    for _ in range(2):
        run.work(warns)
    events = run.log.events()
    assert events.count("warning of the plan") == 2
    assert events.count("runtime restarted") == 2


def test_warning_about_a_change_is_said_for_each_change(run: Child) -> None:
    """The same cause again, but of another change."""
    for transaction in ("0a", "0b", "0b"):

        def warns(ctx: Context, transaction: str = transaction) -> None:
            TransactionLog(ctx.log, transaction).warning("change not proven", reason="it died")
            fails()

        run.work(warns)
    assert run.log.events().count("change not proven") == 2


def test_restart_that_is_put_off_is_no_failure(run: Child) -> None:
    """No failure and not ready; the time is watched."""
    assert run.work(waits) == (
        supervisor.NOT_YET, b"cannot be ready yet: restart put off\0@7.5\0/a\0/b\0"
    )  # fmt: skip
    run.work(waits)
    assert run.log.events() == ["restart put off"]


def test_end_of_the_hour_is_watched_where_the_restarts_are_used_up(run: Child) -> None:
    def refuses(ctx: Context) -> None:
        assert ctx.has_restart_budget
        raise RestartBudget("cannot apply: restarted 3 times", 7.5)

    assert run.work(refuses) == (3, b"cannot apply: restarted 3 times\0@7.5\0/a\0/b\0")


@pytest.mark.parametrize(
    ("error", "does"),
    [
        (Refused("cannot"), "nothing"),
        (RolledBack("cannot"), "undid its change"),
        (RollbackFailed("cannot"), "changed the node and could not undo it"),
    ],
)
def test_last_line_of_a_failure_has_the_decision(error: AgentError, does: str, run: Child) -> None:
    """The decision is in it, where one was made."""

    def decides(ctx: Context) -> None:
        ctx.on_proposal(done().proposal)
        raise error

    run.work(decides)
    _, event, line = run.log.lines[-1]
    assert event == "failed"
    assert line == {
        "runtime": "containerd", "version": "2.1.9", "row": 3, "native": True, "default": "runc",
        "error": "cannot", "code": error.code, "exit": error.exit_code, "ready": False,
        "done": does,
    }  # fmt: skip


def test_restart_of_somebody_else_is_waited_for(run: Child) -> None:
    code, found = run.work(lambda _: done(pending=True))
    assert code == supervisor.NOT_YET
    assert found.startswith(b"cannot publish yet: ")
    assert run.log.lines[-1].data["ready"] is False


def test_convergence_ends_with_a_summary_line(run: Child) -> None:
    """Also where nothing was done."""
    assert run.work(lambda _: done()) == (0, b"\0/a\0/b\0")
    run.work(lambda _: done(changed=("/etc/a",), restarted=True, recovered="undone"))
    (_, event, first), (_, _, second) = run.log.lines
    assert event == "converged"
    assert first == {
        "runtime": "containerd", "version": "2.1.9", "row": 3, "native": True, "default": "runc",
        "ready": True, "done": "nothing to do", "changed": [],
    }  # fmt: skip
    assert second["done"] == "undid an earlier change, changed 1 files, restarted the runtime"


def done(**given: Any) -> Outcome:
    """A convergence that succeeded."""
    shown = {"containerd": {"runtimes": {"runc": {}}, "defaultRuntimeName": "runc"}}
    answer = Answer("containerd", "2.1.9", True, shown, ())
    socket = HostPath("/none/c.sock", "/none/c.sock")
    runtime = Runtime(Endpoint("containerd", socket), None, answer)
    evidence = (Evidence("cri-status", Switch.TRUE, ("/etc/cdi",)),)
    decision = decide(Question(version="2.1.9", evidence=evidence))
    proposal = Proposal(runtime, None, decision, ())
    return Outcome(proposal, **given)
