"""The real runtime of a test."""

from __future__ import annotations

import pytest

from tests.tools import runtimes
from tests.tools.runtimes import Runtime


@pytest.fixture
def runtime(generation: str) -> Runtime:
    """The containerd of the test's parameter `generation`; without one the test is skipped."""
    found = runtimes.load().find(generation)
    assert found is not None, runtimes.load().reason(generation)
    return found
