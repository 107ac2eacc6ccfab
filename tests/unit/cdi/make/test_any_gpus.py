"""Any number of GPUs, split in any way, makes a valid spec; whatever is left out is reported."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.cdi import model
from agent.cdi.driver import driver
from agent.cdi.driver.driver import Driver
from agent.cdi.driver.nvml import Gpu, Mig
from agent.cdi.make import gpu, transform
from agent.cdi.make.driver_files import BuildContext
from agent.cdi.make.hooks import Hooks
from agent.errors import NoDevices
from agent.host.paths import HostRoot
from agent.options.settings import resolve
from tests.doubles.nvml.nvml import FakeGpu, FakePart
from tests.tools.driver import make_driver
from tests.tools.kernel import make_kernel
from tests.unit.support.gpu_node import HOOK, MARKS

pytestmark = [*MARKS, pytest.mark.timeout(600)]  # thousands of examples in a long run


_parts = st.lists(
    st.builds(Mig, st.integers(0, 6), st.uuids().map(lambda u: f"MIG-{u}"), st.integers(0, 13),
              st.integers(0, 7), st.booleans()),
    max_size=3, unique_by=(lambda p: p.index, lambda p: p.uuid),
)  # fmt: skip
_gpus = st.lists(
    st.builds(
        Gpu, st.integers(0, 15), st.just("") | st.uuids().map(lambda u: f"GPU-{u}"),
        st.integers(0, 9), st.sampled_from(["0000:1a:00.0", "0000:2a:00.0", "0000:3a:00.0"]),
        st.booleans(), _parts.map(tuple),
    ),
    min_size=1, max_size=4, unique_by=lambda gpu: gpu.index,
)  # fmt: skip
_chosen = st.lists(st.sampled_from(["index", "uuid", "type-index"]), min_size=1, unique=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A driver with ten GPUs' nodes, and some capabilities."""
    host = tmp_path_factory.mktemp("tree")
    gpus = [FakeGpu(n, mig=1, parts=(FakePart(0, n % 3),)) for n in range(10)]
    make_driver(host)
    make_kernel(host, host, gpus)
    return driver.find(HostRoot(str(host)), resolve({}, {}, "toolkit-agent"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_gpus, _chosen, st.booleans(), st.dictionaries(st.integers(0, 13), st.integers(0, 22)))
def test_any_gpus_make_a_valid_spec(
    tree: Driver, gpus: list[Gpu], chosen: list[str], hooks: bool, minors: dict[int, int]
) -> None:
    """It survives a round trip; nothing in it is without a node, and nothing goes without a word.
    Where nothing is left, there is none."""
    around = BuildContext(Hooks(HOOK if hooks else None), "6.1.0")
    known = gpu.KernelGpus(
        {one.bus: ("card1", "renderD128") for one in gpus},
        {
            name: minor
            for one in gpus
            for gi, minor in minors.items()
            for name in (
                f"gpu{one.minor}/gi{gi}/access",
                *(f"gpu{one.minor}/gi{gi}/ci{ci}/access" for ci in range(8)),
            )
        },
    )
    try:
        made, missing = gpu.spec(tree, around, gpus, known, chosen)
    except NoDevices:
        return
    assert model.problems(made) == []
    assert transform.finish(made) == made
    assert yaml.safe_load(model.text(made)) == json.loads(model.text(made, "json"))
    for device in made.devices:
        first = device.container_edits.device_nodes[0].path
        assert first in {f"/dev/nvidia{one.minor}" for one in gpus}
    wanted = sum(len(one.instances) if one.mig else 1 for one in gpus)
    if len(chosen) == 1:
        assert len(made.devices) - 1 + len(missing) == wanted
