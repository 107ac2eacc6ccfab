"""`verify` on real runtimes: right nodes pass, a node that was broken fails with the reason, and
nothing of ours is left."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.cri.client import pod_questions
from tests.conformance import checks
from tests.conformance.trees import contents
from tests.doubles.toolkit.toolkit_node import ToolkitNode
from tests.sampling import by_run, sample, sampled_params
from tests.tools.lending import Lending
from tests.tools.pods import PodNode
from tests.tools.runtimes import Runtime

pytestmark = pytest.mark.real

GENERATIONS = ("1.6", "1.7", "2.1")
MANAGEMENT = "management.nvidia.com/gpu=all"
SPEC = "management.nvidia.com-gpu.yaml"
OURS = ("nvidia", "nvidia-cdi", "nvidia-legacy")


@dataclass(frozen=True)
class Answer:
    """What `verify` said."""

    code: int
    document: dict[str, Any]

    def proofs(self, result: str) -> list[tuple[str, str]]:
        """Handler and proof of each that has this result."""
        proofs = self.document["proofs"]
        return [(p["handler"], p["proof"]) for p in proofs if p["result"] == result]

    @property
    def reasons(self) -> str:
        """Why proofs failed."""
        return "; ".join(p["reason"] for p in self.document["proofs"] if p["result"] == "failed")


def verify(node: PodNode, *options: str) -> Answer:
    """Run it. Afterwards nothing of it is on the node."""
    before = state(node)
    done = node.agent("verify", "-o", "json", *options)
    assert done.returncode in (0, 1, 3), done.stderr
    assert state(node) == before
    document = json.loads(done.stdout)
    assert document["kind"] == "Verification"
    return Answer(done.returncode, document)


def state(node: PodNode) -> tuple[object, ...]:
    """All that a run could leave."""
    directory = node.cdi_directory
    specs = sorted(path.name for path in directory.iterdir()) if directory.exists() else None
    with pod_questions(str(node.reachable_socket), "the runtime") as ask:
        return node.whole(), specs, ask.sandboxes(), ask.containers()


@contextmanager
def applied(runtime: Runtime) -> Iterator[ToolkitNode]:
    """A node that was made right."""
    with ToolkitNode(runtime) as node:
        checks.done(node.agent("apply"))
        yield node


@pytest.fixture
def node(generation: str, runtime: Runtime, shared: Lending[ToolkitNode]) -> Iterator[ToolkitNode]:
    """The right node of the test's generation."""
    with shared.lend(f"verify-{generation}", lambda: applied(runtime), state) as found:
        yield found


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_right_node_is_proven(generation: str, node: ToolkitNode) -> None:
    """Under the default and each handler of ours a pod runs, and the device is there once."""
    answer = verify(node)
    assert (answer.code, answer.document["result"], answer.reasons) == (0, "ok", "")
    native = generation != "1.6"
    by = "CRI field" if native else "annotation"
    assert answer.document["defaultHandler"] == ("runc" if native else "nvidia")
    ok = answer.proofs("ok")
    for handler in (answer.document["defaultHandler"], *OURS):
        assert (handler, "pod runs") in ok
        injected = (handler, f"device injected by {by}") in ok
        assert injected == (native or handler != "nvidia-legacy")
    devices = {p["device"] for p in answer.document["proofs"] if p["seenIn"]}
    assert devices == {MANAGEMENT}


@pytest.mark.parametrize("generation", sampled_params(["1.6", "1.7", "2.1"], 1, __name__, long=2))
def test_a_node_of_nobody_is_judged(generation: str, runtime: Runtime) -> None:
    """Where we have done nothing, the default handler is tried with a device of our own."""
    with PodNode(runtime) as node:
        answer = verify(node)
        native = generation == "2.1"
        assert answer.code == (0 if native else 1)
        assert ("runc", "pod runs") in answer.proofs("ok")
        device = next(p for p in answer.document["proofs"] if p["device"])
        assert device["device"].startswith("toolkit-agent.probe/verify=")
        assert native or "the runtime injects no CDI devices" in answer.reasons
        assert not node.cdi_directory.exists()


def _config(node: ToolkitNode) -> Path:
    """The file that has our handlers."""
    drop_in = node.etc / "containerd/conf.d/99-nvidia.toml"
    return drop_in if drop_in.exists() else node.etc / "containerd/config.toml"


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    changed = re.sub(old, new, text)
    assert changed != text
    path.write_text(changed, "utf-8")


def _section(node: ToolkitNode, line: str) -> None:
    """Set a key of the CRI's section."""
    path = _config(node)
    text = path.read_text("utf-8")
    if line.partition(" ")[0] in text:
        _edit(path, rf"(?m)^\s*{line.partition(' ')[0]} =.*$", line)
        return
    name = "io.containerd.grpc.v1.cri" if "version = 2" in text else "io.containerd.cri.v1.runtime"
    header = f'[plugins."{name}"]'
    if header in text:
        _edit(path, re.escape(header), f"{header}\n{line}")
    else:
        path.write_text(f"{text}\n{header}\n{line}\n", "utf-8")


def switch_off(node: ToolkitNode) -> str:
    """CDI is switched off behind our back."""
    _section(node, "enable_cdi = false")
    node.restart()
    return r"nothing of the device: the runtime injects no CDI devices \(disabled\)"


def remove_spec(node: ToolkitNode) -> str:
    """The CDI spec is gone."""
    (node.cdi_directory / SPEC).unlink()
    return "no CDI spec has a GPU; the runtime reads "


def read_elsewhere(node: ToolkitNode) -> str:
    """The runtime reads another directory."""
    _section(node, 'cdi_spec_dirs = ["/elsewhere"]')
    node.restart()
    return "no CDI spec has a GPU; the runtime reads /elsewhere"


def remove_binary(node: ToolkitNode) -> str:
    """The handler's program is gone."""
    (node.toolkit / "nvidia-container-runtime").unlink()
    return "no such file or directory"


def empty_type(node: ToolkitNode) -> str:
    """The handlers have no runtime type (from dumps of other tools)."""
    _edit(_config(node), r'(?s)(runtimes\.nvidia\].*?runtime_type = )"[^"]+"', r'\1""')
    node.restart()
    return "Runtime.Name must be set"


def forget_prefix(node: ToolkitNode) -> str:
    """NVIDIA's runtime answers another prefix."""
    config = node.toolkit / ".config/nvidia-container-runtime/config.toml"
    _edit(config, r"annotation-prefixes = \[[^]]*\]", 'annotation-prefixes = ["other.k8s.io/"]')
    return r"nvidia-container-runtime does not answer nvidia\.cdi\.k8s\.io/"


def keep_annotations(node: ToolkitNode) -> str:
    """The handlers pass no annotations on."""
    _edit(_config(node), r"(?m)^.*container_annotations.*$", "")
    node.restart()
    return "no handler passes annotations"


def publish_prefix(node: ToolkitNode) -> str:
    """The device plugin is told a prefix that nobody answers."""
    for name in ("toolkit-ready", ".toolkit-ctr-ready"):
        _edit(node.validations / name, "cdi-cri", "cdi-annotations")
        _edit(node.validations / name, "(?m)^(CDI_ANNOTATION_PREFIX)=.*$", r"\1=other.k8s.io/")
    return "nothing of the device"


def conflict(node: ToolkitNode) -> str:
    """Another tool describes the same devices, so that nobody gets them."""
    spec = (node.cdi_directory / SPEC).read_text("utf-8")
    (node.cdi_directory / "other.yaml").write_text(spec, "utf-8")
    return f"no container can get {MANAGEMENT}"


FAULTS: dict[Callable[[ToolkitNode], str], list[str]] = {
    switch_off: ["1.7", "2.1"],
    remove_spec: ["1.6", "1.7", "2.1"],
    read_elsewhere: ["1.7", "2.1"],
    remove_binary: ["1.6", "1.7", "2.1"],
    empty_type: ["1.6", "1.7", "2.1"],
    forget_prefix: ["1.6"],
    keep_annotations: ["1.6"],
    publish_prefix: ["2.1"],
    conflict: ["1.6", "1.7", "2.1"],
}


@pytest.mark.parametrize(
    ("generation", "fault"),
    [
        pytest.param(generation, fault, id=f"{fault.__name__}-{generation}")
        for fault, known in FAULTS.items()
        for generation in sample(known, by_run(1, len(known)), fault.__name__)
    ],
)
def test_a_broken_node_fails_and_says_why(
    generation: str, runtime: Runtime, fault: Callable[[ToolkitNode], str]
) -> None:
    """It is not proven, and the reason names the fault."""
    with applied(runtime) as node:
        expected = fault(node)
        answer = verify(node)
        assert answer.code == 1
        assert re.search(expected, answer.reasons), answer.reasons


@pytest.mark.parametrize("generation", sampled_params(GENERATIONS, 1, f"{__name__}.undone", long=2))
def test_a_change_after_which_no_pod_runs_is_undone(generation: str, runtime: Runtime) -> None:
    """The handler's program is there and runs nothing; Status shows it as it should be."""
    with ToolkitNode(runtime) as node:
        program = node.source / "deb/usr/bin/nvidia-container-runtime"
        program.write_text("#!/bin/sh\nexit 1\n", "ascii")
        before = node.tree()
        done = node.agent("apply")
        assert done.returncode == 5, checks.said(done)
        assert "cannot apply: no pod runs under " in done.stderr
        assert "the old configuration is back and proven" in done.stderr
        assert contents(node.tree()) == contents(before)
        assert verify(node).proofs("ok")[0] == ("runc", "pod runs")
        checks.done(node.agent("apply", "--retry", "--verify=off"))


@pytest.mark.parametrize("generation", sampled_params(GENERATIONS, 1, f"{__name__}.told", long=2))
def test_told_to_end_it_leaves_nothing(generation: str, node: ToolkitNode) -> None:
    """Whatever it is doing at that moment."""
    before = state(node)
    for seconds in (0.3, 0.6, 0.9, 1.2):
        started = node.start_agent("verify", node.directory / "run/verify.log")
        time.sleep(seconds)
        started.send_signal(signal.SIGTERM)
        started.wait(60)
        assert state(node) == before
    (node.directory / "run/verify.log").unlink()
