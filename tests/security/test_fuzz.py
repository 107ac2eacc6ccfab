"""Damaged inputs for every reader of foreign input.

The attacker hands a reader any bytes: a runtime's answer, a file in a directory that is read, a
program's output. The reader ends with a result or its documented error, within five seconds and
100 MiB. `python -m tests.bench.fuzz --minutes N` looks for longer.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.bench import fuzz
from tests.bench.fuzz import Reader
from tests.bench.fuzz_readers import READERS


@pytest.mark.long
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_no_input_gets_through(reader: Reader, tmp_path: Path) -> None:
    """A minute of all readers together, with the same inputs each time."""
    result = fuzz.run(reader, 60 / len(READERS), "test")
    assert fuzz.report([result], tmp_path / "failures") == 0


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_examples_are_read(reader: Reader) -> None:
    """Otherwise their mutations would say little: most of them have no error."""
    errors = 0
    for data in reader.examples:
        try:
            reader.read(data)
        except reader.allowed:
            errors += 1
    assert errors <= len(reader.examples) / 2


def _sleep(data: bytes) -> None:
    end = time.process_time() + 60
    while time.process_time() < end:
        pass


def _eat(data: bytes) -> None:
    bytearray(200 << 20)


def _crash(data: bytes) -> None:
    import ctypes

    ctypes.string_at(0)


def _raise(data: bytes) -> None:
    raise KeyError("not documented")


@pytest.mark.parametrize(
    ("read", "why"),
    [
        (_sleep, "more than 5 s"), (_eat, "MiB more"), (_crash, "ended by signal 11"),
        (_raise, "KeyError: 'not documented'"),
    ],
    ids=["hang", "memory", "crash", "error"],
)  # fmt: skip
def test_what_it_looks_for_is_found(read: object, why: str, tmp_path: Path, capfd: object) -> None:
    """A reader that fails is told with its input, which is saved."""
    broken = Reader("broken", lambda data: data[:3] == b"end" or read(data), [b"end"])  # type: ignore[operator]
    result = fuzz.run(broken, 8 if read is _sleep else 1, "test")
    assert why in result.failures[0][0]
    assert fuzz.report([result], tmp_path) == 1
    assert (tmp_path / "broken-0").read_bytes() == result.failures[0][1]
