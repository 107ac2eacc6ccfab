"""A host with GPUs in a directory: a scripted containerd, a made-up kernel, a scripted NVML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.cli.hosted import HostedNode
from tests.doubles.nvml.nvml import FakeGpu, place
from tests.tools.driver import make_driver
from tests.tools.kernel import make_kernel

MANAGEMENT, GPU = "management.nvidia.com-gpu.yaml", "nvidia.com-gpu.yaml"
BROKEN = "abort nvmlInitWithFlags"


class GpuHost(HostedNode):
    """Its runtime reads `etc` (/etc/cdi) and `run` (/var/run/cdi); the driver is the host's own."""

    def __init__(self, directory: Path, *gpus: FakeGpu, version: str = "2.1.9") -> None:
        super().__init__(directory, version)
        self.cdi_etc, self.cdi = self.host / "etc/cdi", self.host / "run/cdi"
        for path in (self.cdi_etc, self.cdi):
            path.mkdir(parents=True)
        (self.host / "var").mkdir(exist_ok=True)
        (self.host / "var/run").symlink_to("/run")
        make_driver(self.host)
        self.set(*gpus)

    def options(self) -> list[str]:
        """With specs, where they go by default."""
        return [word for word in super().options() if not word.startswith("--cdi-output-dir")]

    def set(self, *gpus: FakeGpu, extra: Sequence[str] = ()) -> None:
        """Let these be its GPUs, as kernel and NVML have them."""
        self.say(*gpus, extra=extra)
        make_kernel(self.host, self.host, gpus)

    def say(self, *gpus: FakeGpu, extra: Sequence[str] = ()) -> None:
        """Let NVML tell of these, whatever the kernel shows."""
        self.library = place(self.host, gpus, extra)

    def specs(self) -> list[str]:
        """Names of all files of specs."""
        return sorted(path.name for path in (*self.cdi.iterdir(), *self.cdi_etc.iterdir()))

    def text(self, name: str = GPU) -> str:
        """The bytes of a spec of ours, which may come and go."""
        try:
            return (self.cdi / name).read_text("utf-8")
        except FileNotFoundError:
            return ""

    def spec(self, name: str = GPU) -> Mapping[str, Any]:
        """What a spec of ours says; nothing where there is none."""
        found: Mapping[str, Any] | None = yaml.safe_load(self.text(name))
        return found or {}

    def names(self, name: str = GPU) -> list[str]:
        """The devices of a spec."""
        return [device["name"] for device in self.spec(name).get("devices", ())]
