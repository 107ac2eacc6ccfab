"""A made-up host with GPUs, for tests of what is generated there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from agent.cdi.make import generate
from agent.host.paths import HostRoot
from agent.options.settings import resolve
from agent.toolkit import programs
from tests.doubles.nvml.nvml import COMPILER, NO_COMPILER, FakeGpu, place
from tests.tools.driver import LIBRARIES, make_driver
from tests.tools.kernel import make_kernel

# For tests that need such a host.
MARKS = [
    pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root: run as root"),
    pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER),
]

LIB = f"/{LIBRARIES}"
ROOT = "/run/nvidia/driver"
HOOK = "/usr/bin/nvidia-cdi-hook"
OPTIONS = ["ro", "nosuid", "nodev", "rbind", "rprivate"]


class Node:
    """A made-up host with a driver container, its GPUs, and NVIDIA's hook."""

    def __init__(self, host: Path) -> None:
        self.host, self.root = host, host / ROOT[1:]
        hook = host / HOOK[1:]
        hook.parent.mkdir(parents=True)
        hook.write_text("#!/bin/sh\n", encoding="ascii")
        hook.chmod(0o755)
        make_driver(self.root)
        (self.root / "dev/nvidia0").unlink()

    def set(self, *gpus: FakeGpu, extra: tuple[str, ...] = (), variant: str = "") -> Node:
        """Let these be its GPUs."""
        place(self.root, gpus, extra, variant)
        make_kernel(self.host, self.root, gpus)
        return self

    def generate(self, mode: str = "gpu", **options: str) -> tuple[dict[str, Any], list[str]]:
        """The spec as data, and warnings."""
        text, warnings = self.text(mode, "json", **options)
        data: dict[str, Any] = json.loads(text)
        return data, list(warnings)

    def text(self, mode: str, form: str, **options: str) -> tuple[str, tuple[str, ...]]:
        """What is written."""
        asked = resolve(options, {}, "toolkit-agent")
        host = HostRoot(str(self.host))
        hook = programs.find(asked, host, programs.CDI_HOOK)
        return generate.spec_text(mode, asked, host, form, hook=hook)


def names(data: dict[str, Any]) -> list[str]:
    return [device["name"] for device in data["devices"]]


def edits(data: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [d["containerEdits"] for d in data["devices"] if d["name"] == name]
    return dict(found)


def paths(data: dict[str, Any], name: str) -> list[str]:
    return [one["path"] for one in edits(data, name)["deviceNodes"]]


def hook(name: str, *args: str) -> dict[str, Any]:
    return {
        "hookName": "createContainer", "path": HOOK, "args": ["nvidia-cdi-hook", name, *args],
        "env": ["NVIDIA_CTK_DEBUG=false"],
    }  # fmt: skip


def mounted(inside: str, found: str = "") -> dict[str, Any]:
    return {
        "hostPath": f"{ROOT}{found or inside}", "containerPath": inside, "options": OPTIONS,
    }  # fmt: skip
