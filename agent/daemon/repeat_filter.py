"""A filter by which the log has the same cause once, and again after ten minutes.

Each convergence of `run` is a separate process. So logged lines are noted in a file without a name,
whose descriptor each child inherits from the supervisor.

Invariant: an event that reports an action is always logged; only events that report a state are
held back. A warning about a change has the transaction of that change, so that it is logged for
each change. If the file cannot be read or written, lines are repeated.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

from agent.log import Log

AGAIN = 600.0  # seconds
FAILED = "failed"
# The events of level info that report a state. All events of higher levels do.
_STATES = frozenset({"unfinished change found", "restart put off"})
_MOST = 1000  # lines that are noted
_LIMIT = 1 << 20


class RepeatFilter:
    """A log that passes events to `log`, except states that were logged in the last ten minutes.
    `fd` is the file in which these are noted; `clock` returns monotonic seconds."""

    def __init__(self, fd: int, log: Log, clock: Callable[[], float]) -> None:
        self._fd = fd
        self._log = log
        self._clock = clock
        self.debug = log.debug
        self.warning = functools.partial(self._write_news, log.warning)
        self.error = functools.partial(self._write_news, log.error)

    def info(self, event: str, /, **data: Any) -> None:
        """Write an action; write a state if it was not written in the last ten minutes."""
        if event in _STATES:
            self._write_news(self._log.info, event, **data)
        else:
            self._log.info(event, **data)

    def _write_news(self, write: Callable[..., None], event: str, /, **data: Any) -> None:
        if self._is_news(event, data):
            write(event, **data)

    def _is_news(self, event: str, data: dict[str, Any]) -> bool:
        text = json.dumps([event, data], sort_keys=True, default=str)
        key = f"{event} {hashlib.sha256(text.encode(errors='replace')).hexdigest()}"
        known, now = self._load(), self._clock()
        if 0 <= now - known.get(key, now - AGAIN) < AGAIN:
            return False
        recent = [(name, at) for name, at in known.items() if now - at < AGAIN and name != key]
        self._save(dict([*recent[-_MOST:], (key, now)]))
        return True

    def forget(self, event: str) -> None:
        """Forget the noted lines of an event, so that its next line is logged at once."""
        known = self._load()
        kept = {key: at for key, at in known.items() if not key.startswith(f"{event} ")}
        if kept != known:
            self._save(kept)

    def _load(self) -> dict[str, float]:
        try:
            found = json.loads(os.pread(self._fd, _LIMIT, 0) or b"{}")
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _save(self, known: dict[str, float]) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, json.dumps(known).encode(), 0)
