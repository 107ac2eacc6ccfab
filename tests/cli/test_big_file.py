"""An apply that changes nothing does not parse a large configuration to edit it."""

from __future__ import annotations

from pathlib import Path

from tests.cli.cli_node import CliNode
from tests.conformance import checks
from tests.doubles.containerd.sample import SECTIONS, handler

_EDITING = ("tomlkit", "agent.toml.scan", "agent.toml.place")


def imported(log: str) -> set[str]:
    """Return the modules that Python says it imported."""
    return {line.rpartition("|")[2].strip() for line in log.splitlines() if "|" in line}


def test_apply_that_changes_nothing_loads_no_editor(tmp_path: Path) -> None:
    """tomlkit takes a second for such a file; `tomllib` takes 20 ms, and is all that is needed."""
    text = handler("runc", SECTIONS[2])
    for number in range(1000):
        name = f"r{number}.example"
        text += f'[{SECTIONS[2]}.registry.mirrors."{name}"]\nendpoint = ["https://{name}"]\n'
    with CliNode(tmp_path, "1.7.24", text) as node:
        checks.done(node.agent("apply"))
        before = node.config.read_bytes()
        second = node.agent("apply", env={"PYTHONPROFILEIMPORTTIME": "1"})
        checks.done(second)
        assert "agent.toml.document" in imported(second.stderr)
        assert imported(second.stderr).isdisjoint(_EDITING)
        assert node.config.read_bytes() == before
