"""What is seen of systemd, AppArmor and NRI, on made-up hosts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest

from agent.cri.process import Process
from agent.doctor import look_node
from agent.doctor.facts import NotSeen
from agent.host.paths import HostRoot
from agent.runtimes.base import Runtime
from agent.systemd.units import SystemdError, Ties, Unit

_UNITS = {
    "containerd.service": Unit(
        "containerd.service", "loaded", "active", carries=("docker.service", "kubelet.service")
    ),
    "docker.service": Unit("docker.service", "loaded", "inactive", "dead"),
    "kubelet.service": Unit("kubelet.service", "loaded", "active", "running"),
    "gone.service": Unit("gone.service", "not-found", "inactive"),
}


class _Systemd:
    def unit(self, name: str) -> Unit:
        return _UNITS[name]

    def ties(self, name: str) -> Ties:
        return Ties(bound=("docker.service", "gone.service"))


def runtime(unit: str | None) -> Runtime:
    """A runtime whose process is in that unit."""
    process = Process(7, 1, "/usr/bin/containerd", None, unit, (), "/proc")
    return cast("Runtime", type("Fake", (), {"process": process}))


def reach(_: HostRoot, name: str) -> Any:
    """systemd as it answers here."""
    return _Systemd(), _UNITS[name]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root asks systemd: run tests/run as root")
def test_units_that_go_down_with_the_runtime_are_seen(tmp_path: Path) -> None:
    """Those that are bound and those that are only restarted along; not those that do not exist."""
    found = look_node.units(HostRoot(str(tmp_path)), reach, runtime("containerd.service"))
    assert [(item.name, item.up, item.bound) for item in found] == [
        ("docker.service", False, True),
        ("kubelet.service", True, False),
    ]
    assert found[0].state == "docker.service is inactive, dead"


def test_systemd_that_cannot_be_asked_is_a_reason(tmp_path: Path) -> None:
    """And so is a runtime that no unit runs."""

    def fails(_: HostRoot, __: str) -> Any:
        raise SystemdError("no bus")

    for unit in (None, "containerd.service"):
        with pytest.raises(NotSeen):
            look_node.units(HostRoot(str(tmp_path)), fails, runtime(unit))


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("/usr/bin/nvidia-ctk (enforce)", ["/usr/bin/nvidia-ctk"]),
        ("snap.x (kill)", ["snap.x"]),
        ("runc (unconfined)", []),
        ("site (complain)", []),
        ("/usr/bin/man//filter (enforce)", []),
        ("unconfined", []),
        ("", []),
    ],
)
def test_profiles_in_force_are_told_from_others(line: str, names: list[str]) -> None:
    """As the kernel writes them."""
    assert list(look_node._enforced([line])) == names
