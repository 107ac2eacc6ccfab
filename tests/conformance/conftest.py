"""The real runtime of a test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.table import CELL
from tests.tools import runtimes
from tests.tools.runtimes import Runtime

# A failed check in there shows its values, as one in a test does.
pytest.register_assert_rewrite("tests.conformance.checks")


@pytest.fixture
def runtime(request: pytest.FixtureRequest, generation: str) -> Runtime:
    """The containerd of the test's parameter `generation`; without one the test is skipped."""
    shape = request.node.callspec.params.get("shape")
    if shape is not None:
        request.node.user_properties.append((CELL, (shape.name, generation)))
    found = runtimes.load().find(generation)
    assert found is not None, runtimes.load().reason(generation)
    return found


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name: the address of a socket in it has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="node-") as name:
        yield Path(name)
