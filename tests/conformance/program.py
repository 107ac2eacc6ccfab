"""The program under test, on a node with a scripted runtime of any kind.

Invariant: it is told every path, each of them the node's own, and gets no environment but what a
test names.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.conformance import statusfile
from tests.conformance.trees import Tree, snapshot
from tests.tools import forked


class AgentNode:
    """What a node needs for the program under test; the runtime is another class's matter."""

    directory: Path
    etc: Path  # the runtime's configuration
    socket: Path
    program: Path  # the runtime's executable
    toolkit: Path
    validations: Path
    state: Path

    def own_options(self) -> Mapping[str, object]:
        """Options that every command is told on this kind of node, by name."""
        raise NotImplementedError

    def options(self) -> list[str]:
        """What every command is told."""
        given = {
            "host-root": "/",
            "socket": self.socket,
            "executable-path": self.program,
            "toolkit-install-dir": self.toolkit.parent,
            "state-dir": self.state,
            "status-dir": self.validations,
            "proof-timeout": "3",
            "cdi-output-dir": "",  # device nodes need root; what needs them says so
            "driver-root": self.directory / "no-driver",  # and not one that the machine has
            **self.own_options(),
        }
        return [f"--{name}={value}" for name, value in given.items()]

    def agent_prefix(self) -> list[str]:
        """What is put before every command."""
        return []

    def agent_environment(self) -> dict[str, str]:
        """All that the program under test gets."""
        return {"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "1000"}

    def agent(
        self,
        command: str,
        *options: str,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run the program under test to its end; `prefix` is put before it, too."""
        return forked.run(
            forked.AGENT,
            [*command.split(), *self.options(), *options],
            {**self.agent_environment(), **(env or {})},
            self.directory,
            prefix=(*self.agent_prefix(), *prefix),
        )

    def tree(self) -> Tree:
        """Every file of the runtime's configuration, with traces of any touch."""
        return snapshot(self.etc)

    def error(self) -> Mapping[str, str]:
        """What is told beside `toolkit-ready`; empty where nothing is."""
        path = self.validations / statusfile.ERROR
        return statusfile.parse(path.read_text("ascii")) if path.exists() else {}
