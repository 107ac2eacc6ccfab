"""The log on stderr: JSON lines, or plain lines for a person at a terminal.

Invariant: an event is a constant lower-case phrase, and its data is in keys. No line has the
content of a configuration file, or the user and the password of a URL. All lines of a process have
the same `transaction`, because a process makes one convergence; but lines about a change that an
earlier process began have the `transaction` of that process. structlog is loaded for the first
line, because most commands write none.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from typing import Any, Protocol

from agent.errors import AgentError
from agent.redaction import redact


class Log(Protocol):
    """A log of events, each with a level and data."""

    def debug(self, event: str, /, **data: Any) -> None:
        """Log an observation or a decision. Written with --debug only."""

    def info(self, event: str, /, **data: Any) -> None:
        """Log an action or a wait."""

    def warning(self, event: str, /, **data: Any) -> None:
        """Log a fault that a person should examine, and that does not stop the work."""

    def error(self, event: str, /, **data: Any) -> None:
        """Log that the work ended without success."""


class Silent:
    """A log that writes nothing."""

    def info(self, event: str, /, **data: Any) -> None:
        """Write nothing."""

    debug = warning = error = info


class StderrLog:
    """The log on standard error. A line that cannot be written is dropped without an error."""

    def __init__(self, *, debug: bool = False) -> None:
        self._debug = debug

    def debug(self, event: str, /, **data: Any) -> None:
        """Write a line of level debug, if `debug` was given."""
        if self._debug:
            self._write("debug", event, data)

    def info(self, event: str, /, **data: Any) -> None:
        """Write a line of level info."""
        self._write("info", event, data)

    def warning(self, event: str, /, **data: Any) -> None:
        """Write a line of level warning."""
        self._write("warning", event, data)

    def error(self, event: str, /, **data: Any) -> None:
        """Write a line of level error."""
        self._write("error", event, data)

    def _write(self, level: str, event: str, data: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            getattr(self._logger, level)(event, **data)

    @functools.cached_property
    def _logger(self) -> Log:
        import structlog

        json = structlog.processors.JSONRenderer(ensure_ascii=False, default=repr)
        console = structlog.dev.ConsoleRenderer(colors=False)
        mark = process_transaction()
        level = logging.DEBUG if self._debug else logging.INFO
        logger: Log = structlog.wrap_logger(
            structlog.PrintLogger(sys.stderr),
            processors=[
                lambda _, __, data: redact({**data, "transaction": data.get("transaction", mark)}),
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
                *([_readable, console] if sys.stderr.isatty() else [json]),
                _printable,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(level),
        )
        return logger


def _readable(_: Any, __: str, data: Any) -> Any:
    """A processor of structlog that joins lists by commas, for a person at a terminal."""
    return {
        key: ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        for key, value in data.items()
    }


def _printable(_: Any, __: str, line: Any) -> Any:
    """A processor of structlog that replaces bytes of paths that are not UTF-8."""
    return line.encode("utf-8", "replace").decode()


@functools.cache
def process_transaction() -> str:
    """The id under which this process logs."""
    return os.urandom(4).hex()


class TransactionLog:
    """A log that writes to `log` under the id of a transaction (None: that of this process)."""

    def __init__(self, log: Log, transaction: str | None) -> None:
        given = {"transaction": transaction} if transaction else {}
        self.debug = functools.partial(log.debug, **given)
        self.info = functools.partial(log.info, **given)
        self.warning = functools.partial(log.warning, **given)
        self.error = functools.partial(log.error, **given)


def failed(error: AgentError) -> dict[str, Any]:
    """The data of the event `failed`, for a convergence or a command that ended with this error."""
    return {
        "error": error.message,
        "code": error.status_code,
        "exit": error.exit_code,
        "ready": False,
    }
