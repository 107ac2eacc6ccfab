"""What systemd says of units, and what it is asked to do with them.

Invariant: units are named in full, nothing is ever reloaded, a restart begins with a fresh start
limit and is over when its job is, whichever way systemd is reached.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

RESTART_TIMEOUT = 120.0  # seconds; systemd's own stop timeout is 90
# systemd carries a restart of a unit on to units that have it in these properties.
CARRIES = ("RequiredBy", "BoundBy", "ConsistsOf")

# A stop of a unit is carried on to these.
STOPS = (*CARRIES, "PropagatesStopTo")

UP = ("active", "reloading", "refreshing")
_MOST = 64  # units that are looked at for what goes along


_UNIT = re.compile(r"\b[A-Za-z0-9:_.@-]+\.(?:service|socket|target|timer|slice|scope)\b")


def said(text: str) -> str:
    """What systemd says, with the names of units and without what else it may repeat of them."""
    from agent.toml.masking import masked  # needed only where something failed

    return masked(text, _UNIT.findall(text))


class SystemdError(Exception):
    """systemd did not do it, or cannot be reached; the message says why."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit at one moment. `invocation` is another number with each start, None while it never
    ran; `busy`: a job of it is queued or running; `carries` are units that it restarts along."""

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
        """It does not run, and nothing is under way that would start it."""
        return self.active in ("failed", "inactive") and not self.busy

    def __str__(self) -> str:
        words = [self.active, self.sub, *([self.result] if self.result != "success" else [])]
        return f"{self.name} is " + ", ".join(filter(None, words))


@dataclass(frozen=True, slots=True)
class Ties:
    """What happens with a unit's own end: `bound` units are stopped where it goes down by itself,
    `stopped` ones where it is stopped. `restart` is its policy, `main_pid` its process; "" and None
    where that is not known."""

    bound: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    restart: str = ""
    main_pid: int | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """A program of the host with its arguments; `may_fail`: the next one runs all the same."""

    argv: tuple[str, ...]
    may_fail: bool = False


@dataclass(frozen=True, slots=True)
class Timer:
    """Commands that systemd runs after `delay` seconds, as NAME.timer and NAME.service."""

    name: str
    delay: int
    commands: tuple[Command, ...]
    description: str

    @property
    def units(self) -> tuple[str, str]:
        """In the order in which they are to be stopped."""
        return f"{self.name}.timer", f"{self.name}.service"


class Systemd(Protocol):
    """One way to talk to it. Every method raises SystemdError."""

    def unit(self, name: str) -> Unit:
        """What it says of a unit, loaded or not."""

    def ties(self, name: str) -> Ties:
        """What else goes down with a unit."""

    def restart(self, name: str, timeout: float = RESTART_TIMEOUT) -> None:
        """Restart a unit and wait until it is up again, with a fresh start limit."""

    def start(self, name: str) -> None:
        """Have a unit started; it need not be up yet."""

    def start_timer(self, timer: Timer) -> None:
        """Run something later, whatever becomes of us."""

    def stop(self, name: str) -> None:
        """Stop a unit; one that does not exist is stopped."""


def along(way: Systemd, unit: Unit) -> tuple[str, ...]:
    """Units that run and that systemd would restart with this one, directly or by way of another.

    Raises SystemdError.
    """
    found: list[str] = []
    seen = {unit.name}
    queue = list(unit.carries)
    while queue and len(seen) < _MOST:
        name = queue.pop(0)
        if name in seen:
            continue
        seen.add(name)
        other = way.unit(name)
        if other.up:
            found.append(name)
            queue += other.carries
    return tuple(sorted(found))


def lost(way: Systemd, name: str) -> tuple[str, ...]:
    """Units that run, and that stay dead once a unit ended by itself and was started again.

    systemd stops those that are bound to it, and whatever needs these; it restarts only what still
    runs by then (observed on systemd 252 and 257). Raises SystemdError.
    """
    found: list[str] = []
    queue = list(way.ties(name).bound)
    while queue and len(found) < _MOST:
        other = queue.pop(0)
        if other in (name, *found) or not way.unit(other).up:
            continue
        found.append(other)
        queue += way.ties(other).stopped
    return tuple(sorted(found))


def leaves_dead(ties: Ties) -> bool:
    """Does systemd not start a unit again whose process ended cleanly?"""
    return ties.restart not in ("", "always", "on-success")
