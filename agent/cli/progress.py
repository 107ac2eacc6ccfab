"""The line at a terminal that shows the step in progress.

Invariant: the line is not written if standard error is no terminal. It appears only if a step takes
longer than a second, is overwritten by the next step, and is erased at the end. The thread that
draws it takes no signals, so that the main thread alone decides when they may end a change.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from agent.cli.render.base import printable
from agent.log import Log

_PATIENCE = 1.0  # seconds before a step is shown
_PAUSE = 0.25  # seconds between two looks at the clock
_ERASE = "\r\x1b[2K"
_IN_RESULT = "warning of the plan"  # the event of warnings that are also in the command's result
# The step that begins with an event of the log. Other events begin no step that takes long.
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


@contextlib.contextmanager
def showing(log: Log, words: str, *, debug: bool = False) -> Iterator[Log]:
    """The log for a command that shows its result at the end. At a terminal, events of the log are
    shown as steps, and `words` describe the first step. With `debug`, it is `log` itself."""
    if debug or not sys.stderr.isatty():
        yield log
        return
    with _Progress(log, sys.stderr, words) as progress:
        yield progress


class _Progress:
    """A log whose events are shown as steps. Warnings and errors go to the real log and stay on the
    screen. Warnings of a plan are logged only if the command fails, because otherwise they are in
    its result."""

    def __init__(self, log: Log, stream: TextIO, words: str) -> None:
        self._log, self._stream = log, stream
        self._words, self._since = words, time.monotonic()
        self._drawn = False
        self._kept: list[str] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._draw_until_over, daemon=True)

    def __enter__(self) -> _Progress:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._erase()
        for text in self._kept if kind is not None else ():
            self._log.warning(_IN_RESULT, text=text)

    def debug(self, event: str, /, **data: Any) -> None:
        """Show nothing."""

    def info(self, event: str, /, **data: Any) -> None:
        """Show the step that begins with an event."""
        if words := step(event, data):
            with self._lock:
                self._words, self._since = words, time.monotonic()

    def warning(self, event: str, /, **data: Any) -> None:
        """Log a warning; keep it for the end if the command's result has it."""
        if event == _IN_RESULT:
            self._kept.append(str(data["text"]))
            return
        with self._lock:
            self._erase()
            self._log.warning(event, **data)

    def error(self, event: str, /, **data: Any) -> None:
        """Log an error."""
        with self._lock:
            self._erase()
            self._log.error(event, **data)

    def _draw_until_over(self) -> None:
        while not self._over.wait(_PAUSE):
            with self._lock:
                seconds = time.monotonic() - self._since
                if seconds >= _PATIENCE:
                    self._write(_ERASE + line(self._words, seconds, self._columns()))
                    self._drawn = True

    def _columns(self) -> int:
        """The width of the terminal. COLUMNS is ignored, because a longer line would wrap."""
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _erase(self) -> None:
        if self._drawn:
            self._write(_ERASE)
            self._drawn = False

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a command must not fail for its progress
            self._stream.write(text)
            self._stream.flush()


def step(event: str, data: Mapping[str, Any]) -> str | None:
    """The words for the step that begins with an event, None if no step begins."""
    words = _AFTER.get(event)
    waited = data.get("unfinished")
    return f"{words}: {', '.join(waited)}" if words and isinstance(waited, list) else words


def line(words: str, seconds: float, width: int) -> str:
    """The line for a step (`words`) and its time so far, cut to fit `width` columns."""
    end = f" … {seconds:.0f} s"
    text = printable(words)
    room = width - len(end) - 1  # a full line would wrap
    return (text if len(text) <= room else f"{text[: room - 1]}…") + end
