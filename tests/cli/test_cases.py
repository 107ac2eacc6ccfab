"""Nodes from public reports that no other test has. `tests/reported.py` has all of them."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.cli import crio
from tests.cli.cli_node import fails
from tests.conformance import checks

_FILE = """
[crio]

  [crio.runtime]

    [crio.runtime.runtimes]

      [crio.runtime.runtimes.nvidia]
        runtime_path = "{program}"
        runtime_type = "oci"
"""
_PACKAGED = """
[crio.runtime]
default_runtime = "crun"

[crio.runtime.runtimes.crun]
runtime_path = "{libexec}/crun"
runtime_root = "/run/crun"
monitor_path = "{libexec}/conmon"
allowed_annotations = ["io.containers.trace-syscall"]
"""


def test_case_24_drop_in_without_conmon_is_made_whole(place: Path) -> None:
    """nvidia-container-toolkit#681: nvidia-ctk's drop-in waits for a restart that CRI-O would not
    survive, because conmon is where the package has it, and not in the PATH. `apply` makes the
    handler whole. `revert` does not bring such bytes back: CRI-O would not start on them."""
    libexec = place / "usr/libexec/crio"
    libexec.mkdir(parents=True)
    node = crio.make(
        place, text=f'runtime_path = "{libexec}/crun"\nmonitor_path = "{libexec}/conmon"'
    )
    for name in ("crun", "conmon"):
        (node.bin / name).rename(libexec / name)
    lines = node.config.read_text().splitlines(keepends=True)
    node.config.write_text("".join(line for line in lines if not line.startswith("conmon")))
    (node.drop_ins / "10-crio.conf").write_text(_PACKAGED.format(libexec=libexec))
    with node:
        node.drop_in.write_text(_FILE.format(program=node.toolkit / "nvidia-container-runtime"))
        checks.done(node.agent("apply"))
        found = tomllib.loads(node.drop_in.read_text())["crio"]["runtime"]["runtimes"]["nvidia"]
        assert found["monitor_path"] == f"{libexec}/conmon"
        assert found["runtime_root"] == "/run/crun"
        assert found["allowed_annotations"] == ["io.containers.trace-syscall"]
        config = node.toolkit / ".config/nvidia-container-runtime/config.toml"
        calls = tomllib.loads(config.read_text())["nvidia-container-runtime"]["runtimes"]
        assert calls[0] == f"{libexec}/crun"
        process = node.supervisor.pid
        fails(node.agent("revert"), 3, "does not start on the original files", "conmon")
        assert node.supervisor.pid == process
        assert "nvidia" in node.answer().runtimes
