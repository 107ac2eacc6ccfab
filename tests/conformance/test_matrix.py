"""The matrix: every shape of a node on every real containerd, from first look to original bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance import checks, steps
from tests.conformance.private_node import PrivateNode
from tests.conformance.shapes import SHAPES, Refused, Row, Shape
from tests.conformance.trees import touched
from tests.tools.runtimes import Runtime

pytestmark = [pytest.mark.real, pytest.mark.cases(25)]

# A cell is a dozen starts of a real containerd; all of them take five minutes.
CELLS = [
    pytest.param(shape, generation, id=f"{shape.name}-{generation}")
    for shape in SHAPES
    for generation in shape.cells
]


@pytest.mark.parametrize(("shape", "generation"), CELLS)
def test_node_is_made_right_and_put_back_or_refused(
    shape: Shape, generation: str, runtime: Runtime, tmp_path: Path
) -> None:
    """The agent makes this node right and puts it back, or refuses it and touches nothing."""
    expected = shape.cells[generation]
    with PrivateNode(runtime, shape) as node:
        if isinstance(expected, Refused):
            refuses(node, expected)
        else:
            converges(node, expected, tmp_path)


def refuses(node: PrivateNode, expected: Refused) -> None:
    """Neither `plan` nor `apply` accepts the node, and nothing is touched."""
    assert (node.wait() is not None) == expected.answers
    before, pid = node.whole(), node.supervisor.pid
    for command in ("plan", "apply"):
        checks.tells(command, node.agent(command), expected.code, expected.names)
        told = {path for path in touched(before, node.whole()) if path.startswith(TOLD)}
        assert set(touched(before, node.whole())) <= told
        checks.not_published(node)
    assert (node.supervisor.pid, node.supervisor.starts) == (pid, 1)


# A refusal may say so beside `toolkit-ready`, and take its lock.
TOLD = ("validations", "state")


def converges(node: PrivateNode, row: Row, scratch: Path) -> None:
    """Plan writes nothing, apply makes right, a second apply is free, revert puts back."""
    before = checks.observe(node)
    checks.shape_is_as_described(node, row, before)
    checks.done(node.agent("plan"), 1)
    assert touched(before.whole, node.whole()) == []
    assert node.supervisor.starts == 1

    checks.done(node.agent_in_steps("apply", log=scratch / "first"))
    checks.node_is_right(node, row, before)
    assert node.supervisor.starts == 2

    is_free(node, scratch)
    checks.done(node.agent("revert"))
    checks.node_is_as_before(node, before)
    checks.not_published(node)
    assert node.supervisor.starts == 3


def is_free(node: PrivateNode, scratch: Path) -> None:
    """A second `apply` writes nothing, restarts nothing, and runs no program of the runtime's."""
    before, pid = node.whole(), node.supervisor.pid
    checks.done(node.agent("plan"), 0)
    checks.done(node.agent_in_steps("apply", log=scratch / "second"))
    assert node.supervisor.pid == pid
    changes = touched(before, node.whole())
    assert changes == []
    assert dumps(scratch / "first"), "the first one checks what it writes"
    assert not dumps(scratch / "second")


def dumps(log: Path) -> list[str]:
    """The steps that ran `config dump`."""
    return [step for step in steps.read(log) if "subprocess" in step and "'dump'" in step]
