"""On WSL2 and Tegra the spec nvidia.com/gpu counts, and there is no management spec."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.cli_node import fails, shows
from tests.cli.daemon import running
from tests.cli.hosted import HostedNode
from tests.conformance import checks, statusfile
from tests.conformance.trees import contents, snapshot
from tests.doubles.nvml import dxcore
from tests.tools.driver import make_driver
from tests.unit.support import other_hosts
from tests.unit.support.gpu_node import MARKS
from tests.unit.support.other_hosts import ADAPTERS, CSV, STORE

pytestmark = MARKS

DATA = Path(__file__).parents[1] / "data/specs"
_SAYS = "this is WSL2 (/dev/dxg), which has no driver of that kind; give --mode=wsl"


class OtherNode(HostedNode):
    """A containerd on such a machine, with specs as by default."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.cdi = self.host / "var/run/cdi"
        self.spec = self.cdi / "nvidia.com-gpu.yaml"
        self.management = self.cdi / "management.nvidia.com-gpu.yaml"

    def options(self) -> list[str]:
        """Without the one that asks for no specs."""
        return [word for word in super().options() if not word.startswith("--cdi-output-dir")]

    def is_ready(self) -> bool:
        """Now; one of the two status files comes before the other."""
        return (self.validations / statusfile.READY).exists()

    def failure(self) -> str | None:
        """Why it is not ready."""
        return self.error().get("TOOLKIT_ERROR_CODE")


@pytest.fixture
def wsl(place: Path) -> Iterator[OtherNode]:
    """With a Linux driver installed that does nothing."""
    with OtherNode(place) as found:
        make_driver(found.host, nodes=False)
        other_hosts.make_wsl(found.host)
        dxcore.place(found.host, ADAPTERS)
        yield found


@pytest.fixture
def tegra(place: Path) -> Iterator[OtherNode]:
    with OtherNode(place) as found:
        other_hosts.make_tegra(found.host)
        yield found


def as_generated(node: OtherNode, mode: str) -> None:
    """The spec that is there is what `cdi generate` prints, and what NVIDIA's generator has, but
    for the place of the hook's program."""
    assert node.spec.read_text() == node.agent("cdi generate", f"--mode={mode}").stdout
    shown = node.agent("cdi generate", f"--mode={mode}", "--format=json").stdout
    expected = (DATA / f"{mode}.json").read_text()
    there = str(node.toolkit).removeprefix(str(node.host))
    assert json.loads(shown.replace(f"{there}/nvidia-cdi-hook", "/usr/bin/nvidia-cdi-hook")) == (
        json.loads(expected)
    )


@pytest.mark.parametrize("mode", ["wsl", "csv"])
def test_apply_makes_its_spec(mode: str, request: pytest.FixtureRequest) -> None:
    """No management spec, no device node, no advice that cannot work; then nothing to do."""
    node: OtherNode = request.getfixturevalue({"csv": "tegra"}.get(mode, mode))
    before = contents(snapshot(node.host / "dev"))
    planned = node.agent("plan").stdout
    assert "/nvidia.com-gpu.yaml (CDI spec, " in planned
    assert "Refused:" not in planned
    checks.done(node.agent("apply"))
    assert node.ready() is not None
    assert contents(snapshot(node.host / "dev")) == before
    assert [path.name for path in node.cdi.iterdir()] == [node.spec.name]
    as_generated(node, mode)
    found = shows(node.agent("cdi list", "-o", "json"), "CDIDevices")["devices"]
    assert {one["state"] for one in found} == {"resolvable"}
    after = node.tree()
    checks.done(node.agent("apply"))
    assert node.tree() == after
    checks.done(node.agent("status"))


def test_spec_goes_and_comes_with_the_driver(wsl: OtherNode) -> None:
    """`run` takes the spec away with it, and readiness, and makes both anew."""
    away = wsl.host / "away"
    with running(wsl) as daemon:
        daemon.until(wsl.is_ready)
        (wsl.host / STORE).rename(away)
        (wsl.host / other_hosts.OTHER_STORE).touch()
        daemon.until(lambda: wsl.failure() == "NO_DRIVER")
        assert wsl.ready() is None
        assert not wsl.spec.exists()
        away.rename(wsl.host / STORE)
        daemon.until(lambda: wsl.is_ready() and wsl.spec.exists())


def test_changed_csv_files_are_read_again(tegra: OtherNode) -> None:
    """A file that is added to is read again."""
    with running(tegra) as daemon:
        daemon.until(tegra.is_ready)
        with open(tegra.host / CSV / "l4t.csv", "a") as file:
            file.write("lib, /etc/nv_extra\n")
        (tegra.host / "etc/nv_extra").touch()
        daemon.until(lambda: "nv_extra" in tegra.spec.read_text())


def test_our_spec_goes_beside_one_of_nvidia_ctk(wsl: OtherNode) -> None:
    """One that somebody else made, under another name: ours is one too many."""
    theirs = wsl.host / "etc/cdi/nvidia.yaml"
    theirs.parent.mkdir(parents=True)
    made = wsl.agent("cdi generate", "--mode=wsl", "--output=/etc/cdi/nvidia.yaml")
    assert (made.returncode, made.stdout) == (0, "")
    before = theirs.read_text()
    checks.done(wsl.agent("apply"))
    assert wsl.ready() is not None
    assert theirs.read_text() == before
    assert not wsl.spec.exists()


def test_management_spec_from_before_goes(wsl: OtherNode) -> None:
    """A GPU was handed to Linux, and is not any more."""
    wsl.cdi.mkdir(parents=True)
    wsl.management.write_text(
        "---\n# Written by toolkit-agent; changes are overwritten.\ncdiVersion: 0.5.0\n"
        "kind: management.nvidia.com/gpu\ndevices:\n- name: all\n  containerEdits:\n"
        "    deviceNodes:\n    - path: /dev/nvidiactl\n"
    )
    checks.done(wsl.agent("apply"))
    assert not wsl.management.exists()
    assert wsl.spec.exists()


@pytest.mark.parametrize("words", [("cdi generate",), ("cdi generate", "--mode=nvml")])
def test_other_platforms_are_named_without_useless_advice(
    words: tuple[str, ...], wsl: OtherNode
) -> None:
    """No advice that cannot work."""
    result = wsl.agent(*words)
    fails(result, 3, _SAYS)
    assert "modprobe" not in result.stderr
    assert "kernel module" not in result.stderr


def test_node_without_specs_is_made_right(wsl: OtherNode) -> None:
    """The rest of the node can be made right all the same."""
    checks.done(wsl.agent("apply", "--cdi-output-dir="))
    assert wsl.ready() is not None
    assert not wsl.cdi.exists()


@pytest.mark.parametrize("mode", ["legacy", "csv", "jit-cdi"])
def test_runtime_mode_without_specs_is_ready_without_one(mode: str, place: Path) -> None:
    """nvidia-container-runtime finds out by itself there what a container gets: a node without a
    driver for a spec is ready, and the reason is told."""
    with OtherNode(place) as node:
        words = f"--nvidia-container-runtime.mode={mode}"
        assert "Warning:   cannot make a CDI spec: there is no NVIDIA driver" in (
            node.agent("plan", words).stdout
        )
        result = node.agent("apply", words)
        checks.done(result)
        ready = node.ready()
        assert ready is not None
        assert f"TOOLKIT_RUNTIME_MODE={mode}\n".encode() in ready
        assert not node.cdi.exists()


def test_runtime_mode_with_specs_is_not_ready_without_one(place: Path) -> None:
    """Where devices are injected by specs."""
    with OtherNode(place) as node:
        for words in ((), ("--nvidia-container-runtime.mode=cdi",)):
            fails(node.agent("apply", *words), 3, "there is no NVIDIA driver")
        assert node.ready() is None


def test_spec_that_cannot_be_written_is_refused(tegra: OtherNode) -> None:
    """It is the one that the node needs."""
    checks.done(tegra.agent("apply"))
    shutil.rmtree(tegra.host / CSV)
    fails(tegra.agent("apply"), 3, "CSV files list nothing")
    assert tegra.ready() is None
    assert not tegra.spec.exists()
    assert os.listdir(tegra.cdi) == []
