"""What is printed fits the screen."""

from __future__ import annotations

import pytest

from agent.cli.render.base import LABEL, Screen

PLAIN = Screen(80)
LONG = "/etc/nvidia-container-runtime/host-files-for-container.d/devices.csv"
ROWS = [
    ("OPTION", "VALUE", "ORIGIN"),
    ("--runtime", "auto", "default"),
    ("--nvidia-container-runtime.modes.cdi.annotation-prefixes", "-", "default"),
    ("--csv.file", f"{LONG},{LONG}", "command line"),
]


def test_paragraph_begins_in_one_column_behind_its_label() -> None:
    """So that labels are seen at one look."""
    lines = PLAIN.entry("Why:", "word " * 40)
    assert lines[0].startswith("Why:" + " " * (LABEL - 4) + "word")
    assert all(line.startswith(" " * LABEL + "word") for line in lines[1:])
    assert len(lines) > 2
    assert max(map(len, lines)) <= 80


def test_path_is_never_broken() -> None:
    """A person copies it."""
    path = "/" + "x" * 100
    assert any(path in line for line in PLAIN.entry("Files:", f"in {path} and elsewhere"))


def test_control_characters_of_others_are_escaped() -> None:
    """A name that somebody chose does nothing to a terminal."""
    (line,) = Screen(80, color=True).entry("Spec:", "a\x1b[31mb\rc")
    assert line.endswith("a\\x1b[31mb\\rc")
    assert "\x1b" not in line


def test_only_the_label_is_coloured_and_only_on_request() -> None:
    """The text is the same with and without colours, but for the label."""
    assert Screen(80).entry("Ready:", "yes", "good") == ["Ready:     yes"]
    (colored,) = Screen(80, color=True).entry("Ready:", "yes", "good")
    assert colored == "\x1b[32mReady:\x1b[0m     yes"


@pytest.mark.parametrize("width", [80, 100, 1000])
def test_table_fits_the_screen_and_loses_nothing(width: int) -> None:
    """All cells are there, whole, but for breaks after commas and spaces."""
    lines = Screen(width).table(ROWS)
    assert max(map(len, lines)) <= width
    words = [word for row in ROWS for cell in row for word in cell.replace(",", ", ").split()]
    assert sorted(" ".join(lines).replace(",", ", ").split()) == sorted(words)


def test_table_with_room_has_one_line_for_each_row() -> None:
    """For grep and awk."""
    assert len(Screen(1000).table(ROWS)) == len(ROWS)
