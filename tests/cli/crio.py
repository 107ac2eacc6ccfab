"""Nodes with the scripted CRI-O and all of the toolkit's programs."""

from __future__ import annotations

from pathlib import Path

from tests.doubles.crio.crio_node import CrioNode

NAMES = {"nvidia", "nvidia-cdi", "nvidia-legacy"}
HOOK_BINARY = "nvidia-container-runtime-hook"
OFF = "--cdi-enabled=false"
CONFIG_MODE = "--config-mode=config"


def make(place: Path, version: str = "1.37.0", text: str = "") -> CrioNode:
    """Return a node with all of the toolkit's programs, not yet running."""
    node = CrioNode(place, version, text)
    (node.toolkit / HOOK_BINARY).touch(0o755)
    return node


def restarts(node: CrioNode) -> int:
    """Return how often systemd was asked for one."""
    log = node.systemctl_log
    lines = log.read_text().splitlines() if log.exists() else []
    return sum(line.startswith("restart ") for line in lines)
