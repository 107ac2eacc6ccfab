"""Missing control nodes of the driver are made with the kernel's own numbers."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.cli_node import shows
from tests.cli.daemon import running, settle
from tests.cli.hosted import HostedNode
from tests.conformance import checks
from tests.conformance.trees import snapshot, touched
from tests.tools.driver import make_driver

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="nodes need root: run tests/run as root")

_DEVICES = """\
Character devices:
  1 mem
195 nvidia{frontend}
{uvm} nvidia-uvm

Block devices:
259 blkext
510 nvidia-uvm
"""
_CONTROL = {
    "nvidiactl": (195, 255),
    "nvidia-modeset": (195, 254),
    "nvidia-uvm": (511, 0),
    "nvidia-uvm-tools": (511, 1),
}


@pytest.fixture
def driven(place: Path) -> Iterator[HostedNode]:
    """A node in a directory whose driver is loaded; of its nodes only the GPU's is there."""
    with HostedNode(place) as node:
        make_driver(node.host)
        for name in _CONTROL:
            (node.host / "dev" / name).unlink()
        say(node)
        yield node


def say(node: HostedNode, frontend: str = "", uvm: int = 511) -> None:
    """What the node's kernel says of itself."""
    proc = node.host / "proc"
    (proc / "self").mkdir(parents=True, exist_ok=True)
    (proc / "devices").write_text(_DEVICES.format(frontend=frontend, uvm=uvm))


def specs_as_usual(node: HostedNode) -> None:
    """Let specs be written where the runtime reads them."""
    options = [word for word in node.options() if not word.startswith("--cdi-output-dir")]
    node.options = lambda: options  # type: ignore[method-assign]


def nodes(node: HostedNode) -> dict[str, tuple[int, int]]:
    """The control nodes that are there, with their numbers."""
    found = {}
    for path in (node.host / "dev").iterdir():
        info = path.lstat()
        if path.name in _CONTROL and stat.S_ISCHR(info.st_mode):
            found[path.name] = (os.major(info.st_rdev), os.minor(info.st_rdev))
    return found


def test_what_is_missing_is_made(driven: HostedNode) -> None:
    """Once, for everybody, and shown beforehand."""
    plan = shows(driven.agent("plan", "-o", "json"), "Plan", 1)
    assert nodes(driven) == {}
    assert all(
        any(f"/dev/{name}" in str(item) for item in plan["deviceNodes"]) for name in _CONTROL
    )
    found = shows(driven.agent("apply", "-o", "json"), "Outcome")
    assert {path for path in found["changed"] if path.startswith("/dev/")} == {
        f"/dev/{name}" for name in _CONTROL
    }
    assert nodes(driven) == _CONTROL
    for name in _CONTROL:
        assert stat.S_IMODE((driven.host / "dev" / name).stat().st_mode) == 0o666
    before = snapshot(driven.host / "dev")
    assert shows(driven.agent("apply", "-o", "json"), "Outcome")["changed"] == []
    assert touched(before, snapshot(driven.host / "dev")) == []


def test_name_of_an_older_driver_is_known(driven: HostedNode) -> None:
    """Before 550 it had another name."""
    say(driven, frontend="-frontend")
    checks.done(driven.agent("apply"))
    assert nodes(driven) == _CONTROL


def test_only_nodes_with_wrong_numbers_are_replaced(driven: HostedNode) -> None:
    """The kernel gives the number of uvm anew at each load; other nodes stay as they are."""
    checks.done(driven.agent("apply"))
    before = snapshot(driven.host / "dev")
    say(driven, uvm=507)
    checks.done(driven.agent("apply"))
    assert nodes(driven) == {**_CONTROL, "nvidia-uvm": (507, 0), "nvidia-uvm-tools": (507, 1)}
    after = snapshot(driven.host / "dev")
    changed = [path for path in touched(before, after) if path != "."]
    assert changed == ["nvidia-uvm", "nvidia-uvm-tools"]


def test_module_that_is_not_loaded_gets_no_node(driven: HostedNode) -> None:
    """No node without a number."""
    (driven.host / "proc/devices").write_text("Character devices:\n195 nvidia\n")
    checks.done(driven.agent("apply"))
    assert nodes(driven) == {name: _CONTROL[name] for name in ("nvidiactl", "nvidia-modeset")}


@pytest.mark.parametrize(
    "options",
    [
        ("--create-device-nodes=none",),
        ("--create-device-nodes=",),
        ("--cdi-enabled=false",),
    ],
)
def test_no_node_is_made_without_the_option(driven: HostedNode, options: tuple[str, ...]) -> None:
    """Nothing is made, nor said."""
    result = driven.agent("apply", *options)
    checks.done(result)
    assert nodes(driven) == {}
    assert "device node" not in result.stderr
    checks.done(driven.agent("plan", *options))


@pytest.mark.parametrize("value", ["none", ""])
def test_no_node_is_made_without_the_variable(driven: HostedNode, value: str) -> None:
    """The same."""
    checks.done(driven.agent("apply", env={"CREATE_DEVICE_NODES": value}))
    assert nodes(driven) == {}


def test_missing_right_to_make_nodes_is_a_warning(driven: HostedNode) -> None:
    """A warning each, and everything else is done; a plan shows no more than that."""
    prefix = ("setpriv", "--bounding-set=-mknod", "--inh-caps=-mknod")
    for _ in range(2):
        result = driven.agent("apply", prefix=prefix)
        checks.done(result)
        assert all(f"/dev/{name}" in result.stderr for name in _CONTROL)
        assert nodes(driven) == {}
        assert driven.ready()
    assert not [path for path in (driven.host / "dev").iterdir() if path.name.endswith("~")]
    plan = shows(driven.agent("plan", "-o", "json", prefix=prefix), "Plan")
    assert plan["deviceNodes"] == []
    assert all(any(f"/dev/{name}" in text for text in plan["warnings"]) for name in _CONTROL)


@pytest.mark.parametrize("what", ["file", "link", "directory"])
def test_file_in_the_place_of_a_node_stays(driven: HostedNode, what: str) -> None:
    """It stays, with a warning; the others are made."""
    path = driven.host / "dev/nvidiactl"
    match what:
        case "file":
            path.write_text("mine")
        case "link":
            path.symlink_to("/dev/null")
        case "directory":
            path.mkdir()
    before = path.lstat()
    result = driven.agent("apply")
    checks.done(result)
    assert "/dev/nvidiactl" in result.stderr
    assert "it is no device node" in result.stderr
    assert path.lstat() == before
    assert nodes(driven).keys() == _CONTROL.keys() - {"nvidiactl"}
    checks.done(driven.agent("plan"))  # nothing is left that could be done


@pytest.mark.parametrize("text", ["", "nonsense\n\n  195\n", "Block devices:\n195 nvidia\n"])
def test_kernel_that_lists_no_driver_gets_no_node(driven: HostedNode, text: str) -> None:
    """Nothing is made of it."""
    (driven.host / "proc/devices").write_text(text)
    checks.done(driven.agent("apply"))
    assert nodes(driven) == {}


def test_run_makes_the_nodes_of_a_module_loaded_later(driven: HostedNode) -> None:
    """nvidia-uvm is one of its own: `run` makes its nodes when it comes."""
    specs_as_usual(driven)
    (driven.host / "proc/devices").write_text("Character devices:\n195 nvidia\n")
    modules = driven.host / "sys/module"
    (modules / "nvidia").mkdir(parents=True)
    spec = driven.host / "var/run/cdi/management.nvidia.com-gpu.yaml"
    with running(driven) as daemon:
        settle(daemon)
        assert "nvidia-uvm" not in nodes(driven)
        say(driven)
        (modules / "nvidia_uvm").mkdir()
        daemon.until(lambda: nodes(driven) == _CONTROL)
        daemon.until(lambda: "/dev/nvidia-uvm-tools" in spec.read_text())
        daemon.end()


def test_nodes_are_in_the_spec(driven: HostedNode) -> None:
    """Those that were just made, too."""
    specs_as_usual(driven)
    checks.done(driven.agent("apply"))
    spec = (driven.host / "var/run/cdi/management.nvidia.com-gpu.yaml").read_text()
    assert all(f"/dev/{name}" in spec for name in _CONTROL)
