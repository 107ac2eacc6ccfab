"""What is lent comes back as it was, or is thrown away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.tools.lending import Lending


def test_lent_thing_is_shared_until_a_test_leaves_something() -> None:
    """Made once, ended at the end; one that is not put back fails its test, and is lent no more."""
    made: list[list[str]] = []
    ended: list[list[str]] = []

    @contextmanager
    def make() -> Iterator[list[str]]:
        made.append([])
        yield made[-1]
        ended.append(made[-1])

    lending = Lending[list[str]]()
    with lending.lend("a", make, list) as first:
        first.append("left")
        first.pop()
    with (
        pytest.raises(AssertionError, match="did not put back"),
        lending.lend("a", make, list) as second,
    ):
        second.append("left")
    assert second is first
    assert ended == [first]
    with lending.lend("a", make, list) as third, lending.lend("b", make, list):
        assert third == []
    lending.close()
    assert len(made) == len(ended) == 3
