"""The real runtime of a test, and the table of the matrix at the end."""

from __future__ import annotations

import pytest

from tests.conformance.shapes import SHAPES
from tests.tools import runtimes
from tests.tools.runtimes import WANTED, Runtime

# A failed check in there shows its values, as one in a test does.
pytest.register_assert_rewrite("tests.conformance.checks")

_CELL = "cell"
_WORDS = {"passed": "ok", "failed": "FAIL", "error": "FAIL"}


@pytest.fixture
def runtime(request: pytest.FixtureRequest, generation: str) -> Runtime:
    """The containerd of the test's parameter `generation`; without one the test is skipped."""
    shape = request.node.callspec.params.get("shape")
    if shape is not None:
        request.node.user_properties.append((_CELL, (shape.name, generation)))
    found = runtimes.load().find(generation)
    assert found is not None, runtimes.load().reason(generation)
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the matrix: shapes by generations."""
    results: dict[tuple[str, ...], str] = {}
    for outcome, word in _WORDS.items():
        for report in terminalreporter.getreports(outcome):
            for key, cell in report.user_properties:
                if key == _CELL:
                    results[tuple(cell)] = word
    if not results:
        return
    terminalreporter.section("conformance: shapes on real containerd")
    terminalreporter.write_line(_line("shape", WANTED))
    shown = {name for name, _ in results}
    for shape in (shape for shape in SHAPES if shape.name in shown):
        words = [results.get((shape.name, g), "-") if g in shape.cells else "n.a." for g in WANTED]
        terminalreporter.write_line(_line(shape.name, words))


def _line(name: str, words: tuple[str, ...] | list[str]) -> str:
    return f"{name:<20}" + "".join(f"{word:>9}" for word in words)
