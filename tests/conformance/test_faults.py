"""Real runtimes that fail, and an agent that is killed: the node is never left worse."""

from __future__ import annotations

import signal
import sys
from itertools import zip_longest
from pathlib import Path

import pytest

from tests.conformance import brittle, checks, statusfile, steps
from tests.conformance.private_node import PrivateNode
from tests.conformance.shapes import BY_NAME, Row, Shape
from tests.conformance.trees import Contents, contents, touched
from tests.sampling import by_run, sample
from tests.tools.runtimes import Runtime

pytestmark = pytest.mark.real

# A drop-in and an import; an edit in place; a root file that is made.
_KINDS = [
    pytest.param(BY_NAME[name], generation, id=f"{name}-{generation}")
    for name, generation in (("kubeadm-v3", "2.1"), ("kubeadm-v2", "1.7"), ("no-root-file", "2.1"))
]
_SHORT = "--proof-timeout=8"
# A few steps of each command, others for each commit: all of them would take minutes.
_FEW, _MORE = 2, 8

kinds = pytest.mark.parametrize(("shape", "generation"), _KINDS)


def row_of(node: PrivateNode) -> Row:
    """The row of the decision that the node's shape is in."""
    row = node.shape.cells[node.runtime.generation]
    assert isinstance(row, Row)
    return row


def dying_if(node: PrivateNode, pattern: str) -> list[str]:
    """Make the runtime die at its next starts where its files match; the words to undo it with."""
    whole = list(node.supervisor.argv)
    at = whole.index(str(node.runtime.executable))
    words = [sys.executable, brittle.__file__, pattern, str(node.config_directory)]
    node.supervisor.argv = [*whole[:at], *words, *whole[at:]]
    return whole


def error_code(node: PrivateNode) -> str:
    """The error that is told beside `toolkit-ready`."""
    text = (node.validations / statusfile.ERROR).read_text("ascii")
    return statusfile.parse(text)["TOOLKIT_ERROR_CODE"]


@kinds
def test_runtime_that_dies_on_the_new_configuration_gets_the_old_one(
    shape: Shape, generation: str, runtime: Runtime
) -> None:
    """The old bytes come back, the runtime runs on them, and the same is not tried again."""
    with PrivateNode(runtime, shape) as node:
        before = checks.observe(node)
        dying_if(node, "nvidia-container-runtime")
        checks.refused(node.agent("apply", _SHORT), 5, "")
        node.wait()
        checks.node_is_as_before(node, before)
        checks.not_published(node)
        assert error_code(node) == "ROLLED_BACK"

        starts = node.supervisor.starts
        checks.refused(node.agent("apply", _SHORT), 3, "")
        assert node.supervisor.starts == starts
        checks.node_is_as_before(node, before)


@pytest.mark.parametrize("generation", ["2.1"])
def test_right_node_is_proven_again_after_a_rollback(generation: str, runtime: Runtime) -> None:
    """What was proven before is proven and published again after the rollback."""
    with PrivateNode(runtime, BY_NAME["kubeadm-v3"]) as node:
        before = checks.observe(node)
        checks.done(node.agent("apply"))
        right, ready = contents(node.tree()), (node.validations / statusfile.READY).read_bytes()
        dying_if(node, r"default_runtime_name\s*=\s*['\"]nvidia")
        checks.refused(node.agent("apply", "--set-as-default=true", _SHORT), 5, "")
        node.wait()
        assert contents(node.tree()) == right
        assert (node.validations / statusfile.READY).read_bytes() == ready
        checks.done(node.agent("revert"))
        checks.node_is_as_before(node, before)


@kinds
def test_runtime_that_never_comes_back_has_its_old_files(
    shape: Shape, generation: str, runtime: Runtime
) -> None:
    """The old bytes are there for when the runtime is; then the node can be made right."""
    with PrivateNode(runtime, shape) as node:
        before = checks.observe(node)
        node.supervisor.delay = None
        checks.refused(node.agent("apply", "--proof-timeout=2"), 6, "")
        assert contents(node.tree()) == contents(before.etc)
        checks.not_published(node)
        assert error_code(node) == "ROLLBACK_FAILED"

        node.supervisor.delay = 0.05
        node.wait()
        checks.done(node.agent("revert"))
        checks.node_is_as_before(node, before)


@kinds
def test_restart_by_others_is_proven_by_the_next_apply(
    shape: Shape, generation: str, runtime: Runtime
) -> None:
    """With `none` the files wait for a restart; whoever comes after it proves and publishes."""
    with PrivateNode(runtime, shape) as node:
        before = checks.observe(node)
        checks.done(node.agent("apply", "--restart-mode=none"))
        assert touched(before.etc, node.tree())
        checks.not_published(node)
        assert error_code(node) == "RESTART_PENDING"

        node.restart()
        checks.done(node.agent("apply", "--restart-mode=none"))
        checks.node_is_right(node, row_of(node), before)
        assert node.supervisor.starts == 2


@pytest.mark.timeout(1800)
@kinds
def test_change_killed_at_some_steps_is_repaired(
    shape: Shape, generation: str, runtime: Runtime, tmp_path: Path
) -> None:
    """Killed before a step, `apply` again makes the node right, and `revert`, killed before one of
    its steps and run again, restores the bytes."""
    with PrivateNode(runtime, shape) as node:
        survives_kills(node, tmp_path / "steps")


def survives_kills(node: PrivateNode, log: Path) -> None:
    """Kill `apply` and `revert` in turn, each before some steps, and check what is left."""
    before = checks.observe(node)
    applying = counted(node, "apply", log)
    right = contents(node.tree())
    reverting = counted(node, "revert", log)
    for number, (forth, back) in enumerate(zip_longest(applying, reverting)):
        for command, step in (("apply", forth), ("revert", back)):
            if step is not None:
                killed = node.agent_in_steps(command, log=log, kill_at=step).returncode
                # The first time of all takes some steps more.
                done = killed == 0 and step > len(steps.read(log))
                assert killed == -signal.SIGKILL or done, last(log)
                node.settle()
                is_old_or_new(node, contents(before.etc), right, last(log))
                if (number % 2 == 0) == (command == "revert"):
                    survives_restart(node, last(log))
            checks.done(node.agent(command))
            if command == "apply":
                checks.node_is_right(node, row_of(node), before)
                assert contents(node.tree()) == right, last(log)
            else:
                checks.node_is_as_before(node, before)
                checks.not_published(node)


def counted(node: PrivateNode, command: str, log: Path) -> list[int]:
    """Some steps of a command that nothing interrupts."""
    checks.done(node.agent_in_steps(command, log=log))
    found = steps.seen(log)
    assert len(found) > 29
    return sample(found, by_run(_FEW, _MORE), f"{command} {node.shape.name}")


def is_old_or_new(node: PrivateNode, old: Contents, new: Contents, step: str) -> None:
    """Each file is the old or the new one, and readiness was not told too early."""
    found = {path: item for path, item in contents(node.tree()).items() if not path.endswith("~")}
    for path in old.keys() | new.keys():
        assert found.get(path) in (old.get(path), new.get(path)), f"{path} before {step}"
    if (node.validations / statusfile.READY).exists():
        assert found == new, f"ready before {step}"


def survives_restart(node: PrivateNode, step: str) -> None:
    """The runtime starts on what a killed agent left."""
    node.restart()
    assert node.status().ready, f"after a restart before {step}"


def last(log: Path) -> str:
    """The step that did not happen, for a failed assertion."""
    return (steps.read(log) or ["nothing"])[-1]
