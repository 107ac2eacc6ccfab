"""The host's systemd over D-Bus.

Invariant: each thing is asked on a connection of its own, and a restart that was accepted is never
taken for failed because the connection was lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from agent.systemd.bus import Bus, BusError, NoBus
from agent.systemd.units import CARRIES, RESTART_TIMEOUT, STOPS, UP, SystemdError, Ties, Timer, Unit

_Answer = TypeVar("_Answer")

_MANAGER = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
_UNIT = "org.freedesktop.systemd1.Unit"
_SERVICE = "org.freedesktop.systemd1.Service"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_PAUSE = 0.05  # seconds between two looks at a job


class OverBus:
    """systemd over D-Bus, on a connection of its own for each thing asked."""

    def __init__(
        self, connect: Callable[[], Bus], *,
        clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self._connect = connect
        self._clock = clock
        self._sleep = sleep

    def unit(self, name: str) -> Unit:
        return self._ask(_unit, name)

    def ties(self, name: str) -> Ties:
        return self._ask(_ties, name)

    def _ask(self, question: Callable[[Bus, str], _Answer], name: str) -> _Answer:
        try:
            with self._connect() as connection:
                return question(connection, name)
        except (NoBus, BusError) as error:
            raise SystemdError(str(error)) from error

    def start(self, name: str) -> None:
        try:
            with self._connect() as connection:
                _reset_limit(connection, name)
                connection.call(*_MANAGER, "StartUnit", "ss", name, "replace")
        except (NoBus, BusError) as error:
            raise SystemdError(f"systemd does not start {name}: {error}") from error

    def restart(self, name: str, timeout: float = RESTART_TIMEOUT) -> None:
        try:
            with self._connect() as connection:
                _reset_limit(connection, name)
                connection.call(*_MANAGER, "RestartUnit", "ss", name, "replace")
                unit = self._settled(connection, name, self._clock() + timeout)
        except (NoBus, BusError) as error:
            raise SystemdError(f"systemd does not restart {name}: {error}") from error
        if unit is not None and unit.busy:
            raise SystemdError(f"systemd is not done with {name} after {timeout:g} s: {unit}")
        if unit is not None and not unit.up:
            raise SystemdError(f"{unit} after its restart")

    def _settled(self, connection: Bus, name: str, end: float) -> Unit | None:
        """The unit without a job, or when the time is up; None where the bus went away: then it
        shows by the runtime itself what became of it."""
        try:
            while (unit := _unit(connection, name)).busy and self._clock() < end:
                self._sleep(_PAUSE)
        except NoBus:
            return None
        return unit

    def start_timer(self, timer: Timer) -> None:
        commands = [(c.argv[0], list(c.argv), c.may_fail) for c in timer.commands]
        text = ("Description", ("s", timer.description))
        when = [
            text,
            ("OnActiveSec", ("t", timer.delay * 1_000_000)),
            ("AccuracyUSec", ("t", 1_000_000)),
            ("RemainAfterElapse", ("b", False)),
        ]
        what = [text, ("Type", ("s", "oneshot")), ("ExecStart", ("a(sasb)", commands))]
        first, second = timer.units
        body = (first, "fail", when, [(second, what)])
        try:
            with self._connect() as connection:
                connection.call(*_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", *body)
        except (NoBus, BusError) as error:
            raise SystemdError(f"systemd does not start {first}: {error}") from error

    def stop(self, name: str) -> None:
        try:
            with self._connect() as connection:
                connection.call(*_MANAGER, "StopUnit", "ss", name, "replace")
                self._settled(connection, name, self._clock() + 5.0)
        except BusError as error:
            if not error.name.endswith(".NoSuchUnit"):
                raise SystemdError(f"systemd does not stop {name}: {error}") from error
        except NoBus as error:
            raise SystemdError(f"systemd does not stop {name}: {error}") from error


def _ties(connection: Bus, name: str) -> Ties:
    (path,) = connection.call(*_MANAGER, "LoadUnit", "s", name)
    (variants,) = connection.call(path, _PROPERTIES, "GetAll", "s", _UNIT)
    found: dict[str, Any] = {key: value for key, (_, value) in variants.items()}
    service: dict[str, Any] = {}
    if name.endswith(".service"):
        for key in ("Restart", "MainPID"):
            with suppress(BusError):
                ((_, service[key]),) = connection.call(
                    path, _PROPERTIES, "Get", "ss", _SERVICE, key
                )
    return Ties(
        bound=tuple(map(str, found.get("BoundBy", ()))),
        stopped=tuple(str(other) for key in STOPS for other in found.get(key, ())),
        restart=str(service.get("Restart", "")),
        main_pid=int(service.get("MainPID", 0)) or None,
    )


def _reset_limit(connection: Bus, name: str) -> None:
    """A used-up start limit makes systemd stop a healthy service and not start it again."""
    with suppress(BusError):
        connection.call(*_MANAGER, "ResetFailedUnit", "s", name)


def _unit(connection: Bus, name: str) -> Unit:
    (path,) = connection.call(*_MANAGER, "LoadUnit", "s", name)
    (variants,) = connection.call(path, _PROPERTIES, "GetAll", "s", _UNIT)
    found: dict[str, Any] = {key: value for key, (_, value) in variants.items()}
    active, result = str(found["ActiveState"]), ""
    if active not in UP and name.endswith(".service"):
        with suppress(BusError):
            ((_, result),) = connection.call(path, _PROPERTIES, "Get", "ss", _SERVICE, "Result")
    invocation = bytes(found.get("InvocationID", b""))
    return Unit(
        name=name,
        load=str(found["LoadState"]),
        active=active,
        sub=str(found.get("SubState", "")),
        result=str(result),
        invocation=int.from_bytes(invocation, "big") or None,
        busy=found.get("Job", (0,))[0] != 0,
        carries=tuple(str(other) for key in CARRIES for other in found.get(key, ())),
    )
