"""The line that shows the step in progress.

Invariant: pure functions of an event of the log and of a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.cli.render.base import printable

# What goes on after an event. An event that is not here begins no step that takes long.
_AFTER = {
    "waiting for the lock": "waiting for another toolkit-agent that holds the lock",
    "waiting for a quiet moment": "waiting for pods that are being started",
    "files written": "restarting the runtime",
    "restarting the runtime": "restarting the runtime",
    "runtime restarted": "proving that the runtime works",
    "change not proven": "undoing the change",
    "unfinished change found": "finishing an earlier change",
    "waiting for run to stand aside": "waiting for `run` to stand aside",
}


def step(event: str, data: Mapping[str, Any]) -> str | None:
    """The step that begins with an event, None where none does."""
    words = _AFTER.get(event)
    waited = data.get("unfinished")
    return f"{words}: {', '.join(waited)}" if words and isinstance(waited, list) else words


def line(words: str, seconds: float, width: int) -> str:
    """The line of a step that has taken so many seconds, cut to fit the screen."""
    end = f" … {seconds:.0f} s"
    text = printable(words)
    room = width - len(end) - 1  # a full line would wrap
    return (text if len(text) <= room else f"{text[: room - 1]}…") + end
