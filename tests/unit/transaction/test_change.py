"""A change that fails or is killed at any instant leaves the node old or new."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from agent.cri import process
from agent.cri.process import Process
from agent.errors import Refused, RollbackFailed, RolledBack, Unreachable
from agent.runtimes import restart
from agent.runtimes.restart import Restart, RestartFailed
from agent.state.store import Memory
from agent.status import READY
from agent.transaction import change, recover
from agent.transaction.change import NotAccepted
from tests.unit.support.faults import CODES, Faults, Killed
from tests.unit.support.made_node import NAMES, NEW, OLD, STATUS, Node, ticks
from tests.unit.support.recorded_log import RecordedLog


@pytest.fixture
def stride(request: pytest.FixtureRequest) -> int:
    """Every how many calls one fails: all of them in a long run."""
    return 1 if request.config.getoption("--long") else len(CODES)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


# --- the whole change --------------------------------------------------------------------------


def test_proven_change_leaves_files_memory_and_originals(node: Node) -> None:
    """Files, memory and originals; no journal, nothing left beside the files, not ready yet."""
    done = node.apply()
    assert (done.restarted, done.pending) == (True, False)
    assert node.tree() == node.loaded == NEW
    assert node.strays() == []
    assert node.status() == {}
    store = node.context().store
    assert store.journal() is None
    remembered = store.memory().files
    assert {Path(host).name for host in remembered} == {Path(name).name for name in NAMES}
    for name, text in OLD.items():
        digest = remembered[str(node.etc / name)].digest
        assert digest is not None
        assert store.original_bytes(digest) == text.encode()


@pytest.mark.parametrize("verdict", ["bad", "dead"])
def test_change_that_is_not_proven_is_undone(verdict: str, node: Node) -> None:
    """Old bytes, modes and listing, the runtime on them, and what was published before."""
    node.verdict = verdict
    with pytest.raises(NotAccepted, match=r"^cannot apply: .*old configuration is back"):
        node.apply()
    assert node.tree() == node.loaded == OLD
    assert sorted(p.name for p in node.etc.iterdir()) == sorted(OLD)
    assert node.modes() == {0o640}
    assert node.status() == STATUS
    assert node.restarts == 2
    assert node.context().store.memory() == Memory()


def test_change_without_a_restart_keeps_readiness(node: Node) -> None:
    """The running runtime is right: files are written, nothing is withdrawn, nothing restarted."""
    done = node.apply(None)
    assert not done.restarted
    assert node.tree() == NEW
    assert node.restarts == 0
    assert node.status() == STATUS


def test_readiness_goes_after_the_journal_and_before_the_first_change(node: Node) -> None:
    """A journal first: without it nobody would bring the readiness back."""
    faults = Faults.none()
    node.outcome(faults)
    order = faults.called("rename", "unlink")
    assert order.index(("rename", "journal.json")) < order.index(("unlink", READY))
    assert order.index(("unlink", READY)) < order.index(("rename", "99-nvidia.toml"))
    written = [name for call, name in order if name in ("99-nvidia.toml", "config.toml")]
    assert written == ["99-nvidia.toml", "config.toml"]


def test_old_process_that_still_answers_is_waited_for(node: Node) -> None:
    """One that was told to end goes on for a while, on its old files: that is no verdict."""
    told: list[float] = []

    def sleep(seconds: float) -> None:
        node.sleep(seconds)
        if told and node.clock > told[0] + 2:
            told.clear()
            node.act()

    ctx = replace(node.context(), sleep=sleep)
    way = Restart("signal", "pid 100", lambda _: told.append(node.clock))
    request = node.request(way)
    assert change.carry_out(ctx, request).restarted
    assert node.tree() == node.loaded == NEW
    assert node.restarts == 1


@pytest.mark.parametrize("dies", [False, True])
def test_restart_that_fails_is_undone(dies: bool, node: Node) -> None:
    """systemctl said no. A runtime that never stopped is let alone, and nothing is held against
    the candidate; one that died of it is started again on the old files."""
    node.verdict = "dead"
    first = [RestartFailed("systemctl restart c.service: no")]

    def act(running: Process | None) -> None:
        if not first:
            node.act(running)
            return
        if dies:
            node.act(running)
        raise first.pop()

    ctx = node.context()
    way = Restart("systemd", "c.service", act)
    request = node.request(way)
    with pytest.raises(RolledBack, match="systemctl restart") as told:
        change.carry_out(ctx, request)
    assert isinstance(told.value, NotAccepted) is dies
    assert node.tree() == node.loaded == OLD
    assert node.restarts == (2 if dies else 0)


@pytest.mark.parametrize("verdict", ["good", "bad"])
@pytest.mark.parametrize("code", CODES, ids=lambda code: str(errno.errorcode[code]))
def test_any_failing_call_is_done_refused_or_undone(
    code: int, verdict: str, node: Node, stride: int
) -> None:
    """Whichever it is: refused with nothing touched, or undone and proven, or done."""
    node.verdict = verdict
    # In a short run the codes take turns; in a long run each call fails with two of them.
    stride = max(stride, 2)
    for k in range(1 + CODES.index(code) % stride, node.calls() + 1, stride):
        node.reset()
        outcome = node.outcome(Faults.failing(k, code))
        if outcome == "Done":
            assert node.tree() == node.loaded == NEW
        elif outcome == "Refused":
            assert node.tree() == OLD
            assert node.restarts == 0
        elif outcome in ("NotAccepted", "RolledBack"):
            assert node.tree() == node.loaded == OLD
            assert node.restarts == 2
        else:
            assert outcome == "RollbackFailed"
        if outcome in ("Refused", "NotAccepted", "RolledBack"):
            assert not (node.etc / "conf.d").exists()
            assert node.modes() == {0o640}
        assert len(node.strays()) <= 1, node.strays()
        node.check_recovery()


@pytest.mark.parametrize("verdict", ["good", "bad"])
def test_disk_full_from_some_moment_leaves_whole_files(
    verdict: str, node: Node, stride: int
) -> None:
    """An undo needs no room: whenever it fills up, the files are whole and the runtime on them."""
    node.verdict = verdict
    for k in range(1, node.calls() + 1, 1 if verdict == "good" else stride):
        node.reset()
        outcome = node.outcome(Faults.full_disk(k))
        assert node.tree() == (NEW if outcome == "Done" else OLD)
        undone = ("Refused",) if node.restarts == 0 else ("NotAccepted", "RolledBack")
        assert outcome in ("Done", *undone)
        assert node.restarts == 0 or node.loaded == node.tree()
        node.check_recovery()


def test_disk_read_only_from_some_moment_leaves_whole_files(node: Node) -> None:
    """What cannot be undone is told as such (6), and undone when the disk can be written again."""
    for k in range(1, node.calls() + 1):
        node.reset()
        outcome = node.outcome(Faults.read_only_disk(k))
        if outcome == "Refused":
            assert node.tree() == OLD
            assert node.restarts == 0
        elif outcome == "Done":
            assert node.tree() == NEW
        else:
            assert outcome in ("NotAccepted", "RolledBack", "RollbackFailed")
        node.check_recovery()


@pytest.mark.parametrize("verdict", ["good", "bad", "dead"])
def test_change_killed_before_any_call_is_finished_or_undone(
    verdict: str, node: Node, stride: int
) -> None:
    """The next start finishes or undoes, and then the whole change can be made as ever."""
    node.verdict = verdict
    for k in range(1, node.calls() + 1, 1 if verdict == "good" else stride):
        node.reset()
        assert node.outcome(Faults.killed(k)) == "Killed"
        if node.tree() != OLD:
            # With a restart ahead nobody may be told that the node is ready.
            assert READY not in node.status() or node.context().store.journal() is None
        node.check_recovery()
        if verdict == "good" and node.tree() == OLD:
            assert node.outcome(Faults.none()) == "Done"
            assert node.tree() == node.loaded == NEW


def test_recovery_killed_at_any_call_is_finished(node: Node) -> None:
    """A recovery is interrupted like anything else."""
    node.verdict = "dead"
    middle = node.calls() * 2 // 3
    for k in range(1, 60, 3):
        node.reset()
        node.outcome(Faults.killed(middle))
        try:
            with Faults.killed(k).installed():
                recover.recover(node.context())
        except Killed:
            pass
        node.check_recovery()
        assert node.tree() == OLD


# --- recovery ----------------------------------------------------------------------------------


def test_waiting_change_goes_on_waiting(node: Node) -> None:
    """`none`: the restart is somebody else's; the process of before proves nothing."""
    assert node.apply("none").pending
    assert recover.recover(node.context()).outcome == "awaiting-restart"
    assert node.tree() == NEW
    node.act()
    assert recover.recover(node.context()).outcome == "committed"
    assert node.tree() == NEW
    assert node.context().store.journal() is None


def test_waiting_change_whose_process_cannot_be_seen_ends(node: Node) -> None:
    """Without hostPID nobody is seen behind the socket: no waiting for ever."""
    node.seen = False
    assert node.apply("none").pending
    before = node.clock
    assert recover.recover(node.context()).outcome in ("awaiting-restart", "undone")
    assert node.clock - before <= 6


def test_given_up_waiting_is_undone(node: Node) -> None:
    """No runtime has seen the files: nothing is restarted."""
    node.apply("none")
    assert recover.give_up_waiting(node.context()).outcome == "undone"
    assert node.tree() == OLD
    assert node.restarts == 0
    assert node.status() == STATUS


def test_change_of_another_boot_is_proven_by_any_process(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reboot the runtime runs on the new files, also with the same numbers."""
    node.apply("none")
    node.loaded = NEW
    monkeypatch.setattr(process, "boot_id", lambda *_: "another boot")
    assert recover.recover(node.context()).outcome == "committed"
    assert node.tree() == NEW


def test_runtime_that_stays_down_is_told_and_tried_again(node: Node) -> None:
    """Exit 6, old files, the journal stays. It is not restarted for the same cause again; when it
    is back the next start ends it, without a restart."""
    down = [True]

    def find() -> Process | None:
        raise Unreachable("cannot reach it")

    seen = node.find
    node.find = lambda: find() if down[0] and node.restarts else seen()  # type: ignore[method-assign]
    with pytest.raises(RollbackFailed, match=r"^cannot bring the runtime back"):
        node.apply()
    assert node.tree() == OLD
    assert READY not in node.status()
    restarts = node.restarts
    for _ in range(3):
        with pytest.raises(RollbackFailed, match=r"^cannot bring the runtime back"):
            recover.recover(node.context())
    assert node.restarts == restarts
    down[0] = False
    node.started = ticks(1)  # somebody started it
    node.check_recovery()
    assert node.status() == STATUS
    assert node.restarts == restarts


def test_runtime_that_stays_down_gets_a_new_try_for_a_new_cause(node: Node) -> None:
    """Somebody repairs a file that we had changed: the runtime is started on it, once."""
    seen, alive = node.find, [False]

    def find() -> Process | None:
        if node.restarts and not alive[0]:
            raise Unreachable("cannot reach it")
        return seen()

    node.find = find  # type: ignore[method-assign]
    with pytest.raises(RollbackFailed):
        node.apply()
    (node.etc / "config.toml").write_text("the admin's")

    def act_and_live(running: Process | None = None) -> None:
        alive[0] = True
        node.loaded, node.pid, node.restarts = OLD, node.pid + 1, node.restarts + 1

    way = Restart("systemd", "c", act_and_live)
    with mock.patch.object(restart, "resume", return_value=way):
        restarts = node.restarts
        assert recover.recover(node.context()).outcome == "undone"
    assert node.restarts == restarts + 1
    assert node.tree()["config.toml"] == "the admin's"
    assert node.context().store.journal() is None


# --- edits by others ---------------------------------------------------------------------------


def edited_after_writing(node: Node, name: str, text: str) -> Callable[[Process | None], None]:
    """A restart before which somebody edits a file."""

    def act(running: Process | None) -> None:
        if node.restarts == 0:
            (node.etc / name).write_text(text)
        node.loaded = NEW if node.restarts == 0 else OLD
        node.pid += 1
        node.restarts += 1

    return act


def test_edit_of_somebody_else_is_left_alone_and_told(node: Node) -> None:
    """The others come back, the runtime is restarted, and the message names the file (6)."""
    node.verdict = "bad"
    ctx = node.context()
    act = edited_after_writing(node, "config.toml", "the admin's")
    way = Restart("systemd", "c", act)
    request = node.request(way)
    with pytest.raises(RollbackFailed, match=r"^cannot undo .*config\.toml.*somebody else"):
        change.carry_out(ctx, request)
    assert node.tree() == {**OLD, "config.toml": "the admin's"}
    assert node.restarts == 2
    # Told once; it does not keep the next change from being made.
    assert recover.recover(node.context()).outcome is None


def test_file_that_changed_since_the_plan_is_not_written(node: Node) -> None:
    """Refused, with what was written until then undone."""
    ctx = node.context()
    changes = node.changes()
    (node.etc / "config.toml").write_text("the admin's")
    request = node.request(node.way(), changes)
    with pytest.raises((Refused, RollbackFailed), match=r"config\.toml.*somebody"):
        change.carry_out(ctx, request)
    assert node.tree() == {**OLD, "config.toml": "the admin's"}
    assert node.restarts == 0
    assert node.status() == STATUS


def test_file_that_came_since_the_plan_is_not_written(node: Node) -> None:
    """A drop-in that somebody else made in the meantime stays theirs."""
    changes = node.changes()
    (node.etc / "conf.d").mkdir()
    (node.etc / "conf.d/99-nvidia.toml").write_text("the admin's")
    ctx = node.context()
    request = node.request(node.way(), changes)
    with pytest.raises((Refused, RollbackFailed), match=r"99-nvidia\.toml.*somebody"):
        change.carry_out(ctx, request)
    assert node.tree() == {**OLD, "conf.d/99-nvidia.toml": "the admin's"}


def test_readiness_of_before_a_reboot_does_not_come_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is undone as ever, and nobody knows whether the node is ready now."""
    node.verdict = "bad"
    node.outcome(Faults.killed(node.calls() * 2 // 3))
    assert node.context().store.journal() is not None
    monkeypatch.setattr(process, "boot_id", lambda *_: "another boot")
    recovered = recover.recover(node.context())
    assert (recovered.outcome, recovered.barrier) == ("undone", False)
    assert node.tree() == OLD
    assert node.status() == {}


def test_runtime_that_is_about_to_end_is_restarted_on_the_old_files(node: Node) -> None:
    """Killed when it is written that the restart is under way: one that answers tells nothing."""
    faults = Faults.none()
    node.outcome(faults)
    written = faults.called("rename")
    stages = [n for n, call in enumerate(faults.calls) if call[0] == "rename"]
    # The third time that the journal is written it says that the restart is under way.
    third = [n for n, (_, name) in zip(stages, written, strict=True) if name == "journal.json"][2]
    node.reset()
    assert node.outcome(Faults.killed(third + 2)) == "Killed"  # the call after it
    before = node.restarts
    node.check_recovery()
    assert node.tree() == node.loaded == OLD
    assert node.restarts == before + 1


def test_full_disk_is_not_held_against_a_candidate(node: Node) -> None:
    """What cannot be remembered is undone; the very same change may be tried again."""
    faults = Faults.none()
    node.outcome(faults)
    first = next(
        n for n, (name, args) in enumerate(faults.calls, 1)
        if name == "open" and ".memory.json" in str(args[0])
    )  # fmt: skip
    node.reset()
    assert node.outcome(Faults.failing(first, errno.ENOSPC)) == "RolledBack"
    assert node.tree() == node.loaded == OLD
    assert node.status() == STATUS


def test_memory_goes_back_with_the_files(node: Node) -> None:
    """It has its name already when forcing that to disk fails, and the change is undone."""
    faults = Faults.none()
    node.outcome(faults)
    named = next(
        n for n, (name, args) in enumerate(faults.calls, 1)
        if name == "rename" and args[1] == "memory.json"
    )  # fmt: skip
    node.reset()
    assert node.outcome(Faults.failing(named + 1, errno.EIO)) == "RolledBack"
    assert node.tree() == OLD
    assert node.context().store.memory() == Memory()


def test_full_disk_does_not_stop_a_recovery(node: Node) -> None:
    """A candidate that failed is undone also where that cannot be remembered."""
    node.verdict = "bad"
    node.outcome(Faults.killed(node.calls() // 2))
    with Faults.full_disk().installed():
        assert recover.recover(node.context()).outcome == "undone"
    assert node.tree() == OLD


@pytest.mark.parametrize("verdict", ["good", "bad"])
def test_recovery_logs_under_the_transaction_that_it_ends(
    verdict: str, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log is searched for the id of the change that was interrupted."""
    node.verdict = verdict

    def act(process: Process | None) -> None:
        node.act(process)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(change, "process_transaction", lambda: "the first")
        patch.setattr(node, "way", lambda *_: Restart("systemd", "c.service", act))
        with pytest.raises(Killed):
            node.apply()
    log = RecordedLog()
    recover.recover(replace(node.context(), log=log))
    assert {line.data["transaction"] for line in log.lines} == {"the first"}
    warned = {line.event for line in log.lines if line.level == "warning"}
    assert warned == (set() if verdict == "good" else {"change not proven"})
