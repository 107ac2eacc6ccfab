"""Calls to the host's systemd over D-Bus.

Invariant: the only module that imports jeepney. A call has a deadline and ends in an answer, in
systemd's own error, or in NoBus; no bus is ever started for it.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, Self

from agent.cri.process import short_socket_path
from agent.errors import Refused, reason
from agent.host import budget
from agent.host.paths import HostRoot
from agent.systemd.units import masked_message

# The second is systemd's own: no bus daemon is needed for it, and it is root's alone.
SYSTEM_BUS, PRIVATE = "/run/dbus/system_bus_socket", "/run/systemd/private"
_SYSTEMD = "org.freedesktop.systemd1"
_TIMEOUT = 10.0  # seconds for one answer; systemd answers in milliseconds
_NUDGE = 0.1  # seconds until it is asked again whether it is there


# What jeepney raises for bytes that are no message.
_NO_MESSAGE = (
    ValueError, LookupError, TypeError, AttributeError, struct.error, AssertionError,
    RecursionError, OverflowError,
)  # fmt: skip


# A signature with an empty structure, which D-Bus forbids, because jeepney reads an array of these
# for ever. The byte before a signature is its length.
_EMPTY = re.compile(
    rb"(.)([ybnqiuxtdhsogva(){}]{0,253}\(\)[ybnqiuxtdhsogva(){}]{0,253})\0", re.DOTALL
)


def _endless(data: bytes) -> bool:
    if b"()" not in data:
        return False
    return any(found[1][0] == len(found[2]) for found in _EMPTY.finditer(data))


class NoBus(Exception):
    """Nothing answers there (any more); the message says why."""


class _Silent(NoBus):
    """There was no answer in time."""


class BusError(Exception):
    """systemd's answer is an error; `name` is its D-Bus name, the message its text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class Bus:
    """One connection. On systemd's private socket there is nobody to greet and to address."""

    def __init__(self, sock: socket.socket, *, private: bool, timeout: float = _TIMEOUT) -> None:
        from jeepney.low_level import Parser

        self._socket = sock
        self._private = private
        self._timeout = timeout
        self._parser = Parser()
        self._serial = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def hello(self) -> None:
        """Be known to the bus. Raises NoBus or BusError."""
        if not self._private:
            self._call("/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello", peer=None)
            return
        # What arrives together with the end of the authentication is read, and answered only after
        # something more has come (observed on systemd 257).
        end = time.monotonic() + self._timeout
        while True:
            try:
                self._call("/", "org.freedesktop.DBus.Peer", "Ping", timeout=_NUDGE)
                return
            except _Silent:
                if time.monotonic() >= end:
                    raise

    def call(
        self, path: str, interface: str, member: str, signature: str = "", *body: Any
    ) -> tuple[Any, ...]:
        """A method of systemd. Raises NoBus or BusError."""
        return self._call(path, interface, member, signature, body)

    def _call(
        self, path: str, interface: str, member: str, signature: str = "",
        body: tuple[Any, ...] = (), peer: str | None = _SYSTEMD, timeout: float | None = None,
    ) -> tuple[Any, ...]:  # fmt: skip
        from jeepney.low_level import HeaderFields
        from jeepney.wrappers import DBusAddress, new_method_call

        address = DBusAddress(path, bus_name=peer or interface, interface=interface)
        self._serial += 1
        message = new_method_call(address, member, signature or None, body)
        if self._private:
            del message.header.fields[HeaderFields.destination]
        limit = self._timeout if timeout is None else timeout
        end = time.monotonic() + limit
        try:
            self._socket.settimeout(limit)
            self._socket.sendall(message.serialise(serial=self._serial))
            return self._answer(end)
        except TimeoutError as error:
            raise _Silent(f"no answer in {limit:g} s") from error
        except OSError as error:
            raise NoBus(reason(error)) from error

    def _answer(self, end: float) -> tuple[Any, ...]:
        """The answer to the last call; signals in between are none of our business."""
        from jeepney.low_level import HeaderFields, MessageType

        left, received = budget.BUS.size, b""
        while True:
            message = self._next()
            if message is None:
                # Signals without end are no answer either.
                if (time_left := end - time.monotonic()) <= 0:
                    raise TimeoutError
                self._socket.settimeout(time_left)
                data = self._socket.recv(1 << 16)
                left -= len(data)
                if not data:
                    raise NoBus("it hung up")
                if left < 0:
                    raise NoBus(f"no answer in {budget.BUS.size} bytes")
                received = received[-512:] + data
                if _endless(received):
                    raise NoBus("what it says is not D-Bus")
                self._parser.add_data(data)
                continue
            fields = message.header.fields
            if fields.get(HeaderFields.reply_serial) != self._serial:
                continue
            if message.header.message_type is MessageType.error:
                text = message.body[0] if message.body else ""
                raise BusError(
                    str(fields.get(HeaderFields.error_name, "")), masked_message(str(text))
                )
            return tuple(message.body)

    def _next(self) -> Any:
        """The next message; None where it has not arrived as a whole."""
        try:
            return self._parser.get_next_message()
        except _NO_MESSAGE as error:
            raise NoBus("what it says is not D-Bus") from error


def opener(host: HostRoot, path: str) -> Callable[[], Bus]:
    """How to connect to a socket of the host, again and again."""
    return lambda: _open(host, path)


def _open(host: HostRoot, path: str) -> Bus:
    """Raises NoBus."""
    from jeepney.auth import AuthenticationError
    from jeepney.io.blocking import prep_socket

    try:
        with short_socket_path(host.resolve(path).agent) as address:
            bus = Bus(prep_socket(address), private=path == PRIVATE)
    except Refused as error:
        raise NoBus(error.message) from error
    except AuthenticationError as error:
        raise NoBus("it does not take us for root") from error
    except OSError as error:
        raise NoBus(str(error) if error.errno is None else reason(error)) from error
    try:
        bus.hello()
    except (NoBus, BusError) as error:
        with bus:
            raise NoBus(str(error)) from error
    return bus
