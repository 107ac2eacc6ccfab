"""GPUs on real runtimes: what a pod finds that asks for one by its number, its UUID, or for all.

`apply` makes the node right, which has a made-up driver and kernel and a scripted NVML.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from tests.conformance import checks
from tests.conformance.trees import contents, snapshot
from tests.doubles.nvml.nvml import COMPILER, NO_COMPILER, FakeGpu, FakePart, place
from tests.sampling import sampled_params
from tests.tools.driver import LIBRARIES, VERSION
from tests.tools.kernel import make_kernel
from tests.tools.lending import Lending
from tests.tools.pods import Container, PodNode, Pods
from tests.tools.runtimes import Runtime

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER),
]

KIND = "nvidia.com/gpu"
PLAIN = FakeGpu(0, minor=1)
SPLIT = FakeGpu(1, minor=0, mig=1, parts=(FakePart(0, 1), FakePart(3, 2)))
CONTROL = {"/dev/nvidiactl", "/dev/nvidia-modeset", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"}
WHOLE = {"/dev/nvidia1", "/dev/dri/card1", "/dev/dri/renderD128"}
PARTS = {
    f"1:{part.index}": {
        "/dev/nvidia0",
        *(f"/dev/nvidia-caps/nvidia-cap{10 * part.gi + ci}" for ci in (0, 1)),
    }
    for part in SPLIT.parts
}


@contextmanager
def gpu_node(runtime: Runtime) -> Iterator[PodNode]:
    """A node whose runtime knows its GPUs."""
    with PodNode(runtime, cdi=True) as node:
        root, kernel = node.directory / "driver", node.directory / "kernel"
        place(root, [PLAIN, SPLIT])
        make_kernel(kernel, root, [PLAIN, SPLIT])
        for path in ("proc/driver", "sys/bus/pci/devices"):
            bound = node.inside(["mount", "--bind", str(kernel / path), f"/{path}"])
            assert bound.returncode == 0, bound.stderr
        checks.done(node.agent("apply"))
        yield node


def look(node: PodNode) -> object:
    """What a test puts back."""
    return [contents(snapshot(place)) for place in (node.etc, node.cdi_directory)]


@pytest.fixture
def node(generation: str, runtime: Runtime, shared: Lending[PodNode]) -> Iterator[PodNode]:
    """The one of the test's generation."""
    with shared.lend(generation, lambda: gpu_node(runtime), look) as found:
        yield found


def nodes(container: Container) -> set[str]:
    """Nodes of the driver and for graphics, each there once."""
    found = [d for d in container.devices if "nvidia" in d or "/dri/" in d]
    assert len(found) == len(set(found))
    return set(found)


@pytest.mark.parametrize("generation", sampled_params(["1.7", "2.1"], 1, __name__))
def test_devices_are_had_by_number_by_uuid_and_by_all(generation: str, node: PodNode) -> None:
    """A GPU, MIG devices, everything: each with its own nodes and the driver's files once."""
    with Pods(node) as pods:
        wanted = {
            "0": WHOLE,
            PLAIN.name: WHOLE,
            "all": set().union(WHOLE, *PARTS.values()),
        }
        for part in SPLIT.parts:
            wanted[part.name(1)] = wanted[f"1:{part.index}"] = PARTS[f"1:{part.index}"]
        for name, expected in wanted.items():
            container = pods.create(cdi_devices=[f"{KIND}={name}"])
            assert nodes(container) == expected | CONTROL, name
            assert container.mounts.count(f"/{LIBRARIES}/libcuda.so.{VERSION}") == 1
            assert container.environment.count("NVIDIA_VISIBLE_DEVICES=void") == 1
            hooks = [h["args"][1] for h in container.spec["hooks"]["createContainer"]]
            own = ["create-symlinks"] if expected >= WHOLE else []
            assert hooks == [
                "create-symlinks", "enable-cuda-compat", "update-ldcache",
                "disable-device-node-modification", "update-application-profile", *own,
            ]  # fmt: skip
            assert 44 in container.spec["process"]["user"]["additionalGids"]


@pytest.mark.parametrize("generation", sampled_params(["1.7", "2.1"], 1, __name__))
def test_two_devices_share_what_both_bring(generation: str, node: PodNode) -> None:
    """What both bring is there once."""
    with Pods(node) as pods:
        container = pods.create(cdi_devices=[f"{KIND}=0", f"{KIND}={SPLIT.parts[1].name(1)}"])
        assert nodes(container) == WHOLE | PARTS["1:3"] | CONTROL
        assert container.mounts.count(f"/{LIBRARIES}/libcuda.so.{VERSION}") == 1


@pytest.mark.parametrize("generation", sampled_params(["1.7", "2.1"], 1, __name__))
def test_gpu_that_is_split_cannot_be_had(generation: str, node: PodNode) -> None:
    """Nor one that is not there: the runtime refuses the container."""
    with Pods(node) as pods:
        for name in ("1", SPLIT.name, "2"):
            with pytest.raises(grpc.RpcError, match="unresolvable CDI devices"):
                pods.create(cdi_devices=[f"{KIND}={name}"])


@pytest.mark.parametrize("generation", sampled_params(["1.7", "2.1"], 1, __name__))
def test_somebody_else_s_file_is_no_conflict(generation: str, node: PodNode) -> None:
    """Ours gives way, and what the other one describes can be had; when it goes, ours is back. The
    runtime is not restarted for any of it."""
    with Pods(node) as pods:
        first, starts = pods.create(), node.supervisor.starts
        other = node.cdi_directory / "nvidia.yaml"
        other.write_text((node.cdi_directory / "nvidia.com-gpu.yaml").read_text("utf-8"), "utf-8")
        with pytest.raises(grpc.RpcError, match="unresolvable CDI devices"):
            pods.create(cdi_devices=[f"{KIND}=0"], beside=first)
        checks.done(node.agent("apply"))
        assert nodes(pods.create(cdi_devices=[f"{KIND}=0"], beside=first)) == WHOLE | CONTROL
        other.unlink()
        checks.done(node.agent("apply"))
        assert nodes(pods.create(cdi_devices=[f"{KIND}=0"], beside=first)) == WHOLE | CONTROL
        checks.done(node.agent("cdi validate"))
        assert node.supervisor.starts == starts
