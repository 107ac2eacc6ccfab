"""Reaching the host's systemd, by whichever way works from here.

Invariant: D-Bus first, the host's `systemctl` last; a way is only used after it has answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from agent.host.paths import HostRoot
from agent.systemd import bus
from agent.systemd.dbus import OverBus
from agent.systemd.systemctl import OverCommand
from agent.systemd.units import Systemd, SystemdError, Unit

# Without hostPID systemd's private socket hangs up on systemctl, and the system bus does not
# (observed on systemd 257).
_FORCED: Sequence[Mapping[str, str]] = ({}, {"SYSTEMCTL_FORCE_BUS": "1"})


def ways(host: HostRoot) -> Iterable[tuple[str, Systemd]]:
    """Every way to it with its name, the best first."""
    for path in (bus.SYSTEM_BUS, bus.PRIVATE):
        yield f"D-Bus at {path}", OverBus(bus.opener(host, path))
    for env in _FORCED:
        yield "systemctl", OverCommand(host, env)


def reach(host: HostRoot, name: str) -> tuple[Systemd, Unit]:
    """A way to systemd that works, proven by what it says of a unit. Raises SystemdError."""
    failures: list[str] = []
    for title, way in ways(host):
        try:
            return way, way.unit(name)
        except SystemdError as error:
            failures.append(f"{title}: {error}")
    raise SystemdError("; ".join(dict.fromkeys(failures)))
