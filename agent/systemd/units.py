"""The state of systemd units, and the requests to systemd.

Invariant: units have their full names. systemd is never reloaded. A restart first resets the unit's
start limit, and ends when the unit's job has ended, by D-Bus as well as by systemctl.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from agent.errors import Refused
from agent.host import files
from agent.host.paths import HostRoot

RESTART_TIMEOUT = 120.0  # seconds; systemd's own stop timeout is 90
# Properties with the units that systemd restarts together with a unit.
CARRIES = ("RequiredBy", "BoundBy", "ConsistsOf")

# Properties with the units that systemd stops together with a unit.
STOPS = (*CARRIES, "PropagatesStopTo")

# The directories of unit files. The directory that wins comes first.
_DIRECTORIES = (
    "/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system", "/lib/systemd/system",
)  # fmt: skip

UP = ("active", "reloading", "refreshing")  # values of ActiveState of a unit that runs
_MOST = 64  # dependent units that are examined

_UNIT = re.compile(r"\b[A-Za-z0-9:_.@-]+\.(?:service|socket|target|timer|slice|scope)\b")


def masked_message(text: str) -> str:
    """A message of systemd, in which all words are masked that it may quote from a unit file, but
    no name of a unit."""
    from agent.toml.masking import masked  # needed only if something failed

    return masked(text, _UNIT.findall(text))


def unit_files(host: HostRoot, unit: str | None) -> Iterator[str]:
    """The host paths at which systemd looks for a unit, and its drop-ins; none without a unit."""
    for above in _DIRECTORIES if unit else ():
        yield f"{above}/{unit}"
        with contextlib.suppress(OSError, Refused):
            for name in sorted(files.names(host.resolve(f"{above}/{unit}.d").agent)):
                if name.endswith(".conf"):
                    yield f"{above}/{unit}.d/{name}"


class SystemdError(Exception):
    """systemd refused or failed, or cannot be reached. The message is the reason."""


@dataclass(frozen=True)
class Unit:
    """The state of a unit at one moment. `load`, `active`, `sub` and `result` are systemd's
    LoadState, ActiveState, SubState and Result. `invocation` is a new number with each start, None
    before the first. `busy`: is a job of the unit queued or running? `carries` are the units that
    systemd restarts together with it."""

    name: str
    load: str
    active: str
    sub: str = ""
    result: str = ""
    invocation: int | None = None
    busy: bool = False
    carries: tuple[str, ...] = ()

    @property
    def up(self) -> bool:
        return self.active in UP

    @property
    def given_up(self) -> bool:
        """Is the unit down, without a job that would start it?"""
        return self.active in ("failed", "inactive") and not self.busy

    def __str__(self) -> str:
        words = [self.active, self.sub, *([self.result] if self.result != "success" else [])]
        return f"{self.name} is " + ", ".join(filter(None, words))


@dataclass(frozen=True)
class Ties:
    """The units that depend on a unit: systemd stops those in `bound` if the unit ends by itself,
    and those in `stopped` if the unit is stopped. `restart` is its restart policy, "" if not known.
    `main_pid` is its main process, None if not known."""

    bound: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    restart: str = ""
    main_pid: int | None = None


@dataclass(frozen=True)
class Command:
    """A program of the host with its arguments. `may_fail`: does the next command run even if this
    one fails?"""

    argv: tuple[str, ...]
    may_fail: bool = False


@dataclass(frozen=True)
class Timer:
    """Commands that systemd runs after `delay` seconds, by the units NAME.timer and
    NAME.service."""

    name: str
    delay: int
    commands: tuple[Command, ...]
    description: str

    @property
    def units(self) -> tuple[str, str]:
        """The names of the two units, in the order in which they must be stopped."""
        return f"{self.name}.timer", f"{self.name}.service"


class Systemd(Protocol):
    """A connection to systemd. Every method raises SystemdError."""

    def unit(self, name: str) -> Unit:
        """The state of a unit, also of one that does not exist."""

    def ties(self, name: str) -> Ties:
        """The units that systemd stops together with a unit."""

    def restart(self, name: str, timeout: float = RESTART_TIMEOUT) -> None:
        """Reset the start limit of a unit, restart the unit, and wait until it runs, for `timeout`
        seconds at most."""

    def start(self, name: str) -> None:
        """Start a unit, without waiting until it runs."""

    def start_timer(self, timer: Timer) -> None:
        """Start a timer. Its commands run even if this process has ended by then."""

    def stop(self, name: str) -> None:
        """Stop a unit. If the unit does not exist, nothing happens."""


def units_restarted_with(systemd: Systemd, unit: Unit) -> tuple[str, ...]:
    """The running units that systemd would restart together with a unit, directly or through other
    units. Raises SystemdError."""
    return _running(systemd, unit.name, unit.carries, lambda other: other.carries)


def units_left_stopped(systemd: Systemd, name: str) -> tuple[str, ...]:
    """The running units that would stay stopped if a unit ended by itself and was started again.

    systemd stops the units that are bound to that unit, and the units that need these. Then it
    restarts only units that still run (observed on systemd 252 and 257). Raises SystemdError.
    """
    bound = systemd.ties(name).bound
    return _running(systemd, name, bound, lambda other: systemd.ties(other.name).stopped)


def _running(
    systemd: Systemd, name: str, first: Iterable[str], following: Callable[[Unit], Iterable[str]]
) -> tuple[str, ...]:
    """The running units among `first`, and among those that `following` returns for them, without
    `name`."""
    running: list[str] = []
    seen, queue = {name}, [*first]
    while queue and len(seen) < _MOST:
        other = queue.pop(0)
        if other in seen:
            continue
        seen.add(other)
        unit = systemd.unit(other)
        if unit.up:
            running.append(other)
            queue += following(unit)
    return tuple(sorted(running))


def stays_stopped(ties: Ties) -> bool:
    """Does a unit with this restart policy stay stopped if its process ends cleanly?"""
    return ties.restart not in ("", "always", "on-success")
