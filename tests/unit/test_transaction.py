"""A change that fails or is killed at any instant leaves the node old or new, and can be finished.

The node is made up: three files (one that changes, one that comes, one that goes), a runtime that
loads them when it is restarted, and a disk whose calls fail as told.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.engine import change, recover, restart, transaction
from agent.engine.change import NotAccepted, Request
from agent.engine.context import Context
from agent.engine.node import Endpoint, Runtime
from agent.engine.plan import Change
from agent.engine.proof import Identity
from agent.engine.restart import Kind, Restart, RestartFailed
from agent.engine.state import Entry, Journal, Memory, Original, Store, memory_to_json
from agent.engine.wanted import Wanted
from agent.errors import AgentError, Refused, RollbackFailed, Unreachable
from agent.host import files
from agent.host.files import FileState
from agent.host.paths import HostPath, HostRoot
from agent.observe import cri, process
from agent.observe.cri import Answer
from agent.observe.process import Process
from agent.settings import resolve
from agent.status import READY, TWIN, Publisher
from tests.unit.faults import CODES, Faults, Killed

OLD = {"config.toml": "old", "goes.toml": "goes"}
NEW = {"config.toml": "new", "conf.d/99-nvidia.toml": "comes"}
NAMES = ("conf.d/99-nvidia.toml", "goes.toml", "config.toml")  # the root file last
WANTED = Wanted({"nvidia": {"options": {"BinaryName": "/n"}}})
BEFORE = Wanted({}, "runc", False, ("nvidia",))
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
        monkeypatch.setattr(cri, "ask", lambda *_, **__: self.ask())
        monkeypatch.setattr(restart, "resume", lambda *_: self.way())
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
        self.context().store.create()
        self.loaded, self.pid, self.restarts = OLD, 100, 0

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
        settings = replace(resolve({}, {}, "toolkit-agent"), proof_timeout=5.0)
        host = HostRoot("/")
        return Context(
            settings=settings,
            host=host,
            store=Store(str(self.directory / "state"), host.agent_path),
            publisher=Publisher(str(self.directory / "status")),
            clock=lambda: self.clock,
            sleep=self.sleep,
        )

    def sleep(self, seconds: float) -> None:
        """Pass time."""
        self.clock += seconds

    def find(self) -> Process | None:
        """The process behind the socket."""
        if self._dead():
            raise Unreachable("cannot reach it")
        found = Process(self.pid, self.pid * 2, "/c", None, "c.service", ("c",), "/proc")
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

    def apply(self, kind: Kind | None = "systemd") -> change.Done:
        """Carry the change out; `kind` None: only files have to be written."""
        ctx = self.context()
        socket = HostPath("/c.sock", "/c.sock")
        request = Request(
            purpose="apply",
            runtime=Runtime(Endpoint("containerd", socket), self.find(), self.ask()),
            changes=self.changes(),
            restart=self.way(kind) if kind else None,
            wanted=WANTED,
            before=BEFORE,
            memory=ctx.store.memory(),
            fingerprint="f",
        )
        return change.carry_out(ctx, request)

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


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


# --- the whole change --------------------------------------------------------------------------


def test_change_that_holds(node: Node) -> None:
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
        assert store.bytes_of(digest) == text.encode()


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


def test_restart_that_fails_is_undone(node: Node) -> None:
    """systemctl said no: the old files come back and are started again."""
    first = [RestartFailed("systemctl restart c.service: no")]

    def act(running: Process | None) -> None:
        if first:
            raise first.pop()
        node.act(running)

    ctx = node.context()
    runtime = Runtime(Endpoint("containerd", node.path("s")), node.find(), node.ask())
    way = Restart("systemd", "c.service", act)
    request = Request("apply", runtime, node.changes(), way, WANTED, BEFORE, Memory(), "f")
    with pytest.raises(NotAccepted, match="systemctl restart"):
        change.carry_out(ctx, request)
    assert node.tree() == node.loaded == OLD


@pytest.mark.parametrize("verdict", ["good", "bad"])
@pytest.mark.parametrize("code", CODES, ids=lambda code: str(errno.errorcode[code]))
def test_one_failing_call(code: int, verdict: str, node: Node) -> None:
    """Whichever it is: refused with nothing touched, or undone and proven, or done."""
    node.verdict = verdict
    # Every second one, to be quick; neighbouring codes take the others.
    shift = CODES.index(code)
    for k in range(1 + shift % 2, node.calls() + 1, 2):
        node.reset()
        outcome = node.outcome(Faults.failing(k, code))
        if outcome == "Done":
            assert node.tree() == node.loaded == NEW
        elif outcome == "Refused":
            assert node.tree() == OLD
            assert node.restarts == 0
        elif outcome == "NotAccepted":
            assert node.tree() == node.loaded == OLD
            assert node.restarts == 2
        else:
            assert outcome == "RollbackFailed"
        if outcome in ("Refused", "NotAccepted"):
            assert not (node.etc / "conf.d").exists()
            assert node.modes() == {0o640}
        assert len(node.strays()) <= 1, node.strays()
        node.check_recovery()


@pytest.mark.parametrize("verdict", ["good", "bad"])
def test_disk_that_is_full_from_some_moment_on(verdict: str, node: Node) -> None:
    """An undo needs no room: whenever it fills up, the files are whole and the runtime on them."""
    node.verdict = verdict
    for k in range(1, node.calls() + 1):
        node.reset()
        outcome = node.outcome(Faults.full_disk(k))
        assert node.tree() == (NEW if outcome == "Done" else OLD)
        assert outcome in ("Done", "Refused" if node.restarts == 0 else "NotAccepted")
        assert node.restarts == 0 or node.loaded == node.tree()
        node.check_recovery()


def test_disk_that_becomes_read_only_at_some_moment(node: Node) -> None:
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
            assert outcome in ("NotAccepted", "RollbackFailed")
        node.check_recovery()


@pytest.mark.parametrize("verdict", ["good", "bad", "dead"])
def test_killed_before_any_call(verdict: str, node: Node) -> None:
    """The next start finishes or undoes, and then the whole change can be made as ever."""
    node.verdict = verdict
    for k in range(1, node.calls() + 1):
        node.reset()
        assert node.outcome(Faults.killed(k)) == "Killed"
        if node.tree() != OLD:
            # With a restart ahead nobody may be told that the node is ready.
            assert READY not in node.status() or node.context().store.journal() is None
        node.check_recovery()
        if verdict == "good" and node.tree() == OLD:
            assert node.outcome(Faults.none()) == "Done"
            assert node.tree() == node.loaded == NEW


def test_killed_again_while_recovering(node: Node) -> None:
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
    """Exit 6, old files, the journal stays; when the runtime is back the next start ends it."""
    down = [True]

    def find() -> Process | None:
        raise Unreachable("cannot reach it")

    seen = node.find
    node.find = lambda: find() if down[0] and node.restarts else seen()  # type: ignore[method-assign]
    with pytest.raises(RollbackFailed, match=r"^cannot bring the runtime back"):
        node.apply()
    assert node.tree() == OLD
    assert READY not in node.status()
    down[0] = False
    node.check_recovery()
    assert node.status() == STATUS


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
    runtime = Runtime(Endpoint("containerd", node.path("s")), node.find(), node.ask())
    way = Restart("systemd", "c", act)
    request = Request("apply", runtime, node.changes(), way, WANTED, BEFORE, Memory(), "f")
    with pytest.raises(RollbackFailed, match=r"^cannot undo .*config\.toml.*somebody else"):
        change.carry_out(ctx, request)
    assert node.tree() == {**OLD, "config.toml": "the admin's"}
    assert node.restarts == 2
    # Told once; it does not keep the next change from being made.
    assert recover.recover(node.context()).outcome is None


def test_file_that_changed_since_the_plan_is_not_written(node: Node) -> None:
    """Refused, with what was written until then undone."""
    ctx = node.context()
    runtime = Runtime(Endpoint("containerd", node.path("s")), node.find(), node.ask())
    changes = node.changes()
    (node.etc / "config.toml").write_text("the admin's")
    request = Request("apply", runtime, changes, node.way(), WANTED, BEFORE, Memory(), "f")
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
    runtime = Runtime(Endpoint("containerd", node.path("s")), node.find(), node.ask())
    request = Request("apply", runtime, changes, node.way(), WANTED, BEFORE, Memory(), "f")
    with pytest.raises((Refused, RollbackFailed), match=r"99-nvidia\.toml.*somebody"):
        change.carry_out(ctx, request)
    assert node.tree() == {**OLD, "conf.d/99-nvidia.toml": "the admin's"}


# --- the steps ---------------------------------------------------------------------------------


def journal_of(node: Node, entries: tuple[Entry, ...]) -> Journal:
    """A journal with these entries and nothing else of interest."""
    memory = memory_to_json(Memory())
    return Journal(
        "apply", "b", "prepared", entries, {}, {}, None, "containerd", "/s", None, memory, "f"
    )


def test_undo_brings_back_bytes_mode_and_owner(node: Node) -> None:
    """Also where the copy beside the file is gone: the store has the bytes."""
    store, changes = node.context().store, node.changes()
    for lost in (False, True):
        journal = journal_of(node, transaction.entries(store, changes, Memory()))
        transaction.reserve(changes, journal)
        transaction.write(changes, journal)
        assert transaction.is_written(journal)
        if lost:
            for entry in journal.entries:
                files.discard(entry.undo)
        assert transaction.undo(store, journal) is None
        assert node.tree() == OLD
        assert node.modes() == {0o640}
        assert node.strays() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: run tests/run as root")
@pytest.mark.parametrize("lost", [False, True])
def test_undo_brings_back_the_owner(lost: bool, node: Node) -> None:
    """A file of somebody else is theirs again."""
    os.chown(node.etc / "config.toml", 12, 34)
    store, changes = node.context().store, node.changes()
    journal = journal_of(node, transaction.entries(store, changes, Memory()))
    transaction.reserve(changes, journal)
    transaction.write(changes, journal)
    if lost:
        files.discard(journal.entries[-1].undo)
    transaction.undo(store, journal)
    found = (node.etc / "config.toml").stat()
    assert (found.st_uid, found.st_gid) == (12, 34)


def test_undo_on_a_full_disk(node: Node) -> None:
    """It makes no file and writes no byte."""
    store, changes = node.context().store, node.changes()
    journal = journal_of(node, transaction.entries(store, changes, Memory()))
    transaction.reserve(changes, journal)
    transaction.write(changes, journal)
    with Faults.full_disk().installed():
        assert transaction.undo(store, journal) is None
    assert node.tree() == OLD


def test_undo_twice_is_undo_once(node: Node) -> None:
    """A recovery that was interrupted begins again."""
    store, changes = node.context().store, node.changes()
    journal = journal_of(node, transaction.entries(store, changes, Memory()))
    transaction.reserve(changes, journal)
    transaction.write(changes, journal)
    assert transaction.undo(store, journal) is None
    assert transaction.undo(store, journal) is None
    assert node.tree() == OLD


def test_leftovers_of_earlier_crashes_do_not_disturb(node: Node) -> None:
    """Copies with other bytes under our names are replaced, temporary files ignored."""
    (node.etc / ".config.toml.toolkit-agent-undo~").write_text("of an earlier crash")
    (node.etc / ".config.toml.0123456789ab~").write_text("of an earlier crash")
    (node.etc / ".config.toml.toolkit-agent-undo~").chmod(0o600)
    node.verdict = "bad"
    with pytest.raises(NotAccepted):
        node.apply()
    assert node.tree() == OLD
    assert node.modes() == {0o640}
    assert node.strays() == [".config.toml.0123456789ab~"]


def test_directories_of_somebody_else_stay(node: Node) -> None:
    """What was there before, or has something in it by now, is not removed by an undo."""
    store, changes = node.context().store, node.changes()
    journal = journal_of(node, transaction.entries(store, changes, Memory()))
    transaction.reserve(changes, journal)
    transaction.write(changes, journal)
    (node.etc / "conf.d/admin.toml").write_text("theirs")
    assert transaction.undo(store, journal) is None
    assert node.tree() == {**OLD, "conf.d/admin.toml": "theirs"}


def entry(before: str | None, after: str | None, made: int = 0) -> Entry:
    """A ledger's line of /etc/f."""
    return Entry("/etc/f", "/host/etc/f", before, after, 0o644, 0, 0, made)


def test_first_original_is_remembered_for_ever() -> None:
    """Two changes of our own: `revert` goes back before the first."""
    once = transaction.remembered(Memory(), (entry("a", "b", made=1),))
    assert once.files == {"/etc/f": Original("a", 0o644, 0, 0, "b", made=1)}
    twice = transaction.remembered(once, (entry("b", "c"),))
    assert twice.files == {"/etc/f": Original("a", 0o644, 0, 0, "c", made=1)}


def test_edit_between_two_changes_is_remembered() -> None:
    """And not forgotten by a third one."""
    memory = transaction.remembered(Memory(), (entry("a", "b"),))
    memory = transaction.remembered(memory, (entry("x", "c"),))
    memory = transaction.remembered(memory, (entry("c", "d"),))
    assert memory.files["/etc/f"].edited


def test_file_that_is_back_at_its_original_is_forgotten() -> None:
    """There is nothing to undo any more."""
    memory = transaction.remembered(Memory(default="crun"), (entry(None, "b"),))
    memory = transaction.remembered(memory, (entry("b", None),))
    assert memory == Memory(default="crun")


def test_identity_is_pid_and_start_time(node: Node) -> None:
    """What the journal says of the old process is what the proof compares."""
    found: Identity = node.context().identity(Endpoint("containerd", node.path("s")))
    assert found == (100, 200)
