"""The connection to the host's systemd, in the first way that works.

Invariant: D-Bus is tried first, the host's `systemctl` last. A connection is used only after it has
answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from agent.host.paths import HostRoot
from agent.systemd.systemctl import Systemctl
from agent.systemd.units import Systemd, SystemdError, Unit

# Environments of systemctl. Without hostPID, systemd closes systemctl's connection to its private
# socket, but not the one to the system bus (observed on systemd 257).
_FORCED: Sequence[Mapping[str, str]] = ({}, {"SYSTEMCTL_FORCE_BUS": "1"})


def candidates(host: HostRoot) -> Iterable[tuple[str, Systemd]]:
    """The possible connections with their names for messages, the best first."""
    from agent.systemd import dbus  # imports jeepney, which is needed only if systemd is asked

    for path in (dbus.SYSTEM_BUS, dbus.PRIVATE):
        yield f"D-Bus at {path}", dbus.OverBus(dbus.opener(host, path))
    for env in _FORCED:
        yield "systemctl", Systemctl(host, env)


def reach(host: HostRoot, name: str) -> tuple[Systemd, Unit]:
    """The first connection that works, and the state of the unit `name`. Raises SystemdError, which
    has the reason for each connection."""
    failures: list[str] = []
    for title, systemd in candidates(host):
        try:
            return systemd, systemd.unit(name)
        except SystemdError as error:
            failures.append(f"{title}: {error}")
    raise SystemdError("; ".join(dict.fromkeys(failures)))
