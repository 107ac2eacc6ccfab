"""The host's systemd over D-Bus, by jeepney's connection.

Invariant: no other module imports jeepney, and this module is imported only if systemd is asked. A
call has a limit of time and size, and ends with an answer, with systemd's own error, or with NoBus.
A call never starts a bus daemon. Each question opens a new connection. If the connection is lost
after systemd accepted a restart, the restart does not count as failed.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jeepney.auth import AuthenticationError
from jeepney.io.blocking import DBusConnection, DBusConnectionBase, prep_socket
from jeepney.io.common import MessageFilters
from jeepney.low_level import HeaderFields
from jeepney.wrappers import DBusAddress, DBusErrorResponse, new_method_call, unwrap_msg

from agent.cri.process import short_socket_path
from agent.errors import Refused, reason
from agent.host import budget
from agent.host.paths import HostRoot
from agent.systemd.units import (
    CARRIES,
    RESTART_TIMEOUT,
    STOPS,
    UP,
    SystemdError,
    Ties,
    Timer,
    Unit,
    masked_message,
)

# The private socket is systemd's own: it needs no bus daemon, and only root may use it.
SYSTEM_BUS, PRIVATE = "/run/dbus/system_bus_socket", "/run/systemd/private"
_BUS = ("/org/freedesktop/DBus", "org.freedesktop.DBus")
_SYSTEMD = "org.freedesktop.systemd1"
_MANAGER = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
_UNIT = "org.freedesktop.systemd1.Unit"
_SERVICE = "org.freedesktop.systemd1.Service"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_TIMEOUT = 10.0  # seconds for one answer; systemd answers in milliseconds
_NUDGE = 0.1  # seconds until a second Ping makes systemd answer the first one
_PAUSE = 0.05  # seconds between two questions about a job

# The exceptions that jeepney raises for bytes that are no message.
_NO_MESSAGE = (
    ValueError, LookupError, TypeError, AttributeError, struct.error, AssertionError,
    RecursionError, OverflowError,
)  # fmt: skip

# A signature with an empty structure, which D-Bus forbids, because jeepney reads an array of these
# for ever. The byte before a signature is its length.
_EMPTY = re.compile(
    rb"(.)([ybnqiuxtdhsogva(){}]{0,253}\(\)[ybnqiuxtdhsogva(){}]{0,253})\0", re.DOTALL
)
_LONGEST = 512  # bytes that a match of _EMPTY may span


class NoBus(Exception):
    """systemd does not answer on the connection. The message is the reason."""


class _NoAnswer(NoBus):
    """There was no answer in time."""


class BusError(Exception):
    """systemd answered with an error. `name` is its D-Bus name, the message is its text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class _BoundedSocket(socket.socket):
    """A socket that passes on to jeepney only bytes that it can parse in bounded time and
    memory."""

    _left, _end, _tail = 0, 0.0, b""

    def begin(self, timeout: float) -> None:
        """Allow one more answer, of limited size and within `timeout` seconds."""
        self._left, self._end = budget.BUS.size, time.monotonic() + timeout
        self.settimeout(timeout)

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Receive bytes. Raises NoBus at the end of the stream, for too many bytes, and for
        messages that jeepney would parse for ever.

        Also raises TimeoutError, because jeepney does not check its deadline while signals arrive
        faster than it reads them.
        """
        data = super().recv(size, flags)
        if not data:
            raise NoBus("it hung up")
        if time.monotonic() >= self._end:
            raise TimeoutError
        self._left -= len(data)
        if self._left < 0:
            raise NoBus(f"no answer in {budget.BUS.size} bytes")
        self._tail = self._tail[-_LONGEST:] + data
        if any(found[1][0] == len(found[2]) for found in _EMPTY.finditer(self._tail)):
            raise NoBus("its answer is not D-Bus")
        return data


class Bus(DBusConnection):
    """A connection to systemd, by the system bus or by systemd's private socket. The private socket
    has neither bus names nor the call Hello."""

    def __init__(self, sock: socket.socket, *, private: bool, timeout: float = _TIMEOUT) -> None:
        # DBusConnection would say Hello here, without a deadline.
        self._bounded = _BoundedSocket(fileno=sock.detach())
        DBusConnectionBase.__init__(self, self._bounded)
        self._filters = MessageFilters()
        self._private = private
        self._timeout = timeout

    def hello(self) -> None:
        """Register with the bus; on the private socket, wait until systemd answers. Raises NoBus or
        BusError."""
        if not self._private:
            self.call(*_BUS, "Hello", peer=_BUS[1])
            return
        # If the first call arrives together with the end of the authentication, systemd answers it
        # only after further bytes have arrived (observed on systemd 257).
        end = time.monotonic() + self._timeout
        while True:
            try:
                self.call("/", "org.freedesktop.DBus.Peer", "Ping", timeout=_NUDGE)
                return
            except _NoAnswer:
                if time.monotonic() >= end:
                    raise

    def call(
        self, path: str, interface: str, member: str, signature: str = "", *body: Any,
        peer: str = _SYSTEMD, timeout: float | None = None,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Call a method of systemd, or of the bus name `peer`, and return the body of its answer.
        `timeout` is in seconds. Raises NoBus or BusError."""
        address = DBusAddress(path, bus_name=peer, interface=interface)
        message = new_method_call(address, member, signature or None, body)
        if self._private:
            del message.header.fields[HeaderFields.destination]
        limit = self._timeout if timeout is None else timeout
        self._bounded.begin(limit)
        try:
            answer = self.send_and_get_reply(message, timeout=limit)  # type: ignore[no-untyped-call]
            return tuple(unwrap_msg(answer))
        except DBusErrorResponse as error:
            text = error.data[0] if error.data else ""
            raise BusError(str(error.name or ""), masked_message(str(text))) from error
        except TimeoutError as error:
            raise _NoAnswer(f"no answer in {limit:g} s") from error
        except OSError as error:
            raise NoBus(reason(error)) from error
        except _NO_MESSAGE as error:
            raise NoBus("its answer is not D-Bus") from error


def opener(host: HostRoot, path: str) -> Callable[[], Bus]:
    """A function that opens a new connection to the socket at a host path. It raises NoBus."""
    return lambda: _open(host, path)


def _open(host: HostRoot, path: str) -> Bus:
    """A new connection to the socket at a host path. Raises NoBus."""
    try:
        with short_socket_path(host.resolve(path).agent) as address:
            bus = Bus(prep_socket(address), private=path == PRIVATE)
    except Refused as error:
        raise NoBus(error.message) from error
    except AuthenticationError as error:
        raise NoBus("it does not accept us as root") from error
    except OSError as error:
        raise NoBus(str(error) if error.errno is None else reason(error)) from error
    try:
        bus.hello()
    except (NoBus, BusError) as error:
        with bus:
            raise NoBus(str(error)) from error
    return bus


class OverBus:
    """`Systemd` over D-Bus. Each call of a method opens a new connection by `connect`."""

    def __init__(
        self, connect: Callable[[], Bus], *,
        clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self._connect = connect
        self._clock = clock
        self._sleep = sleep

    @contextmanager
    def _connection(self, prefix: str = "") -> Iterator[Bus]:
        """Open a connection. An error of it becomes a SystemdError, which begins with `prefix`."""
        try:
            with self._connect() as connection:
                yield connection
        except (NoBus, BusError) as error:
            raise SystemdError(f"{prefix}{error}") from error

    def unit(self, name: str) -> Unit:
        with self._connection() as connection:
            return _unit(connection, name)

    def ties(self, name: str) -> Ties:
        with self._connection() as connection:
            return _ties(connection, name)

    def start(self, name: str) -> None:
        with self._connection(f"systemd does not start {name}: ") as connection:
            _reset_limit(connection, name)
            connection.call(*_MANAGER, "StartUnit", "ss", name, "replace")

    def restart(self, name: str, timeout: float = RESTART_TIMEOUT) -> None:
        with self._connection(f"systemd does not restart {name}: ") as connection:
            _reset_limit(connection, name)
            connection.call(*_MANAGER, "RestartUnit", "ss", name, "replace")
            unit = self._settled(connection, name, self._clock() + timeout)
        if unit is not None and unit.busy:
            raise SystemdError(f"systemd is not done with {name} after {timeout:g} s: {unit}")
        if unit is not None and not unit.up:
            raise SystemdError(f"{unit} after its restart")

    def _settled(self, connection: Bus, name: str, end: float) -> Unit | None:
        """Wait until the unit has no job, until the time `end` at most, and return the unit. None
        if the connection was lost; then the runtime itself shows the result."""
        try:
            while (unit := _unit(connection, name)).busy and self._clock() < end:
                self._sleep(_PAUSE)
        except NoBus:
            return None
        return unit

    def start_timer(self, timer: Timer) -> None:
        commands = [(c.argv[0], list(c.argv), c.may_fail) for c in timer.commands]
        text = ("Description", ("s", timer.description))
        timer_properties = [
            text,
            ("OnActiveSec", ("t", timer.delay * 1_000_000)),
            ("AccuracyUSec", ("t", 1_000_000)),
            ("RemainAfterElapse", ("b", False)),
        ]
        service_properties = [
            text, ("Type", ("s", "oneshot")), ("ExecStart", ("a(sasb)", commands)),
        ]  # fmt: skip
        first, second = timer.units
        body = (first, "fail", timer_properties, [(second, service_properties)])
        with self._connection(f"systemd does not start {first}: ") as connection:
            connection.call(*_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", *body)

    def stop(self, name: str) -> None:
        with self._connection(f"systemd does not stop {name}: ") as connection:
            try:
                connection.call(*_MANAGER, "StopUnit", "ss", name, "replace")
                self._settled(connection, name, self._clock() + 5.0)
            except BusError as error:
                if not error.name.endswith(".NoSuchUnit"):
                    raise


def _properties(connection: Bus, name: str) -> tuple[str, dict[str, Any]]:
    """The object path of a unit, and its properties by name."""
    (path,) = connection.call(*_MANAGER, "LoadUnit", "s", name)
    (variants,) = connection.call(path, _PROPERTIES, "GetAll", "s", _UNIT)
    return path, {key: value for key, (_, value) in variants.items()}


def _ties(connection: Bus, name: str) -> Ties:
    path, properties = _properties(connection, name)
    service: dict[str, Any] = {}
    if name.endswith(".service"):
        for key in ("Restart", "MainPID"):
            with suppress(BusError):
                ((_, service[key]),) = connection.call(
                    path, _PROPERTIES, "Get", "ss", _SERVICE, key
                )
    return Ties(
        bound=tuple(map(str, properties.get("BoundBy", ()))),
        stopped=tuple(str(other) for key in STOPS for other in properties.get(key, ())),
        restart=str(service.get("Restart", "")),
        main_pid=int(service.get("MainPID", 0)) or None,
    )


def _reset_limit(connection: Bus, name: str) -> None:
    """Reset the start limit of a unit. With a used-up limit, systemd would stop a healthy service
    and not start it again."""
    with suppress(BusError):
        connection.call(*_MANAGER, "ResetFailedUnit", "s", name)


def _unit(connection: Bus, name: str) -> Unit:
    path, properties = _properties(connection, name)
    active, result = str(properties["ActiveState"]), ""
    if active not in UP and name.endswith(".service"):
        with suppress(BusError):
            ((_, result),) = connection.call(path, _PROPERTIES, "Get", "ss", _SERVICE, "Result")
    invocation = bytes(properties.get("InvocationID", b""))
    return Unit(
        name=name,
        load=str(properties["LoadState"]),
        active=active,
        sub=str(properties.get("SubState", "")),
        result=str(result),
        invocation=int.from_bytes(invocation, "big") or None,
        busy=properties.get("Job", (0,))[0] != 0,
        carries=tuple(str(other) for key in CARRIES for other in properties.get(key, ())),
    )
