"""A restart of real containerd beside a pod that a kubelet is making."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tests.conformance import checks
from tests.sampling import sampled_params
from tests.tools.pods import PodNode, Pods

pytestmark = pytest.mark.real


@pytest.mark.parametrize("generation", sampled_params(["1.6", "1.7", "2.1"], 1, __name__))
def test_restart_waits_for_the_start_of_a_container(generation: str, runtime: Any) -> None:
    """Created, and started three seconds later: the restart comes after that, and the container
    runs through it. The next restart waits for nobody: nothing is young or unstarted."""
    with PodNode(runtime) as node, Pods(node) as pods:
        container = pods.create()
        starts, results = node.supervisor.starts, []
        thread = threading.Thread(target=lambda: results.append(node.agent("apply")))
        thread.start()
        time.sleep(3)
        assert node.supervisor.starts == starts
        container.start()
        thread.join(30)
        checks.done(results[0])
        assert f"tests/{container.pod}" in results[0].stderr
        assert "although" not in results[0].stderr
        assert node.supervisor.starts == starts + 1
        assert container.status().state == "RUNNING"
        result = node.agent("revert")
        checks.done(result)
        assert "quiet moment" not in result.stderr
        assert node.supervisor.starts == starts + 2
        assert container.status().state == "RUNNING"
