"""What the status tests publish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent import status
from agent.decide import Evidence, Question, Switch, decide
from agent.status import Lines

BOOT = "0f0e0d0c-1111-2222-3333-444455556666"
EVIDENCE = (Evidence("cri-status", Switch.TRUE, ("/etc/cdi", "/var/run/cdi")),)
DECISION = decide(Question(version="1.7.24", evidence=EVIDENCE))
PATHS: Mapping[str, str | None] = {
    "NVIDIA_CDI_HOOK_PATH": "/usr/local/nvidia/toolkit/nvidia-cdi-hook",
    "NVIDIA_DRIVER_ROOT": "/run/nvidia/driver",
    "NVIDIA_DEV_ROOT": "/",
}


def lines(
    now: float = 1.7e9, boot: str = BOOT, *, version: str = "1.7.24~ds1",
    socket: str = "/run/containerd/containerd.sock", paths: Mapping[str, str | None] = PATHS,
    **decided: Any,
) -> Lines:  # fmt: skip
    """The contract's lines of a node; `decided` are other values of its decision."""
    return status.lines(
        replace(DECISION, **decided), runtime="containerd", version=version, socket=socket,
        cdi_enabled=True, runtime_name="nvidia", is_default=False, paths=paths, boot_id=boot,
        now=now,
    )  # fmt: skip


def content(directory: Path) -> dict[str, bytes]:
    """Every file there."""
    return {p.name: p.read_bytes() for p in directory.iterdir()}
