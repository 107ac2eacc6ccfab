"""The commands themselves, against the scripted containerd of each version as a process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode
from tests.conformance import checks
from tests.conformance.shapes import OURS, Refused, Row
from tests.conformance.trees import contents, touched
from tests.generations.model_node import Texts
from tests.generations.shapes import CELLS, Cell
from tests.sampling import sampled_params

# One root file of each kind, and a mix that each pair of versions reads in its own way.
_FEW = {
    "v2-images-all-2.0.11",
    "v3+v2-50-2.2.7",
    "v2+v3-zz-2.2.7",
    "v4-2.3.4",
    "v1-drop-in-2.3.4",
    "none3+v2-zz-2.4.0-beta.0",
    "none-old-name-2.0.11",
}
_RUNNING = [
    cell
    for cell in CELLS
    if isinstance(cell.shape, Texts)
    and not (isinstance(given := cell.shape.cells[cell.version], Refused) and not given.answers)
]
# What the files do is tried for all cells in one process (test_matrix.py).
_ALONE = [cell for cell in _RUNNING if str(cell) not in _FEW and "+" not in cell.shape.name]
_CELLS = [
    *(cell for cell in _RUNNING if str(cell) in _FEW),
    *sampled_params(_ALONE, 5, "commands", long=40),
]


def prepared(place: Path, cell: Cell) -> CliNode:
    """A node with the files of a cell's shape, whose socket is given on the command line."""
    node = CliNode(place, cell.version)
    shutil.rmtree(node.etc)
    node.etc.mkdir()
    assert isinstance(cell.shape, Texts)
    for name, text in (cell.shape.texts or {}).items():
        path = node.etc / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = text.replace("@NODE@/etc/containerd", str(node.etc)).replace("@NODE@", str(place))
        path.write_text(text, encoding="utf-8")
    node.argv[:] = [str(node.program), "-a", str(node.socket), "-c", str(node.config)]
    if not node.config.exists():
        node.config.write_text("# nothing\n", encoding="utf-8")
    node.supervisor.argv[:] = node.argv
    return node


@pytest.mark.parametrize("cell", _CELLS, ids=str)
def test_commands_make_the_node_right_and_put_it_back_or_refuse(cell: Cell, place: Path) -> None:
    """`plan`, `apply`, `apply`, `revert`: right, free, and back byte for byte; or refused."""
    expected = cell.shape.cells[cell.version]
    with prepared(place, cell) as node:
        before, shown, options = node.tree(), node.answer(), cell.shape.options
        if isinstance(expected, Refused):
            for command in ("plan", "apply"):
                result = node.agent(command, *options)
                checks.tells(command, result, expected.code, expected.names)
            assert touched(before, node.tree()) == []
            return
        checks.done(node.agent("plan", *options), 1)
        checks.done(node.agent("apply", *options))
        is_right(node, cell, expected, set(shown.runtimes))
        right = node.tree()
        checks.done(node.agent("apply", *options))
        assert touched(right, node.tree()) == []
        assert node.supervisor.starts == 2
        checks.done(node.agent("revert"))
        assert contents(node.tree()) == contents(before)
        assert node.answer() == shown


def is_right(node: CliNode, cell: Cell, row: Row, there: set[str]) -> None:
    """Handlers, default and switch are as they have to be, and it is published."""
    answer = node.answer()
    assert set(answer.runtimes) == there | set(OURS)
    assert answer.default == cell.shape.default_after(row)
    assert answer.cdi == row.cdi_after
    assert node.ready() is not None
