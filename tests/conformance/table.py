"""The table of the matrix at the end of a run.

It is made from reports, which are all that arrives where tests run in several processes.
"""

from __future__ import annotations

import pytest

from tests.conformance.shapes import SHAPES
from tests.tools.runtimes import WANTED

CELL = "cell"  # a property of a test's report: shape and generation
_WORDS = {"passed": "ok", "failed": "FAIL", "error": "FAIL"}


def show(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the matrix, shapes by generations, if any of its cells was tried."""
    results: dict[tuple[str, ...], str] = {}
    for outcome, word in _WORDS.items():
        for report in terminalreporter.getreports(outcome):
            for key, cell in getattr(report, "user_properties", ()):  # none on a failed import
                if key == CELL:
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
