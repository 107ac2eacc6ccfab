"""Written YAML is read alike by PyYAML (YAML 1.1) and, for scalars, by JSON."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.cdi import yaml_text

_TEXT = st.text(max_size=12)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT
_DATA = st.recursive(
    _SCALARS,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(_TEXT, below, max_size=4),
    max_leaves=12,
)
_DOCUMENTS = st.dictionaries(_TEXT, _DATA, min_size=1) | st.lists(_DATA, min_size=1)


def text(data: Any) -> str:
    """A whole document."""
    return "\n".join(yaml_text.lines(data)) + "\n"


@given(_DOCUMENTS)
def test_text_is_read_back_as_it_was(data: Any) -> None:
    """Any text, number and nesting, by both of PyYAML's readers."""
    written = text(data)
    # repr tells 1 from 1.0 and from True.
    assert repr(yaml.safe_load(written)) == repr(data)
    encoded = written.encode("utf-8")
    if not any(char in str(data) for char in "\ufffe\uffff"):
        assert repr(yaml.load(encoded, yaml.CSafeLoader)) == repr(data)


@given(_DOCUMENTS)
def test_each_value_is_one_line(data: Any) -> None:
    """No text breaks a line, whatever is in it, so that a diff of two documents is readable."""
    assert text(data).splitlines() == list(yaml_text.lines(data))


@pytest.mark.parametrize(
    "word", ["y", "No", "on", "null", "~", "1e3", "0x1f", "1:30", "2026-01-01"]
)
def test_words_that_readers_disagree_about_are_quoted(word: str) -> None:
    """Quoted, as a value and as a key."""
    assert text({word: word}) == f'"{word}": "{word}"\n'


@pytest.mark.parametrize(
    ("value", "written"),
    [(1e16, "1.0e+16"), (1e-7, "1.0e-07"), (1.5e300, "1.5e+300"), (60.0, "60.0"), (-0.0, "-0.0"),
     (math.inf, ".inf"), (-math.inf, "-.inf"), (math.nan, ".nan")],
)  # fmt: skip
def test_numbers_have_a_point(value: float, written: str) -> None:
    """With a point, as YAML 1.1 wants it."""
    assert text([value]) == f"- {written}\n"


def test_shape_is_as_a_person_writes_it() -> None:
    """As a person would write it."""
    data = {"kind": "a", "items": [{"x": 1, "y": []}, ["a", {}]], "a.b/c": None, "t": (True,)}
    assert text(data) == (
        'kind: "a"\nitems:\n  - x: 1\n    "y": []\n  - - "a"\n    - {}\n"a.b/c": null\nt:\n'
        "  - true\n"
    )
