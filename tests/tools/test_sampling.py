"""Which cases a run takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import sampling

ROOT = Path(__file__).resolve().parents[2]


class FakeItem:
    """A case of a test, with the marker `cases` if that has a number."""

    def __init__(self, path: str, case: str, wanted: int | None) -> None:
        self.path = ROOT / path
        self.nodeid = f"{path}::test_it{case}"
        self._marker = wanted and pytest.mark.cases(wanted).mark

    def get_closest_marker(self, name: str) -> object:
        """The marker of that name."""
        return self._marker if name == "cases" else None


def test_sample_is_of_the_seed_and_keeps_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for word in ("one", "two", "two"):
        monkeypatch.setenv(sampling.VARIABLE, word)
        sampling.seed.cache_clear()
        found.append(sampling.sample(range(1000), 10, "name"))
    sampling.seed.cache_clear()
    assert all(numbers == sorted(set(numbers)) and len(numbers) == 10 for numbers in found)
    assert found[0] != found[1] == found[2]


@pytest.mark.parametrize(
    ("path", "wanted", "count"),
    [
        pytest.param(
            "tests/cli/test_x.py", None, 2, id="a folder in which each case starts programs"
        ),
        pytest.param("tests/cli/test_x.py", 25, 25, id="a number of its own"),
        pytest.param("tests/cli/test_named.py", None, 60, id="a module that was asked for"),
        pytest.param("tests/unit/test_x.py", None, 60, id="a folder of fast tests"),
    ],
)
def test_many_cases_are_few_in_a_short_run(path: str, wanted: int | None, count: int) -> None:
    items: list[Any] = [FakeItem(path, f"[{number}]", wanted) for number in range(60)]
    single: Any = FakeItem(path, "_alone", wanted)
    left_out = sampling.left_out([*items, single], {"tests/cli/test_named.py"})
    assert len(items) - len(left_out) == count
    assert set(left_out) <= set(items)
