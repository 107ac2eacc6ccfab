"""`verify` by the protocol, on the scripted CRI-O; tests/image/test_verify.py has real runtimes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cri.client import pod_questions
from tests.cli.cli_node import CliNode, fails, shows
from tests.cli.crio import make, restarts
from tests.conformance import checks
from tests.doubles.crio.crio_node import CrioNode

IMAGE = "localhost/pause:1"
SPEC = {
    "cdiVersion": "0.5.0",
    "kind": "nvidia.com/gpu",
    "containerEdits": {"env": ["NVIDIA_VISIBLE_DEVICES=void"]},
    "devices": [
        {
            "name": "0",
            "containerEdits": {
                "deviceNodes": [{"path": "/dev/nvidia0", "hostPath": "/dev/null"}],
                "mounts": [
                    {"hostPath": "/etc/hosts", "containerPath": "/gpu", "options": ["rbind"]}
                ],
            },
        }
    ],
}


@pytest.fixture
def node(place: Path) -> Iterator[CrioNode]:
    """A CRI-O that has its sandbox image, and one GPU in a spec."""
    with make(place) as node:
        node.script(images=[IMAGE])
        node.cdi.mkdir(exist_ok=True)
        (node.cdi / "gpu.json").write_text(json.dumps(SPEC))
        yield node


def proofs(data: Any) -> set[tuple[str, str, str]]:
    """Handler, proof and result of each."""
    return {(p["handler"], p["proof"], p["result"]) for p in data["proofs"]}


def test_a_right_node_is_proven_under_each_handler(node: CrioNode) -> None:
    """A pod runs, and the device of the node's spec is in its container once."""
    done = shows(node.agent("apply", "-o", "json"), "Outcome")
    assert done["pods"] == "ran under the default handler, nvidia, nvidia-cdi, nvidia-legacy"
    data = shows(node.agent("verify", "-o", "json"), "Verification")
    assert data["result"] == "ok"
    assert {p["device"] for p in data["proofs"]} == {None, "nvidia.com/gpu=0"}
    handlers = {p["handler"] for p in data["proofs"]}
    assert handlers == {data["defaultHandler"], "nvidia", "nvidia-cdi", "nvidia-legacy"}
    assert {p["askedBy"] for p in data["proofs"]} == {None, "CRI field"}


def test_the_table_has_a_line_for_each_proof(node: CrioNode) -> None:
    """And no line of more than 80 columns."""
    done = node.agent("verify", env={"COLUMNS": "80"})
    assert done.returncode == 0, checks.said(done)
    assert "Device:    nvidia.com/gpu=0\n" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [*map("ok crun (default) {}".format, ("pod runs", "device injected by CRI field"))] == [
        " ".join(line) for line in lines if line[:1] == ["ok"]
    ]
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout.startswith("Proven:")


def test_without_the_image_nothing_is_tried_and_nothing_pulled(node: CrioNode) -> None:
    """It is said, and the exit code is that of what could not be tried."""
    node.script()
    data = shows(node.agent("verify", "-o", "json"), "Verification", code=3)
    assert data["proofs"] == []
    why = f"the sandbox image {IMAGE} is not on this node, and nothing is pulled"
    assert data["obstacle"] == why
    done = shows(node.agent("apply", "-o", "json"), "Outcome")
    assert done["pods"] == f"not tried: {why}"


def test_a_device_that_no_container_can_get_is_a_fault(node: CrioNode) -> None:
    """Two files describe it, so that the runtime takes it from neither."""
    (node.cdi / "other.json").write_text(json.dumps(SPEC))
    data = shows(node.agent("verify", "-o", "json"), "Verification", code=1)
    assert proofs(data) == {("crun", "pod runs", "ok"), ("crun", "device injected", "failed")}
    assert "no container can get nvidia.com/gpu=0" in data["proofs"][-1]["reason"]


def test_a_change_after_which_no_pod_runs_is_undone(node: CrioNode) -> None:
    """With the runtime's own words; what failed is not tried again, and --verify=off allows it."""
    before, began = node.tree(), restarts(node)
    node.script(images=[IMAGE], broken_handlers=["nvidia-cdi"])
    done = node.agent("apply")
    fails(done, 5, "no pod runs under nvidia-cdi: ", "the old configuration is back and proven")
    assert node.tree().keys() == before.keys()
    assert restarts(node) == began + 2
    fails(node.agent("apply"), 3, "nvidia-cdi")
    assert restarts(node) == began + 2
    allowed = shows(node.agent("apply", "--retry", "--verify=off", "-o", "json"), "Outcome")
    assert allowed["pods"] is None


def test_pods_that_ran_neither_before_undo_nothing(node: CrioNode) -> None:
    """Whatever keeps them from running is not the change."""
    node.script(images=[IMAGE], broken_handlers=["", "nvidia"])
    done = shows(node.agent("apply", "-o", "json"), "Outcome")
    assert done["pods"] == (
        "ran under nvidia-cdi, nvidia-legacy; ran neither before the change nor now under "
        "the default handler, nvidia"
    )


def test_a_pod_that_somebody_removes_proves_nothing(node: CrioNode) -> None:
    """The kubelet removes what it does not know: undecided, and never a fault."""
    node.script(images=[IMAGE], removes_pods=True)
    data = shows(node.agent("verify", "-o", "json"), "Verification", code=3)
    assert {result for _, _, result in proofs(data)} == {"undecided"}


def test_what_an_interrupted_run_left_is_removed(node: CrioNode) -> None:
    """Its pods and its probe specs, once they are a minute old."""
    labels = {"toolkit-agent/verify": "true"}
    node.run_pod("verify-nvidia", namespace="toolkit-agent-verify", labels=labels)
    other = node.run_pod("other", labels=labels)
    (node.cdi / "gpu.json").unlink()
    old, fresh = (node.cdi / f"toolkit-agent.probe-verify-{name}.json" for name in ("a", "b"))
    for path in (old, fresh):
        path.write_text("{}")
    os.utime(old, (1, 1))
    shows(node.agent("verify", "-o", "json"), "Verification")
    with pod_questions(str(node.socket), "the runtime") as ask:
        assert [item.id for item in ask.sandboxes()] == [other]
    assert [*node.cdi.iterdir()] == [fresh]


def test_a_runtime_that_does_not_answer_is_unreachable(place: Path) -> None:
    """As for every command."""
    with CliNode(place) as node:
        node.script(silent=False, unimplemented=True)
        fails(node.agent("verify"), 4)
