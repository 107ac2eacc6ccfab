"""A log that says a cause once, and again when it has lasted for ten minutes.

Each convergence of `run` is a process of its own, so that what was said before is in a file without
a name, whose descriptor the supervisor hands down to each of them.

Invariant: what is done is always said; only lines that say how things are wait for their time. A
file that cannot be read or written costs repeated lines and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

AGAIN = 600.0  # seconds
FAILED = "failed"
_STATES = frozenset({
    "warning", FAILED, "unfinished change found", "failure not told", "not tidied",
    "restart put off",
})  # fmt: skip
_MOST = 1000  # lines that are remembered
_LIMIT = 1 << 20


class Told:
    """What was said in the last ten minutes, in the file behind `fd`; `log` is what says it."""

    def __init__(self, fd: int, log: Callable[..., None], clock: Callable[[], float]) -> None:
        self._fd = fd
        self._log = log
        self._clock = clock

    def log(self, event: str, **data: Any) -> None:
        """Say a line, unless it says what was said a short while ago."""
        if event in _STATES:
            text = json.dumps([event, data], sort_keys=True, default=str)
            key = f"{event} {hashlib.sha256(text.encode(errors='replace')).hexdigest()}"
            known, now = self._read(), self._clock()
            if 0 <= now - known.get(key, now - AGAIN) < AGAIN:
                return
            recent = [(name, at) for name, at in known.items() if now - at < AGAIN and name != key]
            self._write(dict([*recent[-_MOST:], (key, now)]))
        self._log(event, **data)

    def forget(self, event: str) -> None:
        """It is over: the next time it is news again."""
        known = self._read()
        left = {key: at for key, at in known.items() if not key.startswith(f"{event} ")}
        if left != known:
            self._write(left)

    def _read(self) -> dict[str, float]:
        try:
            found = json.loads(os.pread(self._fd, _LIMIT, 0) or b"{}")
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, known: dict[str, float]) -> None:
        data = json.dumps(known).encode()
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, data, 0)
        except OSError:
            return
