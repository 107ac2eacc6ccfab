"""What systemd says of units, and what it is asked to do with them.

Invariant: units are named in full, nothing is ever reloaded, a restart begins with a fresh start
limit and is over when its job is, whichever way systemd is reached.
"""

from __future__ import annotations

from typing import Protocol

from agent.data import dataclass

RESTART_TIMEOUT = 120.0  # seconds; systemd's own stop timeout is 90
# systemd carries a restart of a unit on to units that have it in these properties.
CARRIES = ("RequiredBy", "BoundBy", "ConsistsOf")

UP = ("active", "reloading", "refreshing")
_MOST = 64  # units that are looked at for what goes along


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

    def restart(self, name: str, timeout: float = RESTART_TIMEOUT) -> None:
        """Restart a unit and wait until it is up again, with a fresh start limit."""

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
