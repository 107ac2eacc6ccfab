"""One Unix socket for gRPC and plain HTTP/1.1, told apart by the first bytes of a connection.

The process that listens is the daemon itself, so the peer of a client is the daemon. Connections
of gRPC are handed to a socket of its own without a name in the file system.
"""

from __future__ import annotations

import os
import socket as sockets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

# What HTTP/2 starts with; no method of HTTP/1.1 does.
_PREFACE = b"PRI"
# Longer texts Go sends in chunks, as it does not know their length when it starts.
_CHUNKED_FROM = 2048

# Gives the status, the type and the text of a path; status 0 is never to answer.
Page = Callable[[str], tuple[int, str, bytes]]


class Front:
    """Listen on `socket` from entering to `close`."""

    def __init__(self, socket: Path, inner: str, page: Page, ended: threading.Event) -> None:
        self._socket = socket
        self._inner = inner
        self._page = page
        self._ended = ended
        self._listener = sockets.socket(sockets.AF_UNIX)

    def open(self) -> None:
        """Listen, and serve in threads."""
        self._socket.parent.mkdir(parents=True, exist_ok=True)
        self._listener.bind(str(self._socket))
        os.chmod(self._socket, 0o660)
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Remove the socket; what is connected ends with the process."""
        self._socket.unlink(missing_ok=True)
        self._listener.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=[client], daemon=True).start()

    def _talk(self, client: sockets.socket) -> None:
        with client:
            try:
                if self._first(client) == _PREFACE:
                    self._hand_over(client)
                else:
                    _handler(self._page, self._ended)(client, ("unix", 0), None)  # type: ignore[arg-type]
            except OSError:
                return  # one of the two has gone

    def _first(self, client: sockets.socket) -> bytes:
        """Look at the first bytes without taking them."""
        while True:
            found = client.recv(len(_PREFACE), sockets.MSG_PEEK)
            if len(found) in (0, len(_PREFACE)) or not _PREFACE.startswith(found):
                return found
            time.sleep(0.001)

    def _hand_over(self, client: sockets.socket) -> None:
        with sockets.socket(sockets.AF_UNIX) as inner:
            inner.connect(f"\0{self._inner}")
            back = threading.Thread(target=_pump, args=[inner, client], daemon=True)
            back.start()
            _pump(client, inner)
            back.join()


def _pump(source: sockets.socket, target: sockets.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(sockets.SHUT_RDWR)


def _handler(page: Page, ended: threading.Event) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, kind, text = page(self.path.partition("?")[0])
            while status == 0 and not ended.wait(0.05):
                status, kind, text = page(self.path.partition("?")[0])
            chunked = len(text) > _CHUNKED_FROM and self.request_version == "HTTP/1.1"
            self.send_response(status or 503)
            self.send_header("Content-Type", kind)
            if chunked:
                self.send_header("Transfer-Encoding", "chunked")
                body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(text), text)
            else:
                self.send_header("Content-Length", str(len(text)))
                body = text
            self.end_headers()
            self.wfile.write(body)

        def version_string(self) -> str:
            return "crio"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    return Handler
