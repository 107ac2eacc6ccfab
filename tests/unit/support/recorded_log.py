"""A log that keeps its lines, for tests of what is written to it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Line(NamedTuple):
    """A line of the log."""

    level: str
    event: str
    data: dict[str, Any]


class RecordedLog:
    """A log that keeps its lines in `lines`."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def debug(self, event: str, /, **data: Any) -> None:
        self.lines.append(Line("debug", event, data))

    def info(self, event: str, /, **data: Any) -> None:
        self.lines.append(Line("info", event, data))

    def warning(self, event: str, /, **data: Any) -> None:
        self.lines.append(Line("warning", event, data))

    def error(self, event: str, /, **data: Any) -> None:
        self.lines.append(Line("error", event, data))

    def events(self) -> list[str]:
        return [line.event for line in self.lines]
