"""A device node is the driver's only if the kernel lists the driver under its major number."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cdi.driver import majors
from agent.host.paths import HostRoot


@pytest.mark.parametrize("name", ["evil\u00a0x", "evil\u3000x", "evil\u0085x", "evil\u2028x"])
def test_odd_name_of_a_driver_hides_no_row(name: str, tmp_path: Path) -> None:
    """These are blanks or line ends in Unicode. The kernel knows only those of ASCII."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/devices").write_text(f"Character devices:\n195 {name}\n", "utf-8")
    found = majors.read(HostRoot(str(tmp_path)))
    assert list(found.names) == [195]
    assert found.mismatch("/dev/nvidia0", 195, 0) is not None
