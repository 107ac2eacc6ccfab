"""A node whose root is a directory, for black box tests of the command line.

Invariant: no path but the host root is told; all others have their usual names inside it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.cli.cli_node import CliNode
from tests.doubles.runtime.install import make_fake_containerd
from tests.tools import forked


class HostedNode(CliNode):
    """A node whose whole machine is a directory: `--host-root` points to it."""

    def __init__(self, directory: Path, version: str = "2.1.9") -> None:
        super().__init__(directory, version)
        self.host = directory / "host"
        make_fake_containerd(
            directory / "bin", self.version, sys.executable, node=self.host, server=forked.address()
        )
        self.etc = self.host / "etc/containerd"
        self.etc.mkdir(parents=True)
        self.config = self.etc / "config.toml"
        self.config.write_text(f"version = {2 if version.startswith('1.') else 3}\n")
        self.drop_in = self.etc / "conf.d/99-nvidia.toml"
        self.socket = self.host / "run/containerd/containerd.sock"
        self.validations = self.host / "run/nvidia/validations"
        self.state = self.host / "var/lib/toolkit-agent"
        toolkit = self.host / "usr/local/nvidia/toolkit"
        shutil.copytree(self.toolkit, toolkit)
        self.toolkit = toolkit
        (self.host / "proc/self").mkdir(parents=True)  # this machine's processes are not its own
        self.argv = [str(self.program)]
        self.supervisor = self.run()

    def options(self) -> list[str]:
        """No path but the host root: all others have their usual names inside it."""
        return [
            *(f"--host-root={self.host}", "--restart-mode=signal", "--proof-timeout=5"),
            "--cdi-output-dir=",
        ]
