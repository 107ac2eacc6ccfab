"""What CRI-O tells besides the CRI: its effective configuration, by HTTP on the same socket.

Invariant: reads only, a bounded answer in a bounded time, and whatever goes wrong is silence: there
is weaker evidence for those who get none.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable

from agent import tomledit
from agent.data import replace
from agent.errors import Refused
from agent.observe import cri
from agent.observe.cri import Answer
from agent.observe.process import reachable
from agent.tomledit import Data

_LIMIT = 1 << 20  # bytes of an answer; that of 1.37 has 6 KB
NAME = "cri-o"


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


def ask(path: str, name: str, timeout: float = 10.0) -> Answer:
    """As `cri.ask`; a CRI-O whose Status does not show its configuration (before 1.33) is asked for
    it in its own way. Raises Unreachable."""
    answer = cri.ask(path, name, timeout)
    if answer.name != NAME or "crio" in (answer.config or {}):
        return answer
    return replace(answer, dump=effective_config(path, timeout))


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
