"""The steps of a change are remembered, and an undo needs no room on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.host import files
from agent.runtimes.base import Endpoint
from agent.runtimes.proof import Identity
from agent.state.journal import Entry, Journal, is_written
from agent.state.store import Memory, Original, memory_to_json
from agent.transaction import file_changes
from agent.transaction.change import NotAccepted
from agent.transaction.file_changes import UndoResult
from tests.unit.support.faults import Faults
from tests.unit.support.made_node import OLD, Node


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


def journal_of(node: Node, entries: tuple[Entry, ...]) -> Journal:
    """A journal with these entries and nothing else of interest."""
    memory = memory_to_json(Memory())
    return Journal(
        "apply", "b", "prepared", entries, {}, (), None, "containerd", "/s", None, memory,
        memory, "f",
    )  # fmt: skip


def test_undo_brings_back_bytes_mode_and_owner(node: Node) -> None:
    """Also where the copy beside the file is gone: the store has the bytes."""
    store, changes = node.context().store, node.changes()
    for lost in (False, True):
        journal = journal_of(node, file_changes.entries(store, changes, Memory()))
        file_changes.reserve(changes, journal)
        file_changes.write(changes, journal, set())
        assert is_written(journal)
        if lost:
            for entry in journal.entries:
                files.discard(entry.undo)
        assert file_changes.undo(store, journal) == UndoResult()
        assert node.tree() == OLD
        assert node.modes() == {0o640}
        assert node.strays() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: run tests/run as root")
@pytest.mark.parametrize("lost", [False, True])
def test_undo_brings_back_the_owner(lost: bool, node: Node) -> None:
    """A file of somebody else is theirs again."""
    os.chown(node.etc / "config.toml", 12, 34)
    store, changes = node.context().store, node.changes()
    journal = journal_of(node, file_changes.entries(store, changes, Memory()))
    file_changes.reserve(changes, journal)
    file_changes.write(changes, journal, set())
    if lost:
        files.discard(journal.entries[-1].undo)
    file_changes.undo(store, journal)
    found = (node.etc / "config.toml").stat()
    assert (found.st_uid, found.st_gid) == (12, 34)


def test_undo_needs_no_room(node: Node) -> None:
    """It makes no file and writes no byte."""
    store, changes = node.context().store, node.changes()
    journal = journal_of(node, file_changes.entries(store, changes, Memory()))
    file_changes.reserve(changes, journal)
    file_changes.write(changes, journal, set())
    with Faults.full_disk().installed():
        assert file_changes.undo(store, journal) == UndoResult()
    assert node.tree() == OLD


def test_undo_twice_is_undo_once(node: Node) -> None:
    """A recovery that was interrupted begins again."""
    store, changes = node.context().store, node.changes()
    journal = journal_of(node, file_changes.entries(store, changes, Memory()))
    file_changes.reserve(changes, journal)
    file_changes.write(changes, journal, set())
    assert file_changes.undo(store, journal) == UndoResult()
    assert file_changes.undo(store, journal) == UndoResult()
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
    journal = journal_of(node, file_changes.entries(store, changes, Memory()))
    file_changes.reserve(changes, journal)
    file_changes.write(changes, journal, set())
    (node.etc / "conf.d/admin.toml").write_text("theirs")
    assert file_changes.undo(store, journal) == UndoResult()
    assert node.tree() == {**OLD, "conf.d/admin.toml": "theirs"}


def entry(before: str | None, after: str | None, made: int = 0) -> Entry:
    """A ledger's line of /etc/f."""
    return Entry("/etc/f", "/host/etc/f", before, after, 0o644, 0, 0, made)


def test_first_original_is_remembered_for_ever() -> None:
    """Two changes of our own: `revert` goes back before the first."""
    once = file_changes.remembered(Memory(), (entry("a", "b", made=1),))
    assert once.files == {"/etc/f": Original("a", 0o644, 0, 0, "b", made=1)}
    twice = file_changes.remembered(once, (entry("b", "c"),))
    assert twice.files == {"/etc/f": Original("a", 0o644, 0, 0, "c", made=1)}


def test_edit_between_two_changes_is_remembered() -> None:
    """And not forgotten by a third one."""
    memory = file_changes.remembered(Memory(), (entry("a", "b"),))
    memory = file_changes.remembered(memory, (entry("x", "c"),))
    memory = file_changes.remembered(memory, (entry("c", "d"),))
    assert memory.files["/etc/f"].edited


def test_file_that_is_back_at_its_original_is_forgotten() -> None:
    """There is nothing to undo any more."""
    memory = file_changes.remembered(Memory(default="crun"), (entry(None, "b"),))
    memory = file_changes.remembered(memory, (entry("b", None),))
    assert memory == Memory(default="crun")


def test_identity_is_pid_and_start_time(node: Node) -> None:
    """What the journal says of the old process is what the proof compares."""
    found: Identity = node.context().identity(Endpoint("containerd", node.path("s")))
    assert found == (100, node.started)
