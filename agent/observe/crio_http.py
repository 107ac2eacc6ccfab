"""CRI-O's effective configuration, by HTTP on the socket of its CRI.

Invariant: reads only, a bounded answer in a bounded time, and whatever goes wrong is silence: there
is weaker evidence for those who get none. Only who needs it loads this module: an HTTP client takes
as long to load as the rest of us.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable

from agent import tomledit
from agent.errors import Refused
from agent.observe.process import reachable
from agent.tomledit import Data

_LIMIT = 1 << 20  # bytes of an answer; that of 1.37 has 6 KB


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with reachable(self._path) as short:
            self.sock.connect(short)


def effective_config(
    path: str, timeout: float = 10.0, clock: Callable[[], float] = time.monotonic
) -> Data | None:
    """The whole effective configuration (`GET /config`), None where there is none to be had."""
    end = clock() + timeout
    connection = _Connection(path, timeout)
    try:
        connection.request("GET", "/config", headers={"Connection": "close"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            return None
        data, length = b"", response.headers.get("Content-Length")
        # In parts, so that one who sends a byte now and then cannot hold us up.
        while part := response.read1(1 << 16):
            data += part
            if len(data) > _LIMIT or clock() > end:
                return None
        if length is not None and int(length) != len(data):
            return None
        return tomledit.parse(data, "the configuration that CRI-O shows")
    except (OSError, http.client.HTTPException, ValueError, Refused):
        return None
    finally:
        connection.close()
