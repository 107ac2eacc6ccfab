"""A libnvidia-ml of our own for made-up drivers: what it says, and where it breaks.

    place(driver_root, [FakeGpu(0), FakeGpu(1, code=LOST)])
    place(driver_root, [FakeGpu(0)], extra=["abort nvmlInitWithFlags"])

The library is compiled once for each variant; see nvml.c for the lines that steer it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.tools import compiler
from tests.tools.driver import LIBRARIES, VERSION
from tests.tools.host_tools import reason, tool

SOURCE = Path(__file__).with_name("nvml.c")
COMPILER = tool("cc")
NO_COMPILER = reason("cc")

NOT_SUPPORTED, NOT_LOADED, LOST, MISMATCH = 3, 9, 15, 18  # NVML's codes


@dataclass(frozen=True)
class FakePart:
    """A MIG device."""

    index: int
    gi: int
    ci: int = 0
    profile: int = 19
    code: int = 0
    uuid: str = ""

    def name(self, gpu: int) -> str:
        """Its UUID."""
        return self.uuid or f"MIG-{gpu:08x}-0000-4000-8000-{self.gi:06x}{self.ci:06x}"


@dataclass(frozen=True)
class FakeGpu:
    """A GPU; `mig` is -1 where it cannot be split. Unless said, its minor number is its index."""

    index: int
    mig: int = -1
    parts: tuple[FakePart, ...] = ()
    minor: int | None = None
    code: int = 0
    uuid: str = ""
    model: str = "NVIDIA H100 80GB HBM3"
    address: str = ""

    @property
    def number(self) -> int:
        """Its minor number."""
        return self.index if self.minor is None else self.minor

    @property
    def bus(self) -> str:
        """Its PCI address as the kernel spells it."""
        return self.address or f"0000:{0x1A + 16 * self.index:02x}:00.0"

    @property
    def name(self) -> str:
        """Its UUID."""
        return self.uuid or f"GPU-{self.index:08x}-1111-4222-8333-444455556666"

    def lines(self) -> list[str]:
        """What the library reads; NVML's addresses have eight digits, and capitals."""
        yes = f"gpu {self.index} {self.code} {self.number} 0000{self.bus.upper()} {self.name}"
        parts = (
            f"part {self.index} {p.index} {p.code} {p.gi} {p.ci} {p.profile} {p.name(self.index)}"
            for p in self.parts
        )
        return [f"{yes} {self.mig} {self.model}", *parts]


def place(
    root: Path, gpus: Sequence[FakeGpu] = (), extra: Sequence[str] = (), variant: str = ""
) -> Path:
    """Put the library into a driver root in place of what `make_driver` made, and return it."""
    path = root / LIBRARIES / f"libnvidia-ml.so.{VERSION}"
    shutil.copyfile(compiled(variant), path)
    lines = [line for gpu in gpus for line in gpu.lines()]
    Path(f"{path}.script").write_text("\n".join([*extra, *lines]) + "\n", encoding="ascii")
    return path


def compiled(variant: str) -> Path:
    """The library; `variant` is OLD or BARE for one that lacks functions."""
    return compiler.compiled(SOURCE, variant, "-Wl,-soname,libnvidia-ml.so.1")
