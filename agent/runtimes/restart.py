"""Ways to restart a runtime, chosen before anything is touched.

Invariant: a restart acts on the unit or on the process that was checked. If there is neither, the
change is refused beforehand.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from agent.cri.process import Process, is_kind, is_service_name, start_time
from agent.errors import Refused
from agent.host.paths import HostRoot
from agent.runtimes import registry
from agent.systemd import reach, units
from agent.systemd.units import Systemd, SystemdError

_UP_SECONDS = 20.0  # in which the units that systemd restarted with the runtime have to run again
_PAUSE = 0.2

Kind = Literal["systemd", "signal", "none"]


class RestartFailed(Exception):
    """The restart could not be carried out. The message is the reason."""


@dataclass(frozen=True)
class Restart:
    """A way to restart this node's runtime.

    `target` is the unit or the pid, as shown to a person. `act` restarts the runtime and raises
    RestartFailed. `restarted_units` are the running units that systemd restarts with the runtime.
    `down` is called after the restart: it waits for these units, starts those that systemd has
    given up, and returns those that do not run. `warnings` are for a person, before the
    restart."""

    kind: Kind
    target: str
    act: Callable[[Process | None], None]
    restarted_units: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    down: Callable[[], tuple[str, ...]] = tuple


def choose(mode: str, process: Process | None, host: HostRoot, kind: str) -> Restart:
    """The way to restart for a value of --restart-mode. `process` is the runtime's, None if it
    cannot be seen. Raises Refused if that way cannot work.

    "auto" restarts the systemd unit that owns the process. "systemd" does the same; if no unit owns
    the process, or if the process cannot be seen, it restarts the unit with the runtime's name.
    """
    if mode == "none":
        return Restart("none", "nobody", lambda _: None)
    starts_again = registry.adapter(kind).starts_again
    if mode == "signal" and not starts_again:
        raise Refused(
            f"cannot restart {kind} by a signal: it ends cleanly and systemd leaves it dead; "
            "give --restart-mode=systemd"
        )
    if process is None and mode == "systemd":
        return _by_systemd(f"{kind}.service", host, is_runtime_unit=False)
    if process is None:
        raise Refused(
            f"cannot restart {kind}: the process behind its socket cannot be seen from here; run "
            "with hostPID, give --restart-mode=systemd if its unit has its name, or none and "
            "restart it yourself"
        )
    if not is_kind(process, kind):
        raise Refused(
            f"cannot restart {kind}: process {process.pid} behind its socket is "
            f"{process.executable or 'unknown'}; give the CRI socket of {kind}"
        )
    if mode == "signal":
        if process.pid <= 1 or process.proc != "/proc":
            raise Refused(
                f"cannot signal {kind}: its process has no pid of its own here; run with hostPID"
            )
        return _by_signal(process, host, kind)
    unit = process.unit or (f"{kind}.service" if mode == "systemd" else None)
    if unit is None:
        other = "=signal if something starts it again, or none" if starts_again else "=none"
        raise Refused(
            f"cannot restart {kind}: no systemd unit owns process {process.pid}; give "
            f"--restart-mode{other} to restart it yourself"
        )
    return _by_systemd(unit, host, is_runtime_unit=process.unit is not None)


def _by_signal(process: Process, host: HostRoot, kind: str) -> Restart:
    """A restart by SIGTERM. If a systemd unit owns the process, systemd takes the end of the
    process for a stop of the unit, stops the units that are bound to that unit, and starts none of
    them again. Raises Refused if a unit would stay stopped."""
    target, unit = f"pid {process.pid}", process.unit
    if unit is None:
        return Restart("signal", target, _terminate)
    try:
        systemd, owner = reach.reach(host, unit)
        ties = systemd.ties(unit)
        if ties.main_pid != process.pid:  # the unit does not end with it
            return Restart("signal", target, _terminate)
        left_stopped = units.units_left_stopped(systemd, unit)
        restarted_units = units.units_restarted_with(systemd, owner)
    except SystemdError as error:
        text = (
            f"{unit} owns process {process.pid}, and systemd cannot be asked which units go down "
            f"with it ({error}): those that are bound to it stay dead after a signal"
        )
        return Restart("signal", target, _terminate, warnings=(text,))
    if units.stays_stopped(ties):
        raise Refused(
            f"cannot restart {kind} by a signal: {unit} has Restart={ties.restart}, and systemd "
            "leaves it dead; give --restart-mode=systemd"
        )
    if left_stopped:
        raise Refused(
            f"cannot restart {kind} by a signal: {', '.join(left_stopped)} would be stopped with "
            f"{unit}, and nothing starts them again; give --restart-mode=systemd"
        )
    down = partial(still_down, systemd, restarted_units)
    return Restart("signal", target, _terminate, restarted_units, down=down)


def still_down(
    systemd: Systemd, names: tuple[str, ...], *,
    clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
) -> tuple[str, ...]:  # fmt: skip
    """Wait until the units in `names` run, for 20 s at most, and return those that do not. A unit
    that systemd has given up is started once. A unit whose state is not known is not returned."""
    started: set[str] = set()
    end = clock() + _UP_SECONDS
    while True:
        down = []
        for name in names:
            with contextlib.suppress(SystemdError):
                unit = systemd.unit(name)
                if unit.given_up and name not in started:
                    started.add(name)
                    systemd.start(name)
                if not unit.up:
                    down.append(name)
        if not down or clock() >= end:
            return tuple(down)
        sleep(_PAUSE)


def resume(kind: str, target: str, host: HostRoot) -> Restart | None:
    """The restart that a journal names by `kind` and `target`, for a runtime that may be down. None
    if the restart is left to a person."""

    def restart_unit(_: Process | None) -> None:
        try:
            systemd = _by_systemd(target, host, is_runtime_unit=True)
        except Refused as error:
            raise RestartFailed(error.message) from error
        systemd.act(None)

    if kind == "systemd" and is_service_name(target):
        return Restart("systemd", target, restart_unit)
    return Restart("signal", target, _terminate) if kind == "signal" else None


def _by_systemd(unit: str, host: HostRoot, *, is_runtime_unit: bool) -> Restart:
    """A restart of `unit` by systemd. Raises Refused if systemd cannot be reached, or if the unit
    is not loaded.

    `is_runtime_unit` means that the unit is known to run the runtime. Any other unit has to be
    active, because otherwise its restart would start a second runtime.
    """
    try:
        systemd, state = reach.reach(host, unit)
    except SystemdError as error:
        raise Refused(
            f"cannot restart {unit}: systemd cannot be reached: {error}; mount the host's /run "
            "below the host root, or give --restart-mode=none and restart it yourself"
        ) from error
    loaded = state.load == "loaded"
    if not loaded or not (is_runtime_unit or state.active == "active"):
        wrong = f"ActiveState is {state.active}" if loaded else f"LoadState is {state.load}"
        raise Refused(
            f"cannot restart {unit}: its {wrong}; repair the unit, or give "
            "--restart-mode=signal or none"
        )
    try:
        restarted_units = units.units_restarted_with(systemd, state)
        others = [systemd.unit(name) for name in restarted_units]
    except SystemdError:
        restarted_units, others = (), []  # not important enough for an error
    # systemd cannot start a scope or a unit without its file.
    lost = [one.name for one in others if one.name.endswith(".scope") or one.load != "loaded"]

    def act(_: Process | None) -> None:
        try:
            systemd.restart(unit)
        except SystemdError as error:
            raise RestartFailed(str(error)) from error

    warnings = (
        f"{name} is stopped with {unit}, and systemd cannot start it again" for name in lost
    )
    down = partial(still_down, systemd, restarted_units)
    return Restart("systemd", unit, act, restarted_units, tuple(warnings), down)


def _terminate(process: Process | None) -> None:
    """Send SIGTERM to the process that was checked, never to another process with the same pid.
    Raises RestartFailed.

    SIGHUP would end containerd too, but leave its socket behind.
    """
    if process is None:
        return  # the process is dead, and its supervisor is starting it again
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except OSError as error:
        raise RestartFailed(f"process {process.pid}: {os.strerror(error.errno or 0)}") from error
    try:
        # The descriptor stands for this process from here on, even if another process gets its pid.
        if start_time(process.pid) == process.start:
            signal.pidfd_send_signal(fd, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise RestartFailed(f"process {process.pid}: not permitted to signal it") from error
    finally:
        os.close(fd)


def down_message(unit: str) -> str:
    """The message for a unit that a restart stopped and that does not run again."""
    return f"{unit} ran before the restart and does not run now; look at `systemctl status {unit}`"
