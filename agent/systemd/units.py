"""The state of systemd units, and the requests to systemd.

Invariant: units are named in full. systemd is never reloaded. A restart resets the unit's start
limit first, and is over when its job is over, by D-Bus as well as by systemctl.
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
# Properties of a unit: systemd restarts the units in them along with it.
CARRIES = ("RequiredBy", "BoundBy", "ConsistsOf")

# Properties of a unit: systemd stops the units in them along with it.
STOPS = (*CARRIES, "PropagatesStopTo")

# Where units are, the place that wins first.
_DIRECTORIES = (
    "/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system", "/lib/systemd/system",
)  # fmt: skip

UP = ("active", "reloading", "refreshing")
_MOST = 64  # dependent units that are looked at

_UNIT = re.compile(r"\b[A-Za-z0-9:_.@-]+\.(?:service|socket|target|timer|slice|scope)\b")


def masked_message(text: str) -> str:
    """A message of systemd with the names of units, and with everything else masked that it may
    quote from a unit file."""
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
    """systemd refused or failed, or cannot be reached; the message says why."""


@dataclass(frozen=True)
class Unit:
    """A unit at one moment. `invocation` is a new number with each start, None before the first.
    `busy`: a job of the unit is queued or running. `carries` are units that are restarted along."""

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
        """Is it down, with no job that would start it?"""
        return self.active in ("failed", "inactive") and not self.busy

    def __str__(self) -> str:
        words = [self.active, self.sub, *([self.result] if self.result != "success" else [])]
        return f"{self.name} is " + ", ".join(filter(None, words))


@dataclass(frozen=True)
class Ties:
    """What depends on a unit: `bound` units are stopped if it ends by itself, `stopped` units
    if it is stopped. `restart` is its restart policy, `main_pid` its main process; "" and None
    if they are not known."""

    bound: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    restart: str = ""
    main_pid: int | None = None


@dataclass(frozen=True)
class Command:
    """A program of the host with its arguments; `may_fail`: the next one runs even if it fails."""

    argv: tuple[str, ...]
    may_fail: bool = False


@dataclass(frozen=True)
class Timer:
    """Commands that systemd runs after `delay` seconds, as NAME.timer and NAME.service."""

    name: str
    delay: int
    commands: tuple[Command, ...]
    description: str

    @property
    def units(self) -> tuple[str, str]:
        """The names of its units, in the order in which they must be stopped."""
        return f"{self.name}.timer", f"{self.name}.service"


class Systemd(Protocol):
    """A connection to systemd. Every method raises SystemdError."""

    def unit(self, name: str) -> Unit:
        """The state of a unit, loaded or not."""

    def ties(self, name: str) -> Ties:
        """The units that go down with a unit."""

    def restart(self, name: str, timeout: float = RESTART_TIMEOUT) -> None:
        """Reset the start limit of a unit, restart it, and wait until it is up."""

    def start(self, name: str) -> None:
        """Start a unit, without waiting for it."""

    def start_timer(self, timer: Timer) -> None:
        """Run commands later, even if this process is gone by then."""

    def stop(self, name: str) -> None:
        """Stop a unit; a unit that does not exist is no error."""


def units_restarted_with(systemd: Systemd, unit: Unit) -> tuple[str, ...]:
    """The running units that systemd would restart along with this one, directly or through
    another. Raises SystemdError."""
    return _running(systemd, unit.name, unit.carries, lambda other: other.carries)


def units_left_stopped(systemd: Systemd, name: str) -> tuple[str, ...]:
    """The running units that stay stopped after a unit ended by itself and was started again.

    systemd stops the units that are bound to it, and the units that need these. It restarts only
    units that still run then (observed on systemd 252 and 257). Raises SystemdError.
    """
    bound = systemd.ties(name).bound
    return _running(systemd, name, bound, lambda other: systemd.ties(other.name).stopped)


def _running(
    systemd: Systemd, name: str, first: Iterable[str], following: Callable[[Unit], Iterable[str]]
) -> tuple[str, ...]:
    """The running units among `first`, and those that follow from them, without `name`."""
    found: list[str] = []
    seen, queue = {name}, [*first]
    while queue and len(seen) < _MOST:
        other = queue.pop(0)
        if other in seen:
            continue
        seen.add(other)
        unit = systemd.unit(other)
        if unit.up:
            found.append(other)
            queue += following(unit)
    return tuple(sorted(found))


def stays_stopped(ties: Ties) -> bool:
    """Does the restart policy leave a unit stopped whose process ended cleanly?"""
    return ties.restart not in ("", "always", "on-success")
