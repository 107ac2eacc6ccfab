"""The end of a program by a signal."""

from __future__ import annotations

import signal
import threading

_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})


def set_by_signals(ended: threading.Event) -> None:
    """Have SIGTERM and SIGINT set an event; to be called before any other thread is started.

    They are waited for, not handled. A handler runs in the main thread only: late where another
    thread gets the signal, and never where the main thread holds the event's own lock.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def wait() -> None:
        signal.sigwait(_SIGNALS)
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
