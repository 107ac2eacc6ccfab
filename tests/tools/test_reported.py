"""The table of what people reported names tests that there are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.reported import CASES, PAINS, REPORTED

_TESTS = Path(__file__).parents[1]
# The reports that this project began with; 03, 05 and the like were told apart and are none.
_CASES = (1, 2, 4, 6, 7, 9, 10, 12, 14, 15, 20, 24, 26, 27, 28, 29, 31, 34)
_ALL_TEXT = "".join(path.read_text(encoding="utf-8") for path in _TESTS.rglob("*.py"))


def test_every_report_is_in_the_table() -> None:
    """None was forgotten, and none is answered by nothing."""
    assert list(PAINS) == [f"P{number}" for number in range(1, 16)]
    assert list(CASES) == [f"case-{number:02}" for number in _CASES]
    assert all(item.tests and item.source for item in REPORTED.values())


@pytest.mark.parametrize("name", REPORTED)
def test_report_is_answered_by_tests_that_exist(name: str) -> None:
    """Their functions are there, and so are the words of their parameters."""
    for test in REPORTED[name].tests:
        module, _, rest = test.partition("::")
        function, _, parameter = rest.rstrip("]").partition("[")
        tree = ast.parse((_TESTS / module).read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in names, test
        assert f'"{parameter}' in _ALL_TEXT.replace(f"[{parameter}]", ""), test
