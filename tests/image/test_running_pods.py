"""Pods of real containerd that run through an upgrade of it: what they keep, and for how long."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cli.cli_node import fails, shows
from tests.conformance import checks
from tests.doubles.toolkit.toolkit_node import ToolkitNode
from tests.sampling import sampled_params
from tests.tools.pods import Pods
from tests.tools.runtimes import load

pytestmark = pytest.mark.real

DEVICE = "management.nvidia.com/gpu=all"
PLUGIN = {"nvidia.cdi.k8s.io/nvidia-device-plugin_0": DEVICE}


class UpgradedNode(ToolkitNode):
    """A node whose containerd is exchanged in place."""

    def upgrade(self, generation: str) -> None:
        """Put another version in the old one's place, and restart it."""
        found = load().find(generation)
        if found is None:
            pytest.skip(load().reason(generation))
        old, new = str(self.runtime.executable), str(found.executable)
        self.supervisor.argv[:] = [new if word == old else word for word in self.supervisor.argv]
        self.runtime = found
        self.restart()

    def decision(self) -> Any:
        """The decision of an apply."""
        return shows(self.agent("apply", "-o", "json"), "Outcome")["decision"]

    def published(self, name: str) -> str:
        """A line of what the device plugin is told."""
        lines = (self.validations / ".toolkit-ctr-ready").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)[name]


@pytest.mark.parametrize("generation", ["1.6"])
@pytest.mark.parametrize("later", sampled_params(["1.7", "2.1"], 1, __name__))
def test_upgrade_keeps_the_gpu_of_a_pod_by_annotation(
    generation: str, later: str, runtime: Any
) -> None:
    """A container that starts again has its devices, new pods have theirs once, and with the last
    pod of before the old way goes."""
    with UpgradedNode(runtime) as node, Pods(node) as pods:
        node.load_driver()
        checks.done(node.agent("apply"))
        assert node.status().default == "nvidia"
        gpu, web = pods.create(annotations=PLUGIN), pods.create()
        web.start()
        assert node.start(gpu).chosen == [DEVICE]
        fails(node.agent("revert"), 3, f"tests/{gpu.pod} (default)")
        node.upgrade(later)
        found = node.decision()
        assert found["row"] == (4 if later == "1.7" else 3)
        assert found["keptForPods"] == [f"tests/{gpu.pod} (default)"]
        assert node.status().default == "nvidia"
        assert node.published("TOOLKIT_RUNTIME_IS_DEFAULT") == "true"
        assert node.published("DEVICE_LIST_STRATEGY") == "cdi-cri"
        again = node.start(pods.create(annotations=PLUGIN, beside=gpu))
        assert again.chosen == [DEVICE]
        for asked in ({"cdi_devices": [DEVICE]}, {"annotations": {"cdi.k8s.io/x": DEVICE}}):
            made = node.start(pods.create(**asked))
            assert not made.chosen, "containerd itself has put them in"
            assert made.devices
            assert len(made.devices) == len(set(made.devices))
        starts = node.supervisor.starts
        checks.done(node.agent("apply"))
        assert node.supervisor.starts == starts
        fails(node.agent("revert"), 3, f"tests/{gpu.pod} (default)")
        pods.call("StopPodSandbox", pod_sandbox_id=gpu.sandbox)
        assert node.decision()["keptForPods"] == []
        assert node.status().default == "runc"
        assert node.published("TOOLKIT_RUNTIME_IS_DEFAULT") == "false"
        assert web.status().state == "RUNNING"
        # A dead sandbox can be removed whatever became of its default or its handler.
        pods.call("RemovePodSandbox", pod_sandbox_id=gpu.sandbox)
        checks.done(node.agent("revert"))


@pytest.mark.parametrize("generation", sampled_params(["1.6", "1.7", "2.1"], 1, __name__, long=2))
def test_revert_is_refused_while_pods_use_a_handler(generation: str, runtime: Any) -> None:
    """Running ones are named once; dead ones can be removed after their handler is gone."""
    with UpgradedNode(runtime) as node, Pods(node) as pods:
        node.load_driver()
        checks.done(node.agent("apply"))
        live, dead = pods.create(handler="nvidia"), pods.create(handler="nvidia-cdi")
        pods.call("StopPodSandbox", pod_sandbox_id=dead.sandbox)
        for command in ("revert", "revert --toolkit"):
            result = node.agent(command)
            fails(result, 3, f"tests/{live.pod} (nvidia)")
            assert result.stderr.count(live.pod) == 1
            assert dead.pod not in result.stderr
        pods.remove(live.sandbox)
        checks.done(node.agent("revert"))
        pods.call("RemovePodSandbox", pod_sandbox_id=dead.sandbox)
        assert node.status().default == "runc"
