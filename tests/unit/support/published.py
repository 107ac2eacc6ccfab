"""What the status tests publish."""

from __future__ import annotations

from pathlib import Path

from agent import status
from agent.status import Facts, Lines

BOOT = "0f0e0d0c-1111-2222-3333-444455556666"
FACTS = Facts(
    runtime="containerd",
    runtime_version="1.7.24~ds1",
    socket="/run/containerd/containerd.sock",
    cdi_enabled=True,
    native=True,
    source="cri-status",
    reason="enabled",
    spec_dirs=("/etc/cdi", "/var/run/cdi"),
    cri_field=True,
    runtime_name="nvidia",
    mode="cdi",
    is_default=False,
    strategy=("cdi-cri",),
    annotation_prefix="cdi.k8s.io/",
    hook_path="/usr/local/nvidia/toolkit/nvidia-cdi-hook",
    driver_root="/run/nvidia/driver",
    dev_root="/",
)


def lines(facts: Facts = FACTS, now: float = 1.7e9, boot: str = BOOT) -> Lines:
    """The contract's lines of these facts."""
    return status.lines(facts, boot, now)


def content(directory: Path) -> dict[str, bytes]:
    """Every file there."""
    return {p.name: p.read_bytes() for p in directory.iterdir()}
