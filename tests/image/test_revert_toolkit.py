"""`revert --toolkit` on real containerd, while pods run by the toolkit's programs."""

from __future__ import annotations

import pytest

from tests.conformance import checks
from tests.conformance.trees import snapshot, touched
from tests.doubles.toolkit import modules
from tests.doubles.toolkit.toolkit_node import ToolkitNode
from tests.sampling import sampled_params
from tests.tools.pods import Pods
from tests.tools.runtimes import Runtime

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(modules.reason_against()), reason=modules.reason_against()),
]


@pytest.mark.parametrize("generation", sampled_params(["1.6", "1.7", "2.1"], 1, __name__, long=2))
def test_revert_is_refused_while_pods_run_by_the_toolkit(generation: str, runtime: Runtime) -> None:
    """Also those of the default runtime, when nvidia was that and is it no more."""
    with ToolkitNode(runtime) as node, Pods(node) as pods:
        other = pods.create(annotations={"note": str(node.toolkit / "nvidia-container-runtime")})
        other.start()
        checks.done(node.agent("apply", "--set-as-default=true"))
        made = pods.create()
        made.start()
        before = snapshot(node.toolkit)
        checks.refused(node.agent("revert", "--toolkit"), 3, "tests/pod-1 (default)")

        checks.done(node.agent("revert"))
        assert node.status().default == "runc"
        refused = node.agent("revert", "--toolkit")
        checks.refused(refused, 3, "pods use programs in")
        assert "pod-1 (default)" in refused.stderr
        assert "pod-0" not in refused.stderr
        assert touched(before, snapshot(node.toolkit)) == []
        made.stop(grace=0)  # nothing in it minds SIGTERM
        made.remove()
        checks.done(node.agent("revert", "--toolkit"))
        assert not node.toolkit.exists()
        pods.create(beside=other).start()


@pytest.mark.parametrize("generation", sampled_params(["1.6", "1.7", "2.1"], 1, __name__, long=2))
def test_ended_pods_can_be_removed_without_the_toolkit(generation: str, runtime: Runtime) -> None:
    """They can be removed without handler and program: stopping them was these's last work."""
    with ToolkitNode(runtime) as node, Pods(node) as pods:
        checks.done(node.agent("apply"))
        made, bare = pods.create(handler="nvidia"), pods.create(handler="nvidia-cdi")
        made.start()
        made.stop(grace=0)
        for pod in (made, bare):
            pods.call("StopPodSandbox", pod_sandbox_id=pod.sandbox)
        checks.done(node.agent("revert", "--toolkit"))
        assert not node.toolkit.exists()
        made.remove()
        pods.call("RemovePodSandbox", pod_sandbox_id=bare.sandbox)
