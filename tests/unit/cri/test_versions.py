"""Versions are read in every spelling that a runtime was seen to use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cri.versions import parse_version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.6.20~ds1", (1, 6, 20)),
        ("1.7.24~ds1", (1, 7, 24)),
        ("2.1.9+unknown", (2, 1, 9)),
        ("v2.3.4", (2, 3, 4)),
        ("v2.0.5-k3s1", (2, 0, 5)),
        ("2.4.0-beta.0", (2, 4, 0)),
        ("1.7", (1, 7, 0)),
        (" 1.37.0\n", (1, 37, 0)),
        ("1.37.0-dev", (1, 37, 0)),
        ("10.20.30", (10, 20, 30)),
    ],
)
def test_version_is_read_whatever_surrounds_it(text: str, version: tuple[int, int, int]) -> None:
    """Debian, source builds and k3s each add something of their own."""
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["", "unknown", "v", "1", "-1.2.3", "1.x", "containerd 1.7.0"])
def test_what_is_no_version_is_none(text: str) -> None:
    """The decision then goes by evidence alone."""
    assert parse_version(text) is None


def test_versions_compare_as_numbers() -> None:
    """As text, 1.10 would be older than 1.7."""
    versions = [parse_version(text) for text in ("1.6.40", "1.7.2", "1.7.10", "1.10.0", "2.0.0")]
    numbers = [version for version in versions if version is not None]
    assert numbers == sorted(numbers)
    assert len(numbers) == len(versions)


@given(st.text())
def test_any_text_has_an_answer(text: str) -> None:
    """What a runtime calls itself never makes the agent fall over."""
    found = parse_version(text)
    assert found is None or len(found) == 3
