"""A `systemctl` for a node whose runtime is kept running by a test's supervisor.

`systemd.py SOCKET LOG WORDS...` does as `systemctl WORDS...`: there is one unit, whatever its name,
and it is the process behind the socket. A restart is over when another process answers there, and
has failed where none does in time. Every call is appended to LOG.
"""

from __future__ import annotations

import os
import signal
import socket as sockets
import struct
import sys
import time
from collections.abc import Sequence

_TIMEOUT = 10.0


def systemctl(socket: str, log: str, words: Sequence[str]) -> int:
    """Do what the command says; gives the exit status."""
    with open(log, "a", encoding="utf-8") as file:
        file.write(" ".join(words) + "\n")
    match words:
        case ["show", *_]:
            return _show(socket)
        case ["restart", unit]:
            return _restart(socket, unit)
        case ["reset-failed" | "stop", *_]:
            return 0
    print(f"Unknown command verb {words[:1]}.", file=sys.stderr)
    return 1


def _show(socket: str) -> int:
    pid = _peer(socket)
    states = ("active", "running") if pid else ("activating", "auto-restart")
    print(f"LoadState=loaded\nActiveState={states[0]}\nSubState={states[1]}")
    print(f"Result=success\nInvocationID={pid:032x}\nJob=0")
    return 0


def _restart(socket: str, unit: str) -> int:
    old, deadline = _peer(socket), time.monotonic() + _TIMEOUT
    if old:
        os.kill(old, signal.SIGTERM)
    while time.monotonic() < deadline:
        if _peer(socket) not in (0, old):
            return 0
        time.sleep(0.02)
    print(
        f"Job for {unit} failed because the control process exited with error code.",
        file=sys.stderr,
    )
    return 1


def _peer(socket: str) -> int:
    """The pid behind the socket; 0 where nobody answers."""
    with sockets.socket(sockets.AF_UNIX) as client:
        try:
            client.connect(socket)
        except OSError:
            return 0
        data = client.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", data)[0])


if __name__ == "__main__":
    sys.exit(systemctl(sys.argv[1], sys.argv[2], sys.argv[3:]))
