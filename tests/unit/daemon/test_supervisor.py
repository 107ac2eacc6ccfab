"""The waiting process notices changes, tries again in time and loads next to nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from agent.daemon import supervisor
from agent.daemon.supervisor import Loop, Requests, backoff, jittered, signature


class Stop(Exception):
    """Ends an endless loop."""


class World:
    """Time, files and children of a loop. `ends` is what each child does: it returns an exit
    code and a watch list; after the last one the loop is told to stop."""

    def __init__(self, *ends: Callable[[World], tuple[int, tuple[bytes, ...] | None]]) -> None:
        self.ends = list(ends)
        self.now = 0.0
        self.files: dict[bytes, int] = {}
        self.events: dict[float, Callable[[World], None]] = {}  # by time
        self.runs: list[float] = []
        self.requests = Requests()

    def keep(self) -> int:
        """Run to the end; gives the exit code."""
        loop = Loop(self.converge, self.wait, self.requests)
        loop.clock, loop.look = (lambda: self.now), self.look
        return loop.run(600)

    def converge(self) -> tuple[int, tuple[bytes, ...] | None]:
        self.runs.append(self.now)
        result = self.ends.pop(0)(self)
        if not self.ends:
            self.requests.stop = True
        return result

    def wait(self, seconds: float) -> None:
        assert seconds <= supervisor.POLL
        self.now += seconds
        for at in [at for at in self.events if at <= self.now]:
            self.events.pop(at)(self)

    def look(self, entries: Iterable[bytes]) -> dict[bytes, object]:
        return {entry: self.files.get(entry) for entry in entries}

    def touch(self, name: bytes = b"/a") -> None:
        self.files[name] = self.files.get(name, 0) + 1


def right(world: World) -> tuple[int, tuple[bytes, ...]]:
    return 0, (b"/a",)


def restless(world: World) -> tuple[int, tuple[bytes, ...]]:
    """Something moved while it ran."""
    world.touch()
    return right(world)


def fails(code: int) -> Callable[[World], tuple[int, None]]:
    return lambda _: (code, None)


def test_newly_watched_paths_are_looked_at_once_more() -> None:
    """Nobody saw what they were before the first convergence."""
    world = World(right, right, right)
    assert world.keep() == 0
    assert world.runs[:2] == [0, 0]
    assert 540 <= world.runs[2] <= 661


def test_change_is_noticed_within_a_poll() -> None:
    world = World(right, right, right)
    world.events[7.0] = World.touch
    world.keep()
    assert world.runs == [0, 0, 7.0]


def test_change_during_a_convergence_is_not_lost() -> None:
    world = World(right, right, restless, right)
    world.events[7.0] = World.touch
    world.keep()
    assert world.runs == [0, 0, 7.0, 7.0]


def test_what_never_rests_is_tried_less_and_less() -> None:
    """Ten at once, then a pause that changes do not shorten."""
    world = World(*[restless] * 13)
    for tenth in range(1, 200):
        world.events[tenth / 10] = World.touch
    world.keep()
    assert world.runs == [*[0] * supervisor.IN_A_ROW, 1, 3, 7]


def devices(world: World) -> tuple[int, tuple[bytes, ...]]:
    """A device came while it ran."""
    world.touch(b"nvidia*/dev")
    return 0, (b"/a", b"nvidia*/dev")


def test_devices_are_no_fight() -> None:
    """They may come and go one after the other for a while; not for ever."""
    world = World(*[devices] * 105)
    world.keep()
    assert world.runs[:99] == [0] * 99
    assert world.runs[-1] > 0


def test_device_ends_a_pause() -> None:
    """Where something else moves all the time."""
    both = [devices, *[restless] * 14, right]
    world = World(*(lambda w, end=end: (0, (*end(w)[1], b"nvidia*/dev")) for end in both))
    world.events[9] = lambda w: w.touch(b"nvidia*/dev")
    for tenth in range(1, 200):
        world.events[tenth / 10 + 0.01] = World.touch
    world.keep()
    assert [at for at in world.runs if 9 <= at < 9.5]


def test_whole_look_is_due_by_time_or_request_only() -> None:
    """At the start, when the time is up, and when somebody asks; not for a change or a failure."""
    asked = []

    def noted(code: int) -> Callable[[World], tuple[int, tuple[bytes, ...]]]:
        def end(world: World) -> tuple[int, tuple[bytes, ...]]:
            asked.append(world.requests.refresh)
            world.requests.refresh = False
            return code, (b"/a",)

        return end

    world = World(noted(0), noted(0), noted(3), noted(3), noted(0), noted(0))
    world.events[7] = World.touch
    world.keep()
    assert asked == [True, False, False, False, False, True]


def test_quiet_time_resets_the_backoff() -> None:
    world = World(*[restless] * supervisor.IN_A_ROW, right, right)
    world.events[100] = World.touch
    world.keep()
    assert world.runs == [*[0] * supervisor.IN_A_ROW, 1, 100]


def test_failure_is_tried_again_later_and_later() -> None:
    world = World(*[fails(4)] * 9)
    world.keep()
    assert world.runs == [0, 1, 3, 7, 15, 31, 63, 123, 183]


def test_not_ready_yet_is_no_failure() -> None:
    """What is waited for is watched: nothing is tried in between."""
    world = World(*[lambda _: (supervisor.NOT_YET, (b"/a",))] * 3)
    world.keep()
    assert world.runs[:2] == [0, 0]
    assert 540 <= world.runs[2] <= 661


def test_failure_is_tried_again_at_once_after_a_change() -> None:
    """And the waiting starts over."""
    world = World(right, *[fails(3)] * 5, right)
    world.events[4.0] = World.touch
    world.keep()
    assert world.runs == [0, 0, 1, 3, 4, 5, 7]


def test_failure_takes_nothing_off_the_list() -> None:
    """A node that cannot be read says less of itself than it did."""
    world = World(right, right, lambda _: (3, (b"/b",)), lambda _: (3, (b"/b",)), right, right)
    world.events[7.0] = lambda w: w.touch(b"/a")
    world.events[7.5] = lambda w: w.touch(b"/a")
    world.keep()
    assert world.runs[2:5] == [7.0, 7.0, 7.5]


def test_lines_are_told_when_the_code_changes(capfd: pytest.CaptureFixture[str]) -> None:
    World(right, fails(4), fails(4), fails(3), right, right).keep()
    events = [line.split('"')[5] for line in capfd.readouterr().err.splitlines()]
    assert events == ["waiting", "waiting", "right"]


def test_usage_error_ends_it() -> None:
    assert World(fails(2), right).keep() == 2


def test_wish_to_look_now_is_kept_during_a_convergence() -> None:
    """Also one that comes while a convergence runs."""

    def asked(world: World) -> tuple[int, tuple[bytes, ...]]:
        world.requests.converge = True
        return right(world)

    world = World(right, right, asked, right)
    world.events[9.0] = lambda w: setattr(w.requests, "converge", True)
    world.keep()
    assert world.runs == [0, 0, 9.0, 9.0]


def test_stop_while_waiting_ends_at_once() -> None:
    world = World(right, right, right)
    world.events[3.0] = lambda w: setattr(w.requests, "stop", True)
    assert world.keep() == 0
    assert (world.now, world.runs) == (3.0, [0, 0])


def test_backoff_and_jitter_have_bounds() -> None:
    assert [backoff(n) for n in (1, 2, 3, 7, 5000)] == [1, 2, 4, 60, 60]
    assert {89.9 < jittered(100) < 110.1 for _ in range(200)} == {True}
    assert len({jittered(100) for _ in range(200)}) > 20


def _write(path: Path) -> None:
    path.write_text("other")


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": _write,
    "mode": lambda path: path.chmod(0o600),
    "time": lambda path: os.utime(path, (1, 1)),
    "gone": Path.unlink,
    "another": lambda path: (path.rename(f"{path}.old"), path.write_text("text")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("linked", [False, True])
def test_signature_changes_with_a_file(
    change: Callable[[Path], object], linked: bool, tmp_path: Path
) -> None:
    """And with the one that a link leads to; reading changes nothing."""
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_text("text")
    link.symlink_to(path)
    watched = os.fsencode(link if linked else path)
    before = signature(watched)
    assert path.read_text() == "text"
    assert signature(watched) == before
    change(path)
    assert signature(watched) != before


def test_signature_of_a_missing_file_is_none() -> None:
    assert signature(b"/none/at/all") is None


def test_signature_changes_once_when_its_time_comes() -> None:
    """It changes once, when that time has come."""
    now = time.monotonic()
    assert signature(b"@%f" % (now - 1)) is True
    assert signature(b"@%f" % (now + 60)) is False


def test_signature_of_a_directory_changes_with_its_entries(tmp_path: Path) -> None:
    before = signature(os.fsencode(tmp_path))
    (tmp_path / "new").touch()
    assert signature(os.fsencode(tmp_path)) != before


def test_signature_changes_with_a_new_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    seen = set()
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            seen.add(signature(os.fsencode(path)))
            path.unlink()
    assert len(seen) == 2


def test_signature_of_names_changes_with_the_names(tmp_path: Path) -> None:
    """Other names in the directory do not count."""
    entry = b"nvidia*" + os.fsencode(tmp_path)
    before = signature(entry)
    (tmp_path / "tty9").touch()
    assert signature(entry) == before
    (tmp_path / "nvidia0").touch()
    after = signature(entry)
    assert after != before
    (tmp_path / "nvidia0").unlink()
    assert signature(entry) == before != after


def test_signature_of_a_device_changes_with_its_group(tmp_path: Path) -> None:
    """A spec names it."""
    (tmp_path / "nvidia0").touch()
    entry = b"nvidia*" + os.fsencode(tmp_path)
    before = signature(entry)
    os.chmod(tmp_path / "nvidia0", 0o600)
    assert signature(entry) != before


def test_signature_of_names_needs_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """In /proc a directory's time does not change with what is in it, however long ago it was."""
    later = time.time_ns() + 10**10
    monkeypatch.setattr("agent.daemon.supervisor.time.time_ns", lambda: later)
    entry = b"*/proc/self/task"  # a thread is a name
    before = signature(entry)
    assert isinstance(before, list)
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        assert signature(entry) != before
    finally:
        end.set()
        thread.join()


def test_signature_of_a_directory_leaves_some_files_out(tmp_path: Path) -> None:
    """Their content counts, and that of one that is written in place too."""
    (tmp_path / "a.yaml").write_text("one")
    entry = b"!k8s.*" + os.fsencode(tmp_path)
    before = signature(entry)
    (tmp_path / "k8s.claim.yaml").touch()
    assert signature(entry) == before
    (tmp_path / "a.yaml").write_text("another")
    after = signature(entry)
    assert after != before
    (tmp_path / "b.yaml").touch()
    assert signature(entry) not in (before, after)
    assert signature(b"!k8s.*/none/at/all") == signature(b"!k8s.*/none/either")


def _child(deadline: float, script: str, ready_file: str = "") -> subprocess.CompletedProcess[str]:
    """Run the waiting process with a shell as its child."""
    return subprocess.run(
        [sys.executable, "-I", "-S", "-X", "importtime", supervisor.__file__, "600", str(deadline),
         "", ready_file, "", "", "", "/bin/sh", "-c", script],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_waiting_process_loads_next_to_nothing() -> None:
    """What it loads is what it weighs while it waits."""
    done = _child(60, "exit 2")
    assert done.returncode == 2
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert {"signal", "os"} <= loaded
    heavy = {"re", "json", "typing", "dataclasses", "subprocess", "threading", "random", "site"}
    assert {name.partition(".")[0] for name in loaded} & (
        heavy | {"agent", "click", "grpc", "structlog", "tomlkit"}
    ) == set()


def test_child_that_hangs_is_killed(tmp_path: Path) -> None:
    """With all that it started; the next one goes on."""
    mark = tmp_path / "mark"
    done = _child(1, f"if [ -e {mark} ]; then exit 2; fi; touch {mark}; sleep 50; exit 0")
    assert done.returncode == 2
    assert '"child killed"' in done.stderr
    assert '"code": 137' in done.stderr


def _ready_in_second_child(tmp_path: Path, first: str) -> str:
    """What a second child sees of the ready file, after a first one that does this."""
    mark, ready = tmp_path / "mark", tmp_path / "ready"
    script = f"if [ -e {mark} ]; then cd {tmp_path}; head -n 9 ready* >&2; exit 2; fi; touch {mark}"
    done = _child(1, f"{script}; {first}", str(ready))
    assert done.returncode == 2
    assert not ready.exists(), "it goes with the process"
    return done.stderr


def test_child_that_is_killed_makes_nobody_ready(tmp_path: Path) -> None:
    (tmp_path / "ready").touch()
    said = _ready_in_second_child(tmp_path, "sleep 50")
    assert "cannot converge: exit code 137; see the log" in said


def test_child_that_succeeds_makes_ready(tmp_path: Path) -> None:
    said = _ready_in_second_child(tmp_path, "kill -HUP $PPID; exit 0")
    assert re.search(r"\n\d+ \d+\n|^\d+ \d+$", said, re.MULTILINE)
    assert "cannot converge" not in said


def test_child_that_fails_says_why(tmp_path: Path) -> None:
    """Its reason comes first through the pipe."""
    write = """eval "printf 'cannot do it\\0/a\\0' >&${0#--watch-fd=}"; exit 3"""
    said = _ready_in_second_child(tmp_path, write)
    assert "cannot do it\n" in said


def test_child_has_its_signals() -> None:
    """None is blocked, and none of ours is ignored."""
    done = _child(60, "grep -E '^Sig(Blk|Ign)' /proc/self/status >&2; exit 2")
    masks = dict(re.findall(r"(Sig\w+):\s*(\w+)", done.stderr))
    ours = sum(1 << (number - 1) for number in (*supervisor.SIGNALS, signal.SIGPIPE))
    assert int(masks["SigBlk"], 16) == 0
    assert int(masks["SigIgn"], 16) & ours == 0
