"""A restart of real containerd beside a pod that a kubelet is making."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.conformance import checks
from tests.sampling import sampled_params
from tests.tools.pods import PodNode, Pods
from tests.tools.waiting import SOON, wait_until

pytestmark = pytest.mark.real


@pytest.mark.parametrize("generation", sampled_params(["1.6", "1.7", "2.1"], 1, __name__, long=2))
def test_restart_waits_for_the_start_of_a_container(generation: str, runtime: Any) -> None:
    """Created, and started a second later: the restart comes after that, and the container
    runs through it. The next restart waits for nobody: nothing is young or unstarted."""
    with PodNode(runtime) as node, Pods(node) as pods:
        container, starts = pods.create(), node.supervisor.starts
        log = node.directory / "apply.log"
        process = node.start_agent("apply", log)
        wait_until(lambda: "waiting for a quiet moment" in log.read_text(), log.read_text)
        time.sleep(1)
        assert node.supervisor.starts == starts
        container.start()
        assert process.wait(SOON) == 0, log.read_text()
        assert f"tests/{container.pod}" in log.read_text()
        assert "although" not in log.read_text()
        assert node.supervisor.starts == starts + 1
        assert container.status().state == "RUNNING"
        result = node.agent("revert")
        checks.done(result)
        assert "quiet moment" not in result.stderr
        assert node.supervisor.starts == starts + 2
        assert container.status().state == "RUNNING"
