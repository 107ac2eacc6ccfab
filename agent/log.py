"""The log on stderr: JSON lines, and for a person at a terminal structlog's.

Invariant: events are constant lower-case phrases, data goes into keys, and neither ever holds the
content of a configuration file, or the user and the password of a URL. structlog (81 ms) is loaded
for a terminal only.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import sys
from collections.abc import Callable
from typing import Any

from agent.errors import AgentError
from agent.redaction import redact

_LEVELS = {"warning": "warning", "failed": "error"}


def logger(*, debug: bool) -> Callable[..., None]:
    """A function that takes an event and key-value pairs."""
    state: list[Callable[..., None]] = []

    def log(event: str, **data: object) -> None:
        if not state:
            state.append(_structlog(debug=debug) if sys.stderr.isatty() else _json_line)
        with contextlib.suppress(OSError):  # a log that cannot be written is in no change's way
            state[0](event, **redact(data))

    return log


def failed(error: AgentError) -> dict[str, Any]:
    """The keys of the event `failed`: a convergence, or a whole run, that ended so."""
    return {
        "error": error.message,
        "code": error.status_code,
        "exit": error.exit_code,
        "ready": False,
    }


def _json_line(event: str, **data: object) -> None:
    moment = dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z")
    line = {**data, "event": event, "level": _LEVELS.get(event, "info"), "ts": moment}
    text = json.dumps(line, ensure_ascii=False, default=repr)
    sys.stderr.write(text.encode("utf-8", "replace").decode() + "\n")
    sys.stderr.flush()


def _structlog(*, debug: bool) -> Callable[..., None]:
    import logging

    import structlog

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.dev.ConsoleRenderer(colors=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if debug else logging.INFO
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    bound = structlog.get_logger()

    def log(event: str, **data: object) -> None:
        getattr(bound, _LEVELS.get(event, "info"))(event, **data)

    return log
