"""The sample of cases that a run tries: another one for each commit.

A test that has many cases of one kind takes some of them, and more or all of them with `--long`;
the others are not even collected, because that alone takes a while. The commit decides the sample,
so that a failure repeats on the same commit, and later commits try other cases.
TOOLKIT_AGENT_TEST_SEED=WORD overrides the commit.
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from collections import defaultdict
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import TypeVar

import pytest

VARIABLE = "TOOLKIT_AGENT_TEST_SEED"

T = TypeVar("T")
_ROOT = Path(__file__).parents[1]
# So many cases of a test run without `--long`.
_CASES = {"cli": 2, "conformance": 5, "operator": 4, "image": 3, "security": 5}
_run = {"long": False}


def settle(*, long: bool) -> None:
    """Say which kind of run this is, before tests are collected."""
    _run["long"] = long


def by_run(short: int, long: int) -> int:
    """The number for this kind of run."""
    return long if _run["long"] else short


@functools.cache
def seed() -> str:
    """What the choice follows from: the environment's word, else the commit, else nothing."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen:
        return chosen
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:
        return "none"
    return found.stdout.strip() or "none"


def sample(cases: Sequence[T], count: int, name: str) -> list[T]:
    """At most `count` of the cases, in their order; `name` keeps two samples apart."""
    ranked = sorted(range(len(cases)), key=lambda number: _rank(f"{name}:{number}"))
    return [cases[number] for number in sorted(ranked[:count])]


def sampled_params(
    cases: Sequence[T],
    count: int,
    name: str,
    identify: Callable[[T], str] = str,
    long: int | None = None,
) -> list[T | object]:
    """Cases as parameters of a test: `count` of them, `long` of them or all in a long run."""
    wanted = by_run(count, len(cases) if long is None else long)
    return [pytest.param(case, id=identify(case)) for case in sample(cases, wanted, name)]


def left_out(items: Sequence[pytest.Item], named: Set[str]) -> list[pytest.Item]:
    """What a run without `--long` leaves out: of a test with many cases, in a folder where each
    starts programs, all but a few. `named`: modules that were asked for run whole."""
    tests: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    found: list[pytest.Item] = []
    for name, cases in tests.items():
        path = cases[0].path
        marker = cases[0].get_closest_marker("cases")
        below = os.path.relpath(path, _ROOT)
        folder = Path(below).parts[1]
        wanted = marker.args[0] if marker else _CASES.get(folder, len(cases))
        if len(cases) > wanted and not {str(path), below} & named:
            found += set(cases).difference(sample(cases, wanted, name))
    return found


def _rank(text: str) -> bytes:
    return hashlib.sha256(f"{seed()}:{text}".encode()).digest()
