"""Without NVML the GPUs come from the kernel's list, or there is an error."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from agent.cdi.driver import nvml
from agent.cdi.make import generate
from agent.errors import DriverFailed, NoDevices, NoDriver
from agent.host.paths import HostRoot
from agent.options.settings import resolve
from tests.doubles.nvml.nvml import NOT_LOADED, FakeGpu
from tests.tools.driver import VERSION
from tests.tools.kernel import information
from tests.unit.support.gpu_node import LIB, MARKS, Node, names, paths

pytestmark = MARKS


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_gpus_come_from_the_kernel_where_nvml_does_not_answer(node: Node) -> None:
    """The same spec, with a warning that says why."""
    gpus = [FakeGpu(index, minor=7 - index) for index in range(8)]
    best, _ = node.set(*gpus).generate()
    node.set(*gpus, extra=(f"fail nvmlInitWithFlags {NOT_LOADED}",))
    data, (warning,) = node.generate()
    assert data == best
    assert warning.endswith("NVML does not list them: Driver Not Loaded")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"GPU_Excluded": "Yes"}, None),
        ({"Model": "DGX Display"}, None),
        ({"Device_Minor": "none"}, "does not describe it"),
        ({"Bus_Location": "???"}, "does not describe it"),
        ({"Bus_Location": "0000:ff:00.0"}, "is not on the PCI bus"),
    ],
)
def test_senseless_entries_of_the_kernels_list_are_no_gpus(
    node: Node, changed: dict[str, str], why: str | None
) -> None:
    """What is no GPU for us, and what makes no sense."""
    node.set(FakeGpu(0), FakeGpu(1), extra=(f"fail nvmlInitWithFlags {NOT_LOADED}",))
    information(node.host, FakeGpu(1), **changed)
    data, warnings = node.generate(device_name_strategies="index")
    assert names(data)[0] in ("0", "1")
    assert len(names(data)) == 2
    assert [why in text for text in warnings[1:] if why] == ([True] if why else [])


def test_numbers_of_the_kernel_s_list_are_nvml_s(node: Node) -> None:
    """In the order of addresses, without what was excluded at boot."""
    gpus = [FakeGpu(index, minor=index) for index in range(3)]
    node.set(*gpus, extra=(f"fail nvmlInitWithFlags {NOT_LOADED}",))
    information(node.host, gpus[0], GPU_Excluded="Yes")
    data, _ = node.generate(device_name_strategies="index")
    assert (paths(data, "0")[0], paths(data, "1")[0]) == ("/dev/nvidia1", "/dev/nvidia2")


def test_gpu_without_a_known_uuid_has_its_index_as_name(node: Node) -> None:
    """A GPU that nobody has used yet."""
    node.set(FakeGpu(0), extra=(f"fail nvmlInitWithFlags {NOT_LOADED}",))
    information(node.host, FakeGpu(0), GPU_UUID="GPU-????????-????-????-????-????????????")
    assert names(node.generate()[0]) == ["0", "all"]


def test_mig_needs_nvml(node: Node) -> None:
    """A GPU that is split is left out: it is no device itself, and its parts have no names."""
    node.set(FakeGpu(0), FakeGpu(1), extra=(f"fail nvmlInitWithFlags {NOT_LOADED}",))
    caps = node.host / "proc/driver/nvidia/capabilities"
    (caps / "gpu0/mig").mkdir(parents=True)
    (caps / "gpu1/mig/gi1/ci0").mkdir(parents=True)
    data, (_, warning) = node.generate(device_name_strategies="index")
    assert names(data) == ["0", "all"]
    assert warning.startswith("GPU 1 is not in the CDI spec: it is split")


# Failures.


def test_crash_and_hang_are_errors(node: Node) -> None:
    """Of another kind than a driver that is not there; and no other spec suffers."""
    node.set(FakeGpu(0), extra=("abort nvmlDeviceGetUUID",))
    with pytest.raises(DriverFailed, match=r"^cannot ask the NVIDIA driver: .* crashed") as found:
        node.generate()
    assert f"{LIB}/libnvidia-ml.so.{VERSION}" in found.value.message
    asked = resolve({}, {}, "toolkit-agent")
    management, broken = generate.desired_specs("nvml", asked, HostRoot(str(node.host)), None)
    assert (management.kind, management.problem) == ("management.nvidia.com/gpu", None)
    assert (broken.kind, broken.text) == ("nvidia.com/gpu", None)
    assert isinstance(broken.problem, DriverFailed)
    node.set(FakeGpu(0), extra=("hang nvmlInitWithFlags",))
    ask = functools.partial(nvml.ask, timeout=0.5)
    with pytest.raises(DriverFailed, match=r"no answer in 0\.5 s"):
        generate.build("nvml", asked, HostRoot(str(node.host)), hook=None, ask=ask)


def test_unknown_gpus_are_an_error_with_both_reasons(node: Node) -> None:
    """Both reasons are said."""
    node.set(extra=(f"fail nvmlInitWithFlags {NOT_LOADED}",))
    with pytest.raises(NoDevices, match=r"Driver Not Loaded; and .*lists no GPU"):
        node.generate()


def test_missing_driver_is_an_error(tmp_path: Path) -> None:
    """As for the management spec; `wanted` says so for both."""
    asked = resolve({}, {}, "toolkit-agent")
    with pytest.raises(NoDriver):
        generate.build("nvml", asked, HostRoot(str(tmp_path)), hook=None)
    found = generate.desired_specs("nvml", asked, HostRoot(str(tmp_path)), None)
    assert [type(one.problem) for one in found] == [NoDriver, NoDriver]
