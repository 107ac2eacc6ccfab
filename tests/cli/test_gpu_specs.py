"""GPU specs are written once per kind, leave foreign ones alone and survive failures of NVML."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli.cli_node import fails, shows
from tests.cli.gpu_host import BROKEN, GPU, MANAGEMENT, GpuHost
from tests.conformance import checks
from tests.conformance.foreign_specs import spec
from tests.conformance.trees import snapshot
from tests.doubles.nvml.nvml import LOST, NOT_LOADED, FakeGpu, FakePart
from tests.tools.driver import VERSION, make_nodes
from tests.tools.kernel import make_kernel, make_node
from tests.unit.support.gpu_node import MARKS

pytestmark = MARKS

ONE = FakeGpu(0)
KIND = "nvidia.com/gpu"


@pytest.fixture
def node(place: Path) -> Iterator[GpuHost]:
    with GpuHost(place, ONE) as found:
        yield found


def whose(node: GpuHost, code: int = 0) -> Mapping[str, Mapping[str, Any]]:
    """What `status` says of each kind."""
    specs = shows(node.agent("status", "-o", "json"), "Status", code)["specs"]
    return {item["kind"]: item for item in specs}


def said(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The warnings of a command that did what it was to do."""
    checks.done(result)
    lines = result.stdout.splitlines()
    return [
        line
        for line in lines
        if line.startswith("Warning:") and "pre-flighted" not in line and "not tried" not in line
    ]


def test_every_spec_is_written_once(node: GpuHost) -> None:
    """Of the driver, of GPUs, and of what else is there; then nothing is touched any more, and
    `revert` takes all of them away."""
    for name, minor in (("gdrdrv", 0), ("infiniband/uverbs0", 1), ("nvidia-fs0", 2)):
        make_node(node.host / "dev" / name, 240, minor)
    paths = [item["path"] for item in shows(node.agent("plan", "-o", "json"), "Plan", 1)["changes"]]
    assert f"/run/cdi/{GPU}" in paths
    assert node.specs() == []
    assert said(node.agent("apply")) == []
    others = [f"nvidia.com-{name}.yaml" for name in ("gdrcopy", "gds", "mofed")]
    assert node.specs() == sorted([MANAGEMENT, GPU, *others])
    assert node.names() == ["0", ONE.name, "all"]
    assert [hook["args"][1] for hook in node.spec()["containerEdits"]["hooks"]]
    ours = whose(node)
    assert len(ours) == 5
    assert {item["writer"] for item in ours.values()} == {"toolkit-agent"}
    before = snapshot(node.cdi), snapshot(node.state)
    assert "Nothing to do" in node.agent("apply").stdout
    assert (snapshot(node.cdi), snapshot(node.state)) == before
    (node.state / "gpus.json").write_text('{"trace": 1, "answer": 2}')
    (node.host / "dev/gdrdrv").unlink()
    checks.done(node.agent("apply"))
    assert "nvidia.com-gdrcopy.yaml" not in node.specs()
    checks.done(node.agent("revert"))
    assert node.specs() == []
    assert not (node.state / "gpus.json").exists()


def test_runtime_that_reads_no_groups_gets_specs_without_them(place: Path) -> None:
    """It gets specs without them: of others it would take nothing. NVIDIA's generator writes them
    all the same. With NVIDIA's runtime as the reader they are there."""
    with GpuHost(place, ONE, version="1.7.12") as node:
        [warning] = [line for line in said(node.agent("apply")) if "CDI" in line]
        assert "containerd 1.7.12 may read no more than CDI 0.5.0" in warning
        for name in (GPU, MANAGEMENT):
            assert node.spec(name)["cdiVersion"] in ("0.3.0", "0.5.0")
            assert "additionalGids" not in node.text(name)
        assert node.spec()["devices"][0]["containerEdits"]["deviceNodes"][1]["gid"] == 44
        found = shows(node.agent("cdi list", "-o", "json"), "CDIDevices")["devices"]
        assert {device["resolvable"] for device in found} == {True}
        checks.done(node.agent("apply --native-cdi=false"))
        assert node.spec()["cdiVersion"] == "0.7.0"


@pytest.mark.parametrize("directory", ["run/cdi", "etc/cdi"])
def test_kind_that_others_provide_is_left_to_them(directory: str, node: GpuHost) -> None:
    """NVIDIA's refresh service, say: ours goes, the file is named, and NVML is not asked for what
    nobody needs. When it goes, ours is back."""
    checks.done(node.agent("apply"))
    theirs = node.host / directory / "nvidia.yaml"
    theirs.write_text(spec(KIND))
    node.say(extra=[BROKEN])
    plan = node.agent("plan")
    writer = "nvidia-cdi-refresh" if directory == "run/cdi" else "nvidia-ctk"
    assert f"Not ours:  {KIND} is in /{directory}/nvidia.yaml, by {writer}" in plan.stdout
    assert f"remove     /run/cdi/{GPU}" in plan.stdout
    assert said(node.agent("apply")) == []
    assert node.specs() == sorted([MANAGEMENT, "nvidia.yaml"])
    assert theirs.read_text() == spec(KIND)
    item = whose(node)[KIND]
    assert (item["file"], item["writer"]) == (f"/{directory}/nvidia.yaml", writer)
    checks.done(node.agent("revert"))
    assert node.specs() == ["nvidia.yaml"]
    theirs.unlink()
    node.say(ONE)
    checks.done(node.agent("apply"))
    assert node.specs() == sorted([MANAGEMENT, GPU])


def test_foreign_spec_under_our_name_stays(node: GpuHost) -> None:
    """Is theirs; what is no spec at all is replaced, for nobody can use it."""
    path = node.cdi / GPU
    for text in (spec(KIND), spec("vendor.example/gpu")):
        path.write_text(text)
        checks.done(node.agent("apply"))
        assert path.read_text() == text
        assert bool(whose(node)[KIND]["problem"]) is (KIND not in text)
    path.write_text("")
    checks.done(node.agent("apply"))
    assert node.names() == ["0", ONE.name, "all"]


def test_kinds_of_others_are_no_reason(node: GpuHost) -> None:
    """The device plugin's, a DRA claim's and NVIDIA's management spec have other kinds."""
    for name, kind in (
        ("k8s.device-plugin.nvidia.com-gpu.json", "k8s.device-plugin.nvidia.com/gpu"),
        ("k8s.gpu.nvidia.com-claim_1.yaml", "k8s.gpu.nvidia.com/claim"),
        ("vendor.yaml", "vendor.example/gpu"),
    ):
        (node.cdi / name).write_text(spec(kind))
    before = set(node.specs())
    checks.done(node.agent("apply"))
    assert set(node.specs()) == {*before, MANAGEMENT, GPU}
    checks.done(node.agent("revert"))
    assert set(node.specs()) == before


def test_specs_leave_the_directory_of_before(node: GpuHost) -> None:
    """With another directory ours do not stay behind, where they would win."""
    checks.done(node.agent("apply"))
    checks.done(node.agent("apply", "--cdi-output-dir=/etc/cdi"))
    assert sorted(path.name for path in node.cdi_etc.iterdir()) == sorted([MANAGEMENT, GPU])
    assert list(node.cdi.iterdir()) == []


def test_nvml_that_crashes_is_a_warning(node: GpuHost) -> None:
    """Is a warning. What it told of the same GPUs before still holds; of other GPUs there is no
    spec. Readiness is the management spec's matter."""
    node.say(ONE, extra=[BROKEN])
    (warning,) = said(node.agent("apply"))
    assert "crashed (SIGABRT)" in warning
    assert node.specs() == [MANAGEMENT]
    assert node.ready()
    assert "crashed" in whose(node)[KIND]["problem"]
    node.say(ONE)
    assert said(node.agent("apply")) == []
    before = (node.cdi / GPU).read_bytes()
    Path(f"{node.library}.script").write_text(f"{BROKEN}\n")
    (warning,) = said(node.agent("apply"))
    assert "are those that NVML listed before" in warning
    assert (node.cdi / GPU).read_bytes() == before
    make_kernel(node.host, node.host, [ONE, FakeGpu(1)])
    assert len(said(node.agent("apply"))) == 1
    assert node.specs() == [MANAGEMENT]
    assert node.ready()


def test_nvml_is_asked_where_the_kernel_shows_something_else(node: GpuHost) -> None:
    """Or where somebody makes the node right: `plan` and `status` have to be without effects."""
    script = Path(f"{node.library}.script")
    good = script.read_text()
    checks.done(node.agent("apply"))
    script.write_text(f"{BROKEN}\n")
    for command in ("plan", "status"):
        assert "crashed" not in checks.said(node.agent(command))
        assert node.agent(command).returncode == 0
    assert len(said(node.agent("apply"))) == 1
    script.write_text(good)
    second = FakeGpu(1)
    node.set(ONE, second)
    changes = shows(node.agent("plan", "-o", "json"), "Plan", 1)["changes"]
    diffs = {change["path"].rpartition("/")[2]: change["diff"] for change in changes}
    assert diffs.keys() == {MANAGEMENT, GPU}
    assert second.name in diffs[GPU]


def test_nvml_is_not_asked_while_the_module_is_not_loaded(node: GpuHost) -> None:
    """NVML would load it; it is not asked, and that is no warning."""
    checks.done(node.agent("apply"))
    shutil.rmtree(node.host / "proc/driver/nvidia")
    node.say(ONE, extra=[BROKEN])
    result = node.agent("apply")
    assert said(result) == []
    assert "Skipped:   cannot make a CDI spec for nvidia.com/gpu" in result.stdout
    assert "kernel module is not loaded" in result.stdout
    assert node.specs() == [MANAGEMENT]
    assert node.ready()


def test_lost_gpu_takes_away_only_its_device(node: GpuHost) -> None:
    """The others stay; with the last one the spec goes, and readiness stays."""
    second = FakeGpu(1)
    node.set(ONE, second)
    checks.done(node.agent("apply"))
    node.say(ONE, FakeGpu(1, code=LOST))
    (warning,) = said(node.agent("apply"))
    assert "GPU 1 is not in the CDI spec: GPU is lost" in warning
    assert node.names() == ["0", ONE.name, "all"]
    node.say(FakeGpu(0, code=LOST), FakeGpu(1, code=LOST))
    (warning,) = said(node.agent("apply"))
    assert "GPU 0 is not in the CDI spec: GPU is lost; GPU 1 is not" in warning
    assert node.specs() == [MANAGEMENT]
    assert node.ready()
    assert whose(node)[KIND]["problem"]


def test_error_of_nvml_takes_nothing_away(node: GpuHost) -> None:
    """The kernel's list, without MIG devices, does not take the place of a better one."""
    parts = (FakePart(0, 1), FakePart(1, 2))
    split = FakeGpu(0, mig=1, parts=parts)
    node.set(split)
    checks.done(node.agent("apply"))
    before = node.names()
    assert before == ["0:0", "0:1", *(part.name(0) for part in parts), "all"]
    Path(f"{node.library}.script").write_text(f"fail nvmlInitWithFlags {NOT_LOADED}\n")
    assert len(said(node.agent("apply"))) == 1
    assert node.names() == before


def test_gone_driver_takes_the_gpus_and_readiness(node: GpuHost) -> None:
    """Its GPUs go; the management spec stays as it was, but not ready."""
    checks.done(node.agent("apply"))
    shutil.rmtree(node.host / "usr/lib")
    fails(node.agent("apply"), 3, "there is no NVIDIA driver")
    assert node.specs() == [MANAGEMENT]
    assert node.ready() is None
    assert VERSION in (node.cdi / MANAGEMENT).read_text()


def test_kind_of_gpus_given_to_the_management_spec_is_written_once(node: GpuHost) -> None:
    """Asked for so, there is no second one of that kind."""
    checks.done(node.agent("apply", f"--cdi-kind={KIND}"))
    assert node.specs() == [GPU]
    assert node.names() == ["all"]
    make_nodes(node.host)
    found = shows(node.agent("status", "-o", "json", f"--cdi-kind={KIND}"), "Status")
    assert [item["kind"] for item in found["specs"]] == [KIND]


def test_spec_that_cannot_be_written_is_a_warning(node: GpuHost) -> None:
    """For GPUs; nothing else suffers."""
    (node.cdi / GPU).mkdir()
    (warning,) = said(node.agent("apply"))
    assert f"/run/cdi/{GPU}: it is a directory" in warning
    assert node.ready()
    found = json.loads(node.agent("status", "-o", "json").stdout)
    assert found["specs"][1]["problem"]
