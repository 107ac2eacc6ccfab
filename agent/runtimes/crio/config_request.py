"""CRI-O's effective configuration, by HTTP on the socket of its CRI.

Invariant: reads only. The size of the answer and the time for all of it are limited. Any failure
gives None, because there is other, weaker evidence. This module is loaded only if it is needed,
because an HTTP client takes as long to load as the rest of the agent.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable
from typing import Any

from agent.cri.process import short_socket_path
from agent.errors import Refused
from agent.host import budget
from agent.toml import document
from agent.toml.document import Data


class _Timed(socket.socket):
    """A socket with one deadline for all its steps, because the timeout of http.client is one for
    each read."""

    end = 0.0  # of the clock
    clock: Callable[[], float]

    def _limit_wait(self) -> None:
        left = self.end - self.clock()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)

    def connect(self, address: Any) -> None:
        self._limit_wait()
        super().connect(address)

    def sendall(self, *given: Any) -> None:
        self._limit_wait()
        super().sendall(*given)

    def recv_into(self, *given: Any) -> int:
        self._limit_wait()
        return super().recv_into(*given)


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket. `end` is the deadline, a time of `clock`."""

    def __init__(self, path: str, end: float, clock: Callable[[], float]) -> None:
        super().__init__("localhost")
        self._path = path
        self._end, self._clock = end, clock

    def connect(self) -> None:
        self.sock = _Timed(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.end, self.sock.clock = self._end, self._clock
        with short_socket_path(self._path) as short:
            self.sock.connect(short)


def effective_config(
    path: str, timeout: float = 10.0, clock: Callable[[], float] = time.monotonic
) -> Data | None:
    """The whole effective configuration (`GET /config`), None if CRI-O does not give it. `path`
    is an agent path, `timeout` is in seconds."""
    end = clock() + timeout
    connection = _Connection(path, end, clock)
    try:
        connection.request("GET", "/config", headers={"Connection": "close"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            return None
        data, length = b"", response.headers.get("Content-Length")
        while part := response.read1(1 << 16):
            data += part
            if len(data) > budget.RUNTIME_CONFIG.size:
                return None
        if length is not None and int(length) != len(data):
            return None
        return document.parse(data, "the configuration that CRI-O shows")
    except (OSError, http.client.HTTPException, ValueError, Refused):
        return None
    finally:
        connection.close()
