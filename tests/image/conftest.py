"""The real runtime of a test, and the nodes that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.tools import runtimes
from tests.tools.lending import Lending
from tests.tools.runtimes import Runtime


@pytest.fixture
def runtime(generation: str) -> Runtime:
    """The containerd of the test's parameter `generation`; without one the test is skipped."""
    found = runtimes.load().find(generation)
    assert found is not None, runtimes.load().reason(generation)
    return found


@pytest.fixture(scope="module")
def shared() -> Iterator[Lending[Any]]:
    """The nodes of this module: to make one takes longer than most tests."""
    lending = Lending[Any]()
    yield lending
    lending.close()
