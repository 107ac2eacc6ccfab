"""The state on the host is read back as it was written, or refused by the name of its file."""

from __future__ import annotations

import errno
import json
import stat
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from agent.errors import Refused
from agent.host.paths import HostRoot
from agent.state.journal import Entry, Journal, decode, encode, parents
from agent.state.store import Failure, Memory, Original, Store, memory_to_json
from tests.unit.support.faults import CODES, Faults, Killed, count

MEMORY = Memory(
    {
        "/etc/containerd/config.toml": Original("a" * 64, 0o640, 1, 2, "b" * 64, edited=True),
        "/etc/containerd/conf.d/99-nvidia.toml": Original(None, 0o644, 0, 0, "c" * 64, made=1),
    },
    "crun",
    True,
)
JOURNAL = Journal(
    purpose="apply",
    boot_id="boot",
    stage="prepared",
    entries=(
        Entry("/etc/f", "/host/etc/f", "a" * 64, None, 0o640, 1, 2),
        Entry("/etc/d/g", "/host/etc/d/g", None, "b" * 64, 0o644, 0, 0, made=1),
    ),
    wanted={"handlers": {"nvidia": {"options": {"BinaryName": "/ü"}}}},
    before=({"handlers": {}}, {"handlers": {"crun": {}}}),
    process=(10, 20),
    kind="containerd",
    socket="/run/c.sock",
    restart=("systemd", "c.service"),
    memory=memory_to_json(MEMORY),
    old_memory=memory_to_json(Memory()),
    fingerprint="f",
    twin=encode(b"\x00\xff"),
    barrier=encode(b""),
    stuck=("mark", "cannot bring the runtime back"),
)


class Container(HostRoot):
    """A host whose /etc is seen below /host."""

    def agent_path(self, host: str) -> str:
        """As seen there."""
        return f"/host{host}" if host.startswith("/etc/") else host


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A state directory that was made, seen from a container with the host at /host."""
    store = Store(str(tmp_path / "lib/toolkit-agent"), Container("/"))
    store.create()
    return store


def test_directory_is_for_its_owner_only(store: Store) -> None:
    """Originals may hold the credentials of a registry."""
    store.keep_original(b"secret")
    store.remember(MEMORY)
    for path in [Path(store.directory), *Path(store.directory).rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE(Path(store.directory).parent.stat().st_mode) == 0o755


def test_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """With the option that gives another one."""
    store = Store(str(tmp_path / "file/state"))
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match=r"^cannot use the state directory .*--state-dir"):
        store.create()


def test_new_node_remembers_nothing(store: Store) -> None:
    """A new node remembers nothing, and asking writes nothing."""
    assert store.memory() == Memory()
    assert store.journal() is None
    assert store.failures() == {}
    assert sorted(p.name for p in Path(store.directory).iterdir()) == ["originals"]


def test_memory_comes_back(store: Store) -> None:
    """Every field of it; a memory of nothing leaves no file."""
    store.remember(MEMORY)
    assert store.memory() == MEMORY
    store.remember(Memory())
    assert store.memory() == Memory()
    assert not Path(store.path("memory.json")).exists()


@pytest.mark.parametrize("process", [None, (1, 2)])
@pytest.mark.parametrize("restart", [None, ("none", "nobody")])
def test_journal_comes_back(
    process: tuple[int, int] | None, restart: tuple[str, str] | None, store: Store
) -> None:
    """Every field of it, and it goes when the change is over."""
    journal = replace(JOURNAL, process=process, restart=restart)
    store.write_journal(journal)
    assert store.journal() == journal
    assert store.advance(journal, "written") == store.journal()
    store.close_journal()
    store.close_journal()
    assert store.journal() is None


def test_journal_of_a_container_is_read_on_the_host(store: Store) -> None:
    """Names that only one of them knows are not stored."""
    store.write_journal(JOURNAL)
    assert "/host" not in Path(store.path("journal.json")).read_text()
    journal = Store(store.directory).journal()
    assert journal is not None
    assert [entry.agent for entry in journal.entries] == ["/etc/f", "/etc/d/g"]


def test_bytes_of_the_status_come_back() -> None:
    """Empty is not missing."""
    for data in (None, b"", b"\x00\xff\n"):
        assert decode(encode(data)) == data


def test_failure_is_remembered_until_it_is_forgotten(store: Store) -> None:
    """With its reason, cut where it is endless."""
    store.remember_failure("f", Failure("it died " * 1000, 1.0))
    store.remember_failure("g", Failure("it hung", 2.0))
    assert set(store.failures()) == {"f", "g"}
    assert store.failures()["f"].reason.startswith("it died")
    assert len(store.failures()["f"].reason) <= 1000
    store.forget_failure()
    store.forget_failure()
    assert store.failures() == {}


def test_oldest_failures_are_forgotten_first(store: Store) -> None:
    """Whatever their hashes are: the last one is the one that must not be tried again."""
    marks = [chr(ord("z") - n) for n in range(20)]
    for mark in marks:
        store.remember_failure(mark, Failure("it died", 1.0))
    kept = list(store.failures())
    assert kept == marks[-len(kept) :]
    assert 2 <= len(kept) < 20


WHOLE: dict[str, Any] = {"format": 1, **memory_to_json(MEMORY)}


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "\x00", "{}", '{"format": 2}',
        json.dumps({**WHOLE, "format": 2}),
        json.dumps({**WHOLE, "files": []}),
        json.dumps({**WHOLE, "files": {"/f": 3}}),
        json.dumps({**WHOLE, "files": {"/f": {"digest": "x"}}}),
        json.dumps({**WHOLE, "files": {"/f": {**asdict(Original(None, 0, 0, 0, None)), "x": 1}}}),
        json.dumps({key: value for key, value in WHOLE.items() if key != "default"}),
        *(
            json.dumps({**WHOLE, "files": {"/f": {
                **asdict(Original(None, 0, 0, 0, None)), "keys": {key: 1},
            }}})
            for key in ("plugins.x", "{", "[1]", '"x"', "[" * 500)
        ),
    ],
)  # fmt: skip
def test_damaged_memory_is_refused(text: str, store: Store) -> None:
    """A revert on a guess would be worse than none; the file is named."""
    Path(store.path("memory.json")).write_text(text)
    with pytest.raises(Refused, match=r"^cannot read .*/memory\.json: it is damaged"):
        store.memory()


@pytest.mark.parametrize("key", ["entries", "stage", "boot_id", "process", "restart", "memory"])
def test_journal_that_lacks_a_key_is_refused(key: str, store: Store) -> None:
    """A journal of another version is not undone on a guess."""
    store.write_journal(JOURNAL)
    path = Path(store.path("journal.json"))
    data = json.loads(path.read_text())
    del data[key]
    path.write_text(json.dumps(data))
    with pytest.raises(Refused, match=r"^cannot read .*/journal\.json: it is damaged"):
        store.journal()


@pytest.mark.parametrize("entries", [None, 3, "x", [3], [{}], [{"host": "/f"}], [None]])
def test_journal_with_odd_entries_is_refused(entries: object, store: Store) -> None:
    """Whatever is in the place of the ledger."""
    store.write_journal(JOURNAL)
    path = Path(store.path("journal.json"))
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "entries": entries}))
    with pytest.raises(Refused, match=r"^cannot read .*/journal\.json: it is damaged"):
        store.journal()


def test_file_cut_anywhere_is_refused(store: Store) -> None:
    """At every length that is not the whole; the newline at the end alone may be missing."""
    store.write_journal(JOURNAL)
    path = Path(store.path("journal.json"))
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(Refused, match=r"journal\.json"):
            store.journal()


@pytest.mark.parametrize("name", ["memory.json", "journal.json", "failed.json"])
def test_directory_in_the_place_of_a_file_is_refused(name: str, store: Store) -> None:
    """By name."""
    Path(store.path(name)).mkdir()
    ask = {
        "memory.json": store.memory,
        "journal.json": store.journal,
        "failed.json": store.failures,
    }
    with pytest.raises(Refused, match=rf"^cannot read .*/{name}: it is a directory"):
        ask[name]()


def test_originals_are_kept_under_their_digest(store: Store) -> None:
    """The same bytes once; what is in use is not pruned."""
    kept, other = store.keep_original(b"one"), store.keep_original(b"two")
    assert store.keep_original(b"one") == kept
    assert store.original_bytes(kept) == b"one"
    store.prune(Memory({"/f": Original(kept, 0o644, 0, 0, None)}))
    assert store.original_bytes(kept) == b"one"
    with pytest.raises(Refused, match=rf"^cannot restore: .*{other} is missing or damaged"):
        store.original_bytes(other)


def test_damaged_original_is_never_restored(store: Store) -> None:
    """Other bytes than those of its name are none of ours."""
    kept = store.keep_original(b"one")
    Path(store.path(f"originals/{kept}")).write_bytes(b"onf")
    with pytest.raises(Refused, match=r"^cannot restore"):
        store.original_bytes(kept)


def test_damaged_original_is_kept_anew(store: Store) -> None:
    """A name that is there proves nothing about the bytes behind it."""
    kept = store.keep_original(b"one")
    Path(store.path(f"originals/{kept}")).write_bytes(b"")
    store.keep_original(b"one")
    assert store.original_bytes(kept) == b"one"


@pytest.mark.parametrize("code", CODES, ids=lambda code: str(errno.errorcode[code]))
def test_failing_disk_leaves_old_or_new_memory(code: int, store: Store) -> None:
    """Refused by the name of the file, and readable ever after."""
    store.remember(Memory(default="old"))
    calls = count(lambda: store.remember(MEMORY))
    told = []
    for k in range(1, calls + 1):
        store.remember(Memory(default="old"))
        try:
            with Faults.failing(k, code).installed():
                store.remember(MEMORY)
        except Refused as error:
            told.append(error.message)
        assert store.memory() in (MEMORY, Memory(default="old"))
    assert told
    assert all("memory.json" in text for text in told)


def test_killed_while_writing_leaves_old_or_new_journal(store: Store) -> None:
    """A fresh process reads one or the other."""
    store.write_journal(JOURNAL)
    calls = count(lambda: store.advance(JOURNAL, "written"))
    stages = set()
    for k in range(1, calls + 1):
        store.write_journal(JOURNAL)
        with pytest.raises(Killed), Faults.killed(k).installed():
            store.advance(JOURNAL, "written")
        found = Store(store.directory, Container("/")).journal()
        assert found is not None
        stages.add(found.stage)
    assert stages == {"prepared", "written"}


def test_parents_are_told_innermost_first() -> None:
    """As they are removed."""
    assert parents("/a/b/c/f", 2) == ("/a/b/c", "/a/b")
    assert parents("/a/f", 0) == ()


def test_state_that_others_could_write_is_refused(tmp_path: Path) -> None:
    """It says which bytes go where when something is undone."""
    directory = tmp_path / "state"
    directory.mkdir()
    directory.chmod(0o1777)
    with pytest.raises(Refused, match=r"^cannot use the state directory .*chmod go-w"):
        Store(str(directory)).create()
    directory.chmod(0o755)
    Store(str(directory)).create()
