"""What users of such tools suffer from, on real runtimes. `tests/reported.py` has all of it."""

from __future__ import annotations

import json

import pytest

from tests.conformance import checks
from tests.conformance.private_node import PrivateNode
from tests.conformance.shapes import BY_NAME
from tests.tools.runtimes import Runtime, load

pytestmark = pytest.mark.real


@pytest.mark.parametrize("generation", ["1.7", "2.1"])
def test_p8_executable_behind_the_socket_counts(generation: str, runtime: Runtime) -> None:
    """Docker's containerd runs beside it, and is the first one in the PATH: what the kubelet's
    socket leads to is asked, checked and restarted, and the other one is left alone."""
    other = load().find("1.6")
    if other is None:
        pytest.skip(load().reason("1.6"))
    with (
        PrivateNode(other, BY_NAME["kubeadm-v2"]) as docker,
        PrivateNode(runtime, BY_NAME["kubeadm-v2"]) as node,
    ):
        before, starts = docker.tree(), docker.supervisor.starts
        variables = node._environment()
        variables["PATH"] = f"{docker.runtime.executable.parent}:{variables['PATH']}"
        node._environment = lambda: variables  # type: ignore[method-assign]
        plan = json.loads(node.agent("plan", "-o", "json").stdout)
        assert plan["runtime"]["version"].lstrip("v").startswith(generation)
        assert plan["decision"]["row"] == {"1.7": 4, "2.1": 3}[generation]
        assert f"{node.runtime.executable} accepts" in node.agent("plan").stdout
        checks.done(node.agent("apply"))
        assert "nvidia" in node.status().runtimes
        assert node.supervisor.starts == 2
        assert (docker.tree(), docker.supervisor.starts) == (before, starts)
