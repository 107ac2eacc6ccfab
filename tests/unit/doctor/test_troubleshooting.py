"""The guide has the checks that there are."""

from __future__ import annotations

from tests.tools import troubleshooting


def test_guide_has_the_table_of_checks() -> None:
    """If this fails: `python -m tests.tools.troubleshooting`."""
    text = troubleshooting.README.read_text(encoding="utf-8")
    assert troubleshooting.with_table(text) == text
