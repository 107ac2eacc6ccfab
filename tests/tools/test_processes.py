"""Tests in several processes: who runs what, and what is told of a process that ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.processes import Shares

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("order", ["in turn", "one is slow"])
@pytest.mark.parametrize("keys", [[None] * 40, [None] * 7 + ["a"] * 20 + ["b"] * 13])
def test_every_test_is_run_once_and_neighbours_stay_together(
    keys: list[str | None], order: str, count: int
) -> None:
    shares = Shares(keys, count)
    ran: dict[int, int] = {}
    running = set(range(count))
    while running:
        for process in sorted(running):
            if order == "one is slow" and process == 0 and len(running) > 1:
                continue
            number = shares.take(process)
            if number is None:
                running.discard(process)
            else:
                assert number not in ran
                ran[number] = process
    assert sorted(ran) == list(range(len(keys)))
    for key in {"a", "b"} & set(keys):
        assert len({ran[number] for number, own in enumerate(keys) if own == key}) == 1


def test_process_that_ended_gives_its_tests_back() -> None:
    shares = Shares([None] * 4, 2)
    assert [shares.take(0), shares.take(0)] == [0, 1]
    shares.give_back(0, [1])
    assert [shares.take(1) for _ in range(3)] == [2, 3, 1]
    assert shares.take(0) is None


_SAMPLE = """\
import os
import warnings

import pytest


@pytest.fixture(scope="module")
def shared():
    yield os.getpid()
    print("put away")


def test_good(tmp_path):
    assert os.getpid() != os.getppid() and not list(tmp_path.iterdir())


def test_bad():
    print("a word of the test")
    assert 1 == 2


def test_dead():
    os._exit(7)


@pytest.mark.skip(reason="not now")
def test_skipped():
    pass


@pytest.mark.parametrize("number", range(20))
def test_shared(number, shared):
    assert shared == os.getpid()
"""


def run(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_sample.py").write_text(_SAMPLE)
    options = ("-p", "tests.tools.processes", "-p", "no:cacheprovider", "-q", "-rfEs")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(directory), *words,
         f"{directory}/test_sample.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_outcomes_are_those_of_one_process_and_a_death_is_told(tmp_path: Path) -> None:
    done = run(tmp_path, "--processes", "3")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 failed, 21 passed, 1 skipped" in done.stdout
    assert "the process of this test ended with 7" in done.stdout
    assert "a word of the test" in done.stdout
    assert "SKIPPED [1]" in done.stdout


def test_no_test_starts_after_the_first_failure_where_that_is_asked_for(tmp_path: Path) -> None:
    done = run(tmp_path, "--processes", "2", "-x", "--deselect", "test_sample.py::test_dead")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "stopping after 1 failures" in done.stdout
