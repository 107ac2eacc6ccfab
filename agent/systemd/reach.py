"""Connecting to the host's systemd in the first way that works.

Invariant: D-Bus is tried first, the host's `systemctl` last. A connection is used only after it has
answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from agent.host.paths import HostRoot
from agent.systemd.systemctl import Systemctl
from agent.systemd.units import Systemd, SystemdError, Unit

# Without hostPID systemd closes the connection of systemctl to its private socket, but not that to
# the system bus (observed on systemd 257).
_FORCED: Sequence[Mapping[str, str]] = ({}, {"SYSTEMCTL_FORCE_BUS": "1"})


def candidates(host: HostRoot) -> Iterable[tuple[str, Systemd]]:
    """All connections to try, with their names, the best first."""
    from agent.systemd import dbus  # with jeepney, needed only if systemd is asked

    for path in (dbus.SYSTEM_BUS, dbus.PRIVATE):
        yield f"D-Bus at {path}", dbus.OverBus(dbus.opener(host, path))
    for env in _FORCED:
        yield "systemctl", Systemctl(host, env)


def reach(host: HostRoot, name: str) -> tuple[Systemd, Unit]:
    """A connection that works, and the unit that it showed. Raises SystemdError."""
    failures: list[str] = []
    for title, systemd in candidates(host):
        try:
            return systemd, systemd.unit(name)
        except SystemdError as error:
            failures.append(f"{title}: {error}")
    raise SystemdError("; ".join(dict.fromkeys(failures)))
