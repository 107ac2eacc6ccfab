"""The table of the matrix on rules, at the end of a run."""

from __future__ import annotations

import pytest

CELL = "model cell"  # a property of a test's report: shape and version
_WORDS = {"passed": "ok", "failed": "FAIL", "error": "FAIL"}


def show(terminalreporter: pytest.TerminalReporter) -> None:
    """Print shapes by versions, if any cell was tried. What does not apply has no cell."""
    results: dict[str, dict[str, str]] = {}
    for outcome, word in _WORDS.items():
        for report in terminalreporter.getreports(outcome):
            for key, cell in getattr(report, "user_properties", ()):
                if key == CELL:
                    results.setdefault(cell[0], {})[cell[1]] = word
    if not results:
        return
    versions = sorted({version for row in results.values() for version in row})
    terminalreporter.section("shapes on the rules of containerds that cannot be had here")
    for name, cells in (("shape", dict(zip(versions, versions, strict=True))), *results.items()):
        words = "".join(f"{cells.get(version, 'n.a.'):>14}" for version in versions)
        terminalreporter.write_line(f"{name:<26}{words}")
