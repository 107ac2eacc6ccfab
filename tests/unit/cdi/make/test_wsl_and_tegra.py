"""Specs of WSL2 and of Tegra beside those of NVIDIA's generator, entry by entry, and what is said
where there can be none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.cdi.driver import nvml as driver_nvml
from agent.cdi.driver.known_gpus import KnownGpus
from agent.cdi.driver.nvml import Answer, Library
from agent.cdi.make import generate, tegra
from agent.cdi.make.request import request
from agent.cdi.specs import own_specs
from agent.cdi.specs.readers import Reader
from agent.cli.cdi import cdi
from agent.errors import NoDevices, NoDriver
from agent.host.paths import HostRoot
from agent.options.settings import resolve
from agent.plan import spec_proposal
from tests.doubles.nvml import dxcore, nvml
from tests.doubles.nvml.nvml import FakeGpu
from tests.tools.driver import make_driver, make_nodes
from tests.tools.kernel import make_node
from tests.unit.support import other_hosts
from tests.unit.support.gpu_node import MARKS, names, paths
from tests.unit.support.other_hosts import (
    ADAPTERS,
    CSV,
    NVGPU,
    STORE,
    make_orin,
    make_tegra,
    make_thor,
)

pytestmark = MARKS

DATA = Path(__file__).parents[3] / "data/specs"
HOOK = "/usr/bin/nvidia-cdi-hook"


def text(host: Path, *words: str) -> tuple[str, tuple[str, ...]]:
    """What `cdi generate` writes, and its warnings."""
    params = cdi.commands["generate"].make_context("generate", list(words)).params
    asked = request(params, {})
    settings = resolve(params, {}, "toolkit-agent")
    hook = asked.hook_path or HOOK
    root = HostRoot(str(host))
    return generate.spec_text(
        asked.mode, settings, root, asked.form, hook=hook, choice=asked.choice
    )


def spec(host: Path, *words: str) -> dict[str, Any]:
    """The spec as data, without a warning."""
    found, warnings = text(host, "--format=json", *words)
    assert warnings == ()
    data: dict[str, Any] = json.loads(found)
    return data


def refused(host: Path, *words: str) -> str:
    """Why there is none."""
    with pytest.raises((NoDriver, NoDevices)) as caught:
        text(host, *words)
    return caught.value.message


def expected(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text("ascii"))
    return data


def make_wsl(host: Path) -> Path:
    other_hosts.make_wsl(host)
    dxcore.place(host, ADAPTERS)
    return host


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("csv", make_tegra, ("--mode=csv",)),
        ("csv", make_tegra, ("--mode=auto",)),
        ("csv-options", make_tegra, other_hosts.OPTIONS),
        ("orin", make_orin, ("--mode=csv",)),
        ("orin", make_orin, ("--mode=auto",)),
        ("thor", make_thor, ("--mode=csv",)),
        ("thor", make_thor, ("--mode=auto",)),
        ("wsl", make_wsl, ("--mode=wsl",)),
        ("wsl", make_wsl, ("--mode=auto",)),
        ("wsl", make_wsl, ("--mode=wsl", "--device-id=3", "--device-name-strategy=uuid")),
    ],
)
def test_spec_equals_that_of_nvidias_generator(
    name: str, make: Callable[[Path], Path], words: tuple[str, ...], tmp_path: Path
) -> None:
    """Every entry, and the order of hooks and their arguments."""
    assert spec(make(tmp_path), *words) == expected(name)


def test_compat_root_can_be_chosen(tmp_path: Path) -> None:
    """For images of an Orin that have their CUDA elsewhere."""
    found = spec(make_orin(tmp_path), "--mode=csv", "--csv.compat-container-root=/other")
    words = [word for hook in found["containerEdits"]["hooks"] for word in hook["args"]]
    assert "--cuda-compat-container-root=/other" in words


@pytest.mark.parametrize(("wanted", "node"), [("0", "/dev/nvidia2"), ("1", "/dev/nvidia1")])
def test_one_of_two_gpus_is_chosen_by_index_or_uuid(wanted: str, node: str, tmp_path: Path) -> None:
    """By index or UUID; the display is the integrated one's."""
    host = make_thor(tmp_path)
    uuid = other_hosts.THOR[int(wanted)].name
    for word in (wanted, uuid):
        found = spec(host, "--mode=csv", f"--device-id={word}")
        assert names(found) == [wanted, uuid, "all"]
        assert node in paths(found, wanted)
    assert "there is no GPU or MIG device 2" in refused(host, "--mode=csv", "--device-id=2")


def test_gpus_are_one_device_where_their_order_is_unknown(tmp_path: Path) -> None:
    """Where somebody asks for it, or where their order is none that is known."""
    host = make_thor(tmp_path)
    off = "--feature-flag=disable-multiple-csv-devices"
    assert names(spec(host, "--mode=csv", off)) == ["0", "all"]
    other_hosts.place_nvml(host, [FakeGpu(0), FakeGpu(1)])
    found, warnings = text(host, "--mode=csv", "--format=json")
    assert names(json.loads(found)) == ["0", "all"]
    assert warnings == ("all GPUs are one device, because NVML lists them in an unknown order",)


def test_tegra_with_a_gpu_on_the_bus_is_a_usual_machine(tmp_path: Path) -> None:
    """It is a machine like any other; NVIDIA's generator has the same rule."""
    host = make_tegra(tmp_path)
    make_driver(host)
    nvml.place(host, [FakeGpu(0)])
    settings = resolve({}, {}, "toolkit-agent")
    assert generate.gpu_mode(settings, HostRoot(str(host))) == "nvml"
    nvml.place(host, other_hosts.ORIN)
    assert generate.gpu_mode(settings, HostRoot(str(host))) == "csv"


def test_tegra_needs_the_spec_of_its_gpus(tmp_path: Path) -> None:
    """With a GPU on the PCI bus only, a Tegra needs the management spec like any other machine; the
    question whether it is there is about the kind that the proposal names."""
    host = make_tegra(tmp_path)
    make_driver(host)
    make_nodes(host)
    (host / "etc/cdi").mkdir()
    root, settings = HostRoot(str(host)), resolve({}, {}, "toolkit-agent")
    store: Any = SimpleNamespace(read=lambda _: None)

    def proposal() -> own_specs.SpecProposal:
        known = KnownGpus(store, root, "boot", refresh=True)
        found = spec_proposal.propose(settings, root, known, ("/etc/cdi",), HOOK, Reader())
        assert found is not None
        return found

    nvml.place(host, [FakeGpu(0)])
    found = proposal()
    assert found.needed == "management.nvidia.com/gpu"
    assert not own_specs.has_needed(settings, root, ("/etc/cdi",), found.needed)
    for change in found.changes:
        if found.is_needed(change.path.name) and change.after:
            Path(change.path.agent).write_bytes(change.after.data)
    assert own_specs.has_needed(settings, root, ("/etc/cdi",), found.needed)
    nvml.place(host, other_hosts.ORIN)
    found = proposal()
    assert found.needed == "nvidia.com/gpu"
    assert not own_specs.has_needed(settings, root, ("/etc/cdi",), found.needed)


def test_wsl_with_a_gpu_handed_through_is_a_usual_machine(tmp_path: Path) -> None:
    """Device nodes of the Linux driver count."""
    host = make_wsl(tmp_path)
    make_driver(host)
    make_nodes(host)
    assert generate.gpu_mode(resolve({}, {}, "toolkit-agent"), HostRoot(str(host))) == "nvml"


def test_silent_nvml_costs_only_its_hook(tmp_path: Path) -> None:
    """Only the hook that needs its answer is missing, and that is told."""
    host = make_orin(tmp_path)
    other_hosts.place_nvml(host, other_hosts.ORIN, ("fail nvmlInitWithFlags 999",))
    found, (warning,) = text(host, "--mode=csv", "--format=json")
    assert warning.startswith("the CDI spec has no hook for a newer CUDA of an image: NVML says")
    assert "enable-cuda-compat" not in found


def test_missing_csv_files_are_an_error(tmp_path: Path) -> None:
    """They are in a package of their own."""
    host = make_tegra(tmp_path)
    shutil.rmtree(host / CSV)
    said = refused(host, "--mode=csv")
    assert f"CSV files list nothing: there is no /{CSV}/devices.csv; there is no /{CSV}/" in said
    assert "install NVIDIA's packages for containers (nvidia-l4t-init)" in said


def test_gpu_without_nodes_is_an_error(tmp_path: Path) -> None:
    """A GPU without any of its nodes is none."""
    host = make_tegra(tmp_path, nodes=False)
    assert "none of the 8 device nodes that CSV files list is in /dev" in refused(
        host, "--mode=csv"
    )


def test_gpu_without_a_name_is_an_error(tmp_path: Path) -> None:
    """Where only UUIDs are wanted, and NVML tells none."""
    said = refused(make_tegra(tmp_path), "--mode=csv", "--device-name-strategy=uuid")
    assert "its GPU has no UUID; give --device-name-strategy=index" in said


def test_files_of_the_driver_root_are_named_without_it(tmp_path: Path) -> None:
    """Files are those of the root, named in a container without it; the release is the host's."""
    host = make_tegra(tmp_path)
    shutil.copytree(host / NVGPU, host / "opt/drv" / NVGPU, symlinks=True)
    shutil.rmtree(host / "usr/lib")
    found = spec(host, "--mode=csv", "--driver-root=/opt/drv")
    mounts = {one["containerPath"]: one["hostPath"] for one in found["containerEdits"]["mounts"]}
    library = f"/{NVGPU}/libcuda.so.1.1"
    assert mounts[library] == f"/opt/drv{library}"
    assert mounts["/etc/nv_tegra_release"] == "/etc/nv_tegra_release"
    links = [word for hook in found["containerEdits"]["hooks"] for word in hook["args"]]
    assert f"libcuda.so.1::/{NVGPU}/libcuda.so" in links


@pytest.mark.parametrize(
    ("patterns", "left"),
    [((), True), (("**/plain",), False), (("/etc/*/plain",), False), (("/etc/*",), True),
     (("plain",), True), (("**/pl?in",), False), (("/etc/alternatives/[o-q]*",), False)],
)  # fmt: skip
def test_wildcard_stops_at_a_slash(patterns: tuple[str, ...], left: bool, tmp_path: Path) -> None:
    """A wildcard stops at a slash."""
    words = [f"--csv.ignore-pattern={pattern}" for pattern in patterns]
    found = json.dumps(spec(make_tegra(tmp_path), "--mode=csv", *words))
    assert ("/etc/alternatives/plain" in found) is left


def test_missing_file_is_told_only_where_it_was_asked_for(tmp_path: Path) -> None:
    """One of those that are usual is none that anybody misses; one that was asked for is."""
    host = make_tegra(tmp_path)
    (host / CSV / "l4t.csv").unlink()
    assert spec(host, "--mode=csv")
    words = ("--mode=csv", f"--csv.file=/{CSV}/devices.csv", f"--csv.file=/{CSV}/l4t.csv")
    assert text(host, *words)[1] == (f"there is no /{CSV}/l4t.csv",)


def test_lines_without_type_and_path_count_for_nothing(tmp_path: Path) -> None:
    """What is no line with a type and a path counts for nothing."""
    (tmp_path / "one.csv").write_bytes(
        b"\xef\xbb\xbflib, /bom\n# lib, /comment\nlib /no/comma\nlib,\n,/x\nLIB, /upper\n"
        b"  dev ,/a,b \r\nsym,/nul\0\nlib,/bad\xff\ndir, /last"
    )
    found, warnings, missing = tegra.read(
        HostRoot(str(tmp_path)), ["/one.csv", "/none.csv", "/one.csv"]
    )
    assert found == {"dev": ["/a,b"] * 2, "dir": ["/last"] * 2, "lib": [], "sym": []}
    assert (warnings, missing) == ([], ["there is no /none.csv"])


def test_driver_in_use_by_windows_is_taken(tmp_path: Path) -> None:
    """Windows keeps old ones, and tells which one it uses; where it does not, nobody guesses."""
    host = make_wsl(tmp_path)
    other = "usr/lib/wsl/drivers/nv_dispi.inf_amd64_1111111111111111"
    shutil.copytree(host / STORE, host / other)
    for variant in ("", "OLD"):
        for store in (STORE, other):
            dxcore.place(host, [(3100, f"/{store}")], variant)
            found = json.dumps(spec(host, "--mode=wsl"))
            assert f"/{store}/libcuda.so.1.1" in found
            assert (f"/{other}/" in found) is (store == other)
    (host / dxcore.LIBRARY).write_bytes(b"")
    said = refused(host, "--mode=wsl")
    assert "/usr/lib/wsl/drivers has 2 drivers, and libdxcore.so does not tell which" in said


@pytest.mark.parametrize("library", [True, False])
def test_only_driver_of_windows_is_taken(library: bool, tmp_path: Path) -> None:
    """There is no doubt about it, whatever the library says; that is told."""
    host = other_hosts.make_wsl(tmp_path)
    if not library:
        (host / dxcore.LIBRARY).unlink()
    found, (warning,) = text(host, "--mode=wsl", "--format=json")
    assert f"/{STORE}/libcuda.so.1.1" in found
    assert warning.startswith(
        "the driver is the only one in /usr/lib/wsl/drivers, because libdxcore"
    )


@pytest.mark.parametrize(
    "adapters", [(), ((3100, f"/{other_hosts.OTHER_STORE}"),), ((2600, f"/{STORE}"),)]
)
def test_wsl_without_a_gpu_of_nvidia_is_an_error(
    adapters: tuple[tuple[int, str], ...], tmp_path: Path
) -> None:
    """None at all, another vendor's, one whose driver is too old for WSL2."""
    host = make_wsl(tmp_path)
    dxcore.place(host, adapters)
    assert "install NVIDIA's driver in Windows" in refused(host, "--mode=wsl")


def test_missing_dxg_is_an_error(tmp_path: Path) -> None:
    """Not WSL2, or a distribution without GPUs."""
    host = make_wsl(tmp_path)
    (host / "dev/dxg").unlink()
    assert "there is no device node /dev/dxg" in refused(host, "--mode=wsl")


def test_directory_of_the_nodes_is_opened_on_request(tmp_path: Path) -> None:
    """The directory of its nodes is opened where somebody asks for it."""
    make_node(make_thor(tmp_path) / "dev/dri/renderD129", 226, 129)
    found = spec(tmp_path, "--mode=csv", "--enable-hook=chmod")
    (one,) = (device for device in found["devices"] if device["name"] == "1")
    last = one["containerEdits"]["hooks"][-1]["args"]
    assert last == ["nvidia-cdi-hook", "chmod", "--mode", "755", "--path", "/dev/dri"]


def test_nvml_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a proposal, although both the kind of a Tegra and its spec depend on the answer."""
    asked: list[str] = []

    def ask(library: Library) -> Answer:
        asked.append(library.name)
        return Answer(cuda=13010)

    monkeypatch.setattr(driver_nvml, "ask", ask)
    store: Any = SimpleNamespace(read=lambda _: None)

    def known() -> KnownGpus:
        return KnownGpus(store, HostRoot(str(tmp_path)), "boot", refresh=True)

    with open(tmp_path / "nvml", "wb") as file:
        for proposal in (known(), known()):
            library = Library("nvml", file.fileno())
            assert [proposal.ask(library).cuda for _ in range(3)] == [13010] * 3
    assert asked == ["nvml"] * 2
