"""The lines of the log, as a collector of logs reads them."""

from __future__ import annotations

import errno
import io
import json
import sys
from typing import Any

import pytest

from agent.log import StderrLog, TransactionLog


class Terminal(io.StringIO):
    """A stderr at which a person looks."""

    def isatty(self) -> bool:
        return True


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return what was written since."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_line_is_json_with_event_level_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    log = StderrLog()
    log.info("files written", files=["/a"])
    log.warning("device node not made", error="cannot make it")
    log.error("failed", code="REFUSED", ready=False)
    found = lines(capsys)
    assert [(line["event"], line["level"]) for line in found] == [
        ("files written", "info"), ("device node not made", "warning"), ("failed", "error"),
    ]  # fmt: skip
    assert found[0]["files"] == ["/a"]
    assert all(line["ts"].endswith("Z") for line in found)


def test_all_lines_of_a_process_have_one_transaction(capsys: pytest.CaptureFixture[str]) -> None:
    """A failure is logged by another object than the work before it."""
    StderrLog().info("files written")
    StderrLog(debug=True).error("failed")
    first, second = lines(capsys)
    assert len(first["transaction"]) == 8
    assert first["transaction"] == second["transaction"]


def test_line_about_an_earlier_change_has_its_transaction(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A journal of an older version names none: then it is that of this process."""
    StderrLog().info("files written")
    TransactionLog(StderrLog(), "0a0a0a0a").warning("change not proven")
    TransactionLog(StderrLog(), None).error("failed")
    own, earlier, unknown = (line["transaction"] for line in lines(capsys))
    assert (earlier, unknown) == ("0a0a0a0a", own)


def test_no_line_has_a_user_of_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither in a text nor deeper."""
    proxy = "cannot reach http://user:hunter2@proxy/"
    StderrLog().warning("warning of the plan", text=proxy, more={"a": [proxy]})
    assert "hunter2" not in json.dumps(lines(capsys))


def test_bytes_that_are_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    """A path may hold them; other letters stay as they are."""
    StderrLog().info("spec written", path="/\udcff", name="ä")
    assert capsys.readouterr().err.startswith('{"path": "/?", "name": "ä", ')


def test_person_at_a_terminal_reads_no_json(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    StderrLog().warning(
        "device node not made", error="cannot make http://a:b@c", paths=["/a", "/b"]
    )
    text = terminal.getvalue()
    assert "[warning  ] device node not made" in text
    assert "http://…@c" in text
    assert "paths='/a, /b'" in text


def test_stderr_that_is_full_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The change in progress counts, not what is said of it."""

    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    StderrLog().info("files written")


def test_debug_lines_are_written_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    """Without it, structlog is not even loaded for them."""
    StderrLog().debug("decided", row=3)
    assert lines(capsys) == []
    StderrLog(debug=True).debug("decided", row=3)
    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["row"]) == ("decided", "debug", 3)


def test_person_reads_no_lists_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal the items stand by themselves."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    StderrLog().info("files written", files=["/a", "/b"], units=[])
    assert "/a, /b" in terminal.getvalue()
    assert "[" not in terminal.getvalue().partition("]")[2]
