"""The matrix again, on the rules of the containerds that cannot be had here: 2.0, 2.2, 2.3, 2.4.

As in tests/conformance, from first look to original bytes, but in this process and on the test
double, whose rules for these versions were observed on real ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import AgentError
from tests.conformance import checks
from tests.conformance.shapes import Expected, Refused, Row
from tests.conformance.trees import touched
from tests.generations.model_node import ModelNode
from tests.generations.shapes import CELLS, Cell
from tests.generations.table import CELL
from tests.sampling import sampled_params

# 2.2 merges as 2.0 does, and 2.4 as 2.3: half of the cells show what all do.
_ALONE = [cell for cell in CELLS if "+" not in cell.shape.name]
_MIXES = [cell for cell in CELLS if "+" in cell.shape.name]
_CELLS = [
    *sampled_params(_ALONE, 70, "alone", long=len(_ALONE) // 2),
    *sampled_params(_MIXES, 20, "mixes", long=len(_MIXES) // 4),
]


@pytest.mark.parametrize("cell", _CELLS)
def test_node_is_made_right_and_put_back_or_refused(
    cell: Cell, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The agent makes this node right and puts it back, or refuses it and touches nothing."""
    request.node.user_properties.append((CELL, (cell.shape.name, cell.version)))
    expected: Expected = cell.shape.cells[cell.version]
    with ModelNode(tmp_path / "node", cell.version, cell.shape) as node:
        if isinstance(expected, Refused):
            refuses(node, expected)
        else:
            converges(node, expected)


def refuses(node: ModelNode, expected: Refused) -> None:
    """Neither `plan` nor `apply` accepts the node, and nothing is touched."""
    assert node.runs == expected.answers, node.problem or node.dead
    before = node.whole()
    for command in (node.propose, node.apply):
        with pytest.raises(AgentError) as caught:
            command()
        assert caught.value.exit_code == expected.code, caught.value.message
        assert caught.value.message.startswith("cannot ")
        assert expected.names in caught.value.message
        told = {path for path in touched(before, node.whole()) if path.startswith(_TOLD)}
        assert set(touched(before, node.whole())) <= told
    assert node.starts == 1


# A refusal may say so beside `toolkit-ready`, and take its lock.
_TOLD = ("validations", "state")


def converges(node: ModelNode, row: Row) -> None:
    """Plan writes nothing, apply makes right, a second apply is free, revert puts back."""
    assert node.runs, node.problem or node.dead
    before = checks.observe(node)
    checks.shape_is_as_described(node, row, before)
    proposal = node.propose()
    assert proposal.changes
    assert proposal.decision.row == row.number
    assert touched(before.whole, node.whole()) == []

    node.apply()
    assert node.runs, node.problem or node.dead
    checks.node_is_right(node, row, before)
    assert node.starts == 2

    right = node.whole()
    assert node.propose().nothing_to_do
    node.apply()
    assert touched(right, node.whole()) == []
    assert node.starts == 2

    node.revert()
    checks.node_is_as_before(node, before)
    assert node.starts == 3
