"""CDI specs of others of which a real containerd dies, and an agent that does not let it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance import checks, cri
from tests.conformance.foreign_specs import CASES, Case, spec
from tests.conformance.private_node import PrivateNode
from tests.conformance.shapes import BY_NAME, Shape
from tests.conformance.trees import contents, touched
from tests.sampling import sampled_params
from tests.tools.mounts import private_mounts
from tests.tools.runtimes import Runtime

pytestmark = pytest.mark.real

generations = pytest.mark.parametrize("generation", ["1.7", "2.1"])
_SECTION = {"1": "io.containerd.grpc.v1.cri", "2": "io.containerd.cri.v1.runtime"}


@generations
@pytest.mark.parametrize("case", sampled_params(CASES, 5, "foreign specs"))
def test_containerd_dies_of_a_deadly_spec(
    case: Case, generation: str, runtime: Runtime, place: Path
) -> None:
    """A fact about containerd, which the program relies on."""
    assert dies(case, runtime, place) is case.deadly


def dies(case: Case, runtime: Runtime, place: Path) -> bool:
    """Start a containerd that reads the case's directory; does it panic before it answers?"""
    number = {"1": 2, "2": 3}[runtime.generation[0]]
    with private_mounts(place / "node") as mounts:
        directory, run = case.make(place), place / "node/run"
        config = place / "config.toml"
        config.write_text(
            f'version = {number}\nroot = "{place}/node/var/lib/c"\nstate = "{run}/c"\n'
            f'[grpc]\naddress = "{run}/c.sock"\n[ttrpc]\naddress = "{run}/c.ttrpc"\n'
            f'[plugins."{_SECTION[runtime.generation[0]]}"]\n'
            f'enable_cdi = true\ncdi_spec_dirs = ["{directory}"]\n'
        )
        log = place / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*mounts.prefix, str(runtime.executable), "-c", str(config)],
                env={"PATH": f"{runtime.executable.parent}:{os.defpath}"},
                stdout=output, stderr=output,
            )  # fmt: skip
        try:
            died = ends_before_it_answers(process, run / "c.sock")
        finally:
            process.kill()
            process.wait()
    panics = (b"slice bounds out of range", b"nil pointer dereference")
    assert not died or any(panic in log.read_bytes() for panic in panics)
    return died


def ends_before_it_answers(process: subprocess.Popen[bytes], socket: Path) -> bool:
    """Wait for the one or the other."""
    while process.poll() is None:
        if socket.exists():
            try:
                return cri.wait(socket, 0.2) is None
            except TimeoutError:
                continue
        time.sleep(0.02)
    return True


def letter(path: Path) -> None:
    """A spec of which the runtime dies."""
    path.write_text(spec("v/gpu"))


@pytest.mark.parametrize(
    ("shape", "generation", "make"),
    [(BY_NAME["kubeadm-v2"], "1.7", letter), (BY_NAME["cdi-off-v3"], "2.1", letter),
     (BY_NAME["cdi-off-v3"], "2.1", os.mkfifo)],
    ids=["1.7", "2.1", "pipe"],
)  # fmt: skip
def test_deadly_spec_refuses_a_restart(
    shape: Shape, generation: str, make: Callable[[Path], None], runtime: Runtime
) -> None:
    """CDI would come on, and the runtime would be dead, or wait for ever: apply refuses, naming
    the file."""
    with PrivateNode(runtime, shape) as node:
        before = checks.observe(node)
        directory = node.directory / "run/cdi"  # /run is the node's own
        directory.mkdir()
        foreign = directory / "site.yaml"
        make(foreign)
        plan = node.agent("plan")
        checks.done(plan, 1)
        assert "Refused:   cannot restart containerd: /var/run/cdi/site.yaml" in plan.stdout
        assert "/var/run/cdi/site.yaml" in node.agent("status").stdout
        for _ in range(2):
            checks.refused(node.agent("apply"), 3, "/var/run/cdi/site.yaml")
        assert touched(before.etc, node.tree()) == []
        assert [path.name for path in directory.iterdir()] == ["site.yaml"]
        assert node.supervisor.starts == 1
        foreign.unlink()
        checks.done(node.agent("apply"))
        checks.done(node.agent("revert"))
        assert contents(node.tree()) == contents(before.etc)
