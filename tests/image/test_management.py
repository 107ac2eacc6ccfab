"""The management device on real runtimes: what a tool of the node finds in its container."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.conformance import checks
from tests.sampling import sampled_params
from tests.tools.driver import LIBRARIES, NODES, VERSION
from tests.tools.pods import PodNode, Pods
from tests.tools.runtimes import Runtime

pytestmark = pytest.mark.real

_NAME = "management.nvidia.com/gpu=all"
_LIB = f"/{LIBRARIES}"


@pytest.mark.parametrize("generation", sampled_params(["1.7", "2.1"], 1, __name__))
def test_everything_is_there_once_and_goes(generation: str, runtime: Runtime) -> None:
    """Nodes with their numbers, mounts, environment and hooks, whether it is asked for by the
    field, by an annotation, or by both; `revert` takes it away with everything that was ours."""
    annotation = {"cdi.k8s.io/test": _NAME}
    with PodNode(runtime) as node, Pods(node) as pods:
        checks.done(node.agent("apply"))
        path = node.cdi_directory / "management.nvidia.com-gpu.yaml"
        spec = path.read_text("utf-8")
        assert f'kind: "{_NAME.partition("=")[0]}"' in spec
        for asked in (
            {"cdi_devices": [_NAME]},
            {"annotations": annotation},
            {"cdi_devices": [_NAME], "annotations": annotation},
        ):
            container = pods.create(**asked)
            devices = {
                d["path"]: (d["major"], d["minor"], d["fileMode"] & 0o777)
                for d in container.spec["linux"]["devices"]
                if "nvidia" in d["path"]
            }
            assert devices == {f"/dev/{name}": numbers for name, numbers in NODES.items()}
            assert len(container.devices) == len(set(container.devices))
            assert container.environment.count("NVIDIA_VISIBLE_DEVICES=void") == 1
            assert container.environment.count(f"NVIDIA_CTK_LIBCUDA_DIR={_LIB}") == 1
            mounts = Counter(container.mounts)
            assert mounts[f"{_LIB}/libcuda.so.{VERSION}"] == mounts["/usr/bin/nvidia-smi"] == 1
            assert mounts[f"/lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin"] == 1
            hooks = container.spec["hooks"]["createContainer"]
            assert [hook["args"][1] for hook in hooks] == [
                "create-symlinks", "enable-cuda-compat", "update-ldcache",
            ]  # fmt: skip
            assert container.spec["process"]["user"].get("additionalGids", []).count(44) == 1
            container.remove()
        container = pods.create()
        assert not [name for name in container.devices if "nvidia" in name]
        container.remove()
        checks.done(node.agent("revert"))
        assert not path.exists()
