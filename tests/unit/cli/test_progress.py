"""The step in progress is on a terminal only, and gone at the end."""

from __future__ import annotations

import io
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.cli import progress
from agent.cli.progress import line, step
from agent.log import Silent


class Terminal(io.StringIO):
    """A stderr at which a person looks."""

    def isatty(self) -> bool:
        return True


class Kept(Silent):
    """A log that is remembered."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, event: str, /, **data: object) -> None:
        self.lines.append(f"{event} {data.get('text')}")

    info = error = warning


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """The terminal; each step is shown at once."""
    found = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=found))
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    monkeypatch.setattr(progress, "_PAUSE", 0.01)
    return found


def wait_for(terminal: Terminal, words: str) -> None:
    """Wait until it is on the screen."""
    while words not in terminal.getvalue():
        time.sleep(0.005)


def test_step_is_rewritten_and_gone_at_the_end(terminal: Terminal) -> None:
    """An event of the log begins the next step."""
    with progress.showing(Kept(), "looking at the node") as log:
        wait_for(terminal, "looking at the node … 0 s")
        log.info("runtime restarted", kind="systemd")
        wait_for(terminal, "proving that the runtime works … 0 s")
    shown = terminal.getvalue()
    assert "\n" not in shown
    assert shown.endswith("\r\x1b[2K")


def test_short_work_shows_nothing(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flash is worse than nothing."""
    monkeypatch.setattr(progress, "_PATIENCE", 3600.0)
    with progress.showing(Kept(), "looking at the node"):
        time.sleep(0.03)
    assert terminal.getvalue() == ""


def test_log_of_a_program_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal: the very log, and nothing beside it."""
    stream, log = io.StringIO(), Kept()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.showing(log, "looking at the node") as found:
        assert found is log
    assert stream.getvalue() == ""


def test_warning_of_a_plan_is_told_once(terminal: Terminal) -> None:
    """The result has it; where there is none, the log does."""
    log = Kept()
    with progress.showing(log, "x") as shown:
        shown.warning("warning of the plan", text="mind this")
        shown.warning("unit not running again", text="docker.service")
    assert log.lines == ["unit not running again docker.service"]

    def fail() -> None:
        with progress.showing(log, "x") as shown:
            shown.warning("warning of the plan", text="mind this")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert log.lines[1:] == ["warning of the plan mind this"]


def test_thread_takes_no_signal(terminal: Terminal) -> None:
    """A signal that the change in progress blocks would end the process by way of the thread."""
    with progress.showing(Kept(), "x"):
        (thread,) = [t for t in threading.enumerate() if t is not threading.main_thread()]
        text = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    blocked = int(next(x for x in text.splitlines() if x.startswith("SigBlk")).split()[1], 16)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        assert blocked >> (number - 1) & 1


def test_line_is_cut_to_the_screen() -> None:
    """A line that wraps cannot be rewritten."""
    assert line("x" * 200, 12.4, 80).endswith("x… … 12 s")
    assert len(line("x" * 200, 12.4, 80)) == 79
    assert line("short", 3, 80) == "short … 3 s"


def test_pods_that_are_waited_for_are_named() -> None:
    """A person sees whom the restart waits for."""
    found = step("waiting for a quiet moment", {"unfinished": ["pod a/b"]})
    assert found == "waiting for pods that are being started: pod a/b"
    assert step("spec written", {}) is None
