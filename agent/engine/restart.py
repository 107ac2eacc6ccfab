"""Ways to restart a runtime, chosen before anything is touched.

Invariant: a restart names exactly what it acts on, a unit that was checked or a process that is
still the one that was checked; where neither can be had, the change is refused beforehand.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from agent.errors import Refused
from agent.host.paths import HostRoot
from agent.observe import command
from agent.observe.process import Process, is_kind, is_unit, start_time

Kind = Literal["systemd", "signal", "none"]

_NOT_RUN = range(125, 128)  # what chroot(1) ends with where it could not run the program
_SYSTEMCTL_ENV: tuple[Mapping[str, str], ...] = ({}, {"SYSTEMCTL_FORCE_BUS": "1"})
_SYSTEMCTL_TIMEOUT = 120.0  # seconds; systemd's own stop timeout is 90


class RestartFailed(Exception):
    """The restart could not be carried out; the message says why."""


@dataclass(frozen=True, slots=True)
class Restart:
    """How this node's runtime is restarted: `target` is a unit or a pid, for people."""

    kind: Kind
    target: str
    act: Callable[[Process | None], None]


def choose(mode: str, process: Process | None, host: HostRoot, kind: str) -> Restart:
    """The way to restart for --restart-mode. Raises Refused where it cannot work.

    auto: the systemd unit that owns the process behind the CRI socket; systemd: the same, else the
    unit that has the runtime's name.
    """
    if mode == "none":
        return Restart("none", "nobody", lambda _: None)
    if process is None:
        raise Refused(
            f"cannot restart {kind}: the process behind its socket cannot be seen from here; run "
            "with hostPID, or give --restart-mode=none and restart it yourself"
        )
    if not is_kind(process, kind):
        raise Refused(
            f"cannot restart {kind}: process {process.pid} behind its socket is "
            f"{process.executable or 'unknown'}; give the CRI socket of {kind}"
        )
    if mode == "signal":
        if kind != "containerd":
            raise Refused(
                f"cannot restart {kind} by a signal: it ends cleanly and systemd leaves it dead; "
                "give --restart-mode=systemd"
            )
        if process.pid <= 1 or process.proc != "/proc":
            raise Refused(
                f"cannot signal {kind}: its process has no pid of its own here; run with hostPID"
            )
        return Restart("signal", f"pid {process.pid}", _terminate)
    unit = process.unit or (f"{kind}.service" if mode == "systemd" else None)
    if unit is None:
        raise Refused(
            f"cannot restart {kind}: no systemd unit owns process {process.pid}; give "
            "--restart-mode=signal if something starts it again, or none to restart it yourself"
        )
    return _by_systemd(unit, host, ours=process.unit is not None)


def resume(kind: str, target: str, host: HostRoot) -> Restart | None:
    """The way that a journal names, for a runtime that may be down; None for nobody's business."""
    if kind == "systemd" and is_unit(target):
        return Restart("systemd", target, lambda _: _restart_unit(target, host))
    return Restart("signal", target, _terminate) if kind == "signal" else None


def _restart_unit(unit: str, host: HostRoot) -> None:
    try:
        way = _by_systemd(unit, host, ours=True)
    except Refused as error:
        raise RestartFailed(error.message) from error
    way.act(None)


def _by_systemd(unit: str, host: HostRoot, *, ours: bool) -> Restart:
    """systemctl in the host root, tried out first: without hostPID its private socket hangs up on
    us, and the system bus does not (observed on systemd 257).

    `ours`: the unit is known to run the runtime; one that is only supposed to has to be active, or
    a second runtime would be started. Raises Refused.
    """
    failure = ""
    for env in _SYSTEMCTL_ENV:
        words = ["systemctl", "show", "--property=LoadState,ActiveState", unit]
        done = command.run(host, words, _SYSTEMCTL_TIMEOUT, env=env)
        if done.code is not None and done.code not in _NOT_RUN and "connect to" not in done.error:
            _check_unit(unit, done.out.decode("utf-8", "replace"), ours=ours)
            return Restart("systemd", unit, functools.partial(_systemctl, host, unit, env))
        failure = failure or (done.error.strip().splitlines() or ["no answer"])[0]
    raise Refused(
        f"cannot restart {unit}: systemctl does not reach systemd: {failure}; run with hostPID or "
        "mount the host's /run, or give --restart-mode=none and restart it yourself"
    )


def _check_unit(unit: str, properties: str, *, ours: bool) -> None:
    """Refuse a unit that systemd would not restart, by what `systemctl show` says of it."""
    shown = dict(line.split("=", 1) for line in properties.splitlines() if "=" in line)
    for key, wanted in (("LoadState", "loaded"), *(() if ours else (("ActiveState", "active"),))):
        if shown.get(key, wanted) != wanted:
            raise Refused(
                f"cannot restart {unit}: its {key} is {shown[key]}; repair the unit, or give "
                "--restart-mode=signal or none"
            )


def _terminate(process: Process | None) -> None:
    """SIGTERM to the very process that was looked at; a pid that was reused gets none.

    SIGHUP would kill containerd just the same, and leave its socket behind.
    """
    if process is None:
        return  # it is dead, and whatever supervises it is starting it again
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except OSError as error:
        raise RestartFailed(f"process {process.pid}: {os.strerror(error.errno or 0)}") from error
    try:
        # From here on the descriptor is this process, whoever gets its pid later.
        if start_time(process.pid) == process.start:
            signal.pidfd_send_signal(fd, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise RestartFailed(f"process {process.pid}: not permitted to signal it") from error
    finally:
        os.close(fd)


def _systemctl(host: HostRoot, unit: str, env: Mapping[str, str], _: Process | None) -> None:
    # A start limit that is used up makes systemd stop a healthy service and not start it again.
    command.run(host, ["systemctl", "reset-failed", unit], _SYSTEMCTL_TIMEOUT, env=env)
    done = command.run(host, ["systemctl", "restart", unit], _SYSTEMCTL_TIMEOUT, env=env)
    if done.code != 0:
        lines = done.error.strip().splitlines()
        raise RestartFailed(f"systemctl restart {unit}: {lines[0] if lines else done.code}")
