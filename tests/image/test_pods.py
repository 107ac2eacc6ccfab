"""Pods of real runtimes: what a kubelet asks for by a CDI name is in the container, once."""

from __future__ import annotations

import json

import grpc
import pytest

from tests.sampling import sampled_params
from tests.tools.pods import Container, PodNode, Pods
from tests.tools.runtimes import Runtime

pytestmark = pytest.mark.real

_SPEC = {
    "cdiVersion": "0.5.0",
    "kind": "vendor.example/gpu",
    "containerEdits": {"env": ["CDI_COMMON=1"]},
    "devices": [
        {
            "name": "0",
            "containerEdits": {
                "env": ["CDI_DEVICE=gpu0"],
                "deviceNodes": [{"path": "/dev/made-up", "hostPath": "/dev/null"}],
                "mounts": [{"hostPath": "/etc/hostname", "containerPath": "/made-up"}],
            },
        }
    ],
}
_NAME = "vendor.example/gpu=0"


def write_spec(node: PodNode) -> None:
    """Describe the device to the runtime, which reads it when a container is created."""
    node.cdi_directory.mkdir()
    (node.cdi_directory / "vendor.json").write_text(json.dumps(_SPEC), encoding="utf-8")


def injected(container: Container) -> list[str]:
    """Everything in the container that comes from the description, as often as it is there."""
    found = [*container.environment, *container.devices, *container.mounts]
    return [word for word in found if word.startswith("CDI_") or "made-up" in word]


@pytest.mark.parametrize("generation", sampled_params(["1.7", "2.1"], 1, __name__))
def test_device_is_in_the_container_exactly_once(generation: str, runtime: Runtime) -> None:
    """Asked for by the field, by an annotation or by both, it is there exactly once."""
    expected = ["CDI_COMMON=1", "CDI_DEVICE=gpu0", "/dev/made-up", "/made-up"]
    annotation = {"cdi.k8s.io/test": _NAME}
    with PodNode(runtime, cdi=True) as node, Pods(node) as pods:
        write_spec(node)
        assert injected(pods.create()) == []
        assert injected(pods.create(cdi_devices=[_NAME])) == expected
        assert injected(pods.create(annotations=annotation)) == expected
        assert injected(pods.create(cdi_devices=[_NAME], annotations=annotation)) == expected
        with pytest.raises(grpc.RpcError, match="unresolvable CDI devices"):
            pods.create(cdi_devices=["vendor.example/gpu=77"])


@pytest.mark.parametrize("generation", sampled_params(["1.6", "1.7"], 1, __name__))
def test_runtime_without_cdi_passes_over_devices(generation: str, runtime: Runtime) -> None:
    """A runtime without CDI passes over it in silence, also where it is asked for nonsense."""
    with PodNode(runtime) as node, Pods(node) as pods:
        write_spec(node)
        assert injected(pods.create(cdi_devices=[_NAME])) == []
        assert injected(pods.create(cdi_devices=["vendor.example/gpu=77"])) == []


@pytest.mark.parametrize("generation", sampled_params(["1.6", "1.7", "2.1"], 1, __name__, long=2))
def test_running_container_outlives_a_restart(generation: str, runtime: Runtime) -> None:
    """It runs, outlives a restart of its runtime, and ends when it is told to."""
    with PodNode(runtime) as node, Pods(node) as pods:
        container = pods.create()
        assert container.status().state == "CREATED"
        container.start()
        before = container.status()
        assert (before.state, before.pid > 1) == ("RUNNING", True)
        node.restart()
        assert container.status() == before
        container.stop(grace=0)
        assert container.status().state == "EXITED"
