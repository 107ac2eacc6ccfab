"""The request for CRI-O's effective configuration, by HTTP on the CRI socket.

Invariant: reads only. The size of the answer and the time for the whole request are limited. Any
failure returns None, because there is other, weaker evidence. This module is loaded only if it is
needed, because an HTTP client takes as long to load as the rest of the agent.
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
    """A socket with one deadline for the whole request, because the timeout of http.client is a
    timeout for each read."""

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


def effective_config(
    path: str, timeout: float = 10.0, clock: Callable[[], float] = time.monotonic
) -> Data | None:
    """The whole effective configuration (`GET /config`), None if CRI-O does not return it. `path`
    is the agent path of the CRI socket, `timeout` is in seconds. Never raises."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = sock = _Timed(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.end, sock.clock = clock() + timeout, clock
    try:
        with short_socket_path(path) as short:
            sock.connect(short)
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
