"""Commands that restart the runtime wait for a quiet moment first."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode
from tests.conformance import checks
from tests.conformance.trees import contents
from tests.tools import forked
from tests.tools.waiting import SOON, wait_until


@pytest.mark.parametrize("command", ["apply", "revert"])
def test_restart_waits_for_a_pod_that_is_being_made(command: str, tmp_path: Path) -> None:
    """Nothing is written until its container is started; then the command goes on."""
    with CliNode(tmp_path) as node:
        if command == "revert":
            checks.done(node.agent("apply"))
        node.script(pods=[{"name": "train", "namespace": "ml", "started": False}])
        starts, before = node.supervisor.starts, contents(node.tree())
        log = node.directory / "command.log"
        process = forked.start_logged(
            forked.AGENT, [command, *node.options()], node.agent_environment(), node.directory, log
        )
        wait_until(lambda: "waiting for a quiet moment" in log.read_text(), log.read_text)
        time.sleep(1)
        assert node.supervisor.starts == starts
        assert contents(node.tree()) == before
        node.script(pods=[{"name": "train", "namespace": "ml"}])
        assert process.wait(SOON) == 0, log.read_text()
        assert "container main of ml/train" in log.read_text()
        assert "although" not in log.read_text()
        assert node.supervisor.starts == starts + 1


def test_nothing_to_restart_is_nothing_to_wait_for(tmp_path: Path) -> None:
    with CliNode(tmp_path) as node:
        checks.done(node.agent("apply"))
        node.script(pods=[{"name": "train", "namespace": "ml", "started": False}])
        result = node.agent("apply")
        checks.done(result)
        assert "quiet moment" not in result.stderr
