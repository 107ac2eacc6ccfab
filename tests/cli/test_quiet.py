"""Commands that restart the runtime wait for a quiet moment first."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.cli.node import CliNode
from tests.conformance import checks
from tests.conformance.trees import contents


@pytest.mark.parametrize("command", ["apply", "revert"])
def test_pod_that_is_being_made(command: str, tmp_path: Path) -> None:
    """Nothing is written until its container is started; then the command goes on."""
    with CliNode(tmp_path) as node:
        if command == "revert":
            checks.done(node.agent("apply"))
        node.script(pods=[{"name": "train", "namespace": "ml", "started": False}])
        starts, before = node.supervisor.starts, contents(node.tree())
        results = []
        thread = threading.Thread(target=lambda: results.append(node.agent(command)))
        thread.start()
        time.sleep(3)
        assert node.supervisor.starts == starts
        assert contents(node.tree()) == before
        node.script(pods=[{"name": "train", "namespace": "ml"}])
        thread.join(20)
        checks.done(results[0])
        assert "container main of ml/train" in results[0].stderr
        assert "although" not in results[0].stderr
        assert node.supervisor.starts == starts + 1


def test_nothing_to_restart_is_nothing_to_wait_for(tmp_path: Path) -> None:
    with CliNode(tmp_path) as node:
        checks.done(node.agent("apply"))
        node.script(pods=[{"name": "train", "namespace": "ml", "started": False}])
        began = time.monotonic()
        checks.done(node.agent("apply"))
        assert time.monotonic() - began < 10
