"""The log: structlog lines on stderr, JSON where stderr is not a terminal.

Invariant: events are constant lower-case phrases, data goes into keys, and neither ever holds the
content of a configuration file, or the user and the password of a URL.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

from agent.userinfo import without_userinfo


def logger(*, debug: bool) -> Callable[..., None]:
    """A function that takes an event and key-value pairs. structlog (81 ms) is loaded with the
    first line, not before."""
    state: list[Callable[..., None]] = []

    def log(event: str, **data: object) -> None:
        if not state:
            state.append(_structlog(debug=debug))
        with contextlib.suppress(OSError):  # a log that cannot be written is in no change's way
            state[0](event, **{key: _public(value) for key, value in data.items()})

    return log


def _public(value: object) -> object:
    """Without users and passwords in URLs."""
    if isinstance(value, str):
        return without_userinfo(value)
    return [_public(item) for item in value] if isinstance(value, list | tuple) else value


def _structlog(*, debug: bool) -> Callable[..., None]:
    import logging

    import structlog

    terminal = sys.stderr.isatty()
    renderer = structlog.dev.ConsoleRenderer(colors=False) if terminal else (
        structlog.processors.JSONRenderer(ensure_ascii=False)
    )  # fmt: skip
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if debug else logging.INFO
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    bound = structlog.get_logger()

    def log(event: str, **data: object) -> None:
        level = bound.warning if event == "warning" else bound.info
        level(event, **data)

    return log
