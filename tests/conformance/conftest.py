"""The real runtime of a test."""

from __future__ import annotations

import pytest

from tests.conformance.table import CELL
from tests.tools.runtimes import Runtime

# A failed check in there shows its values, as one in a test does.
pytest.register_assert_rewrite("tests.conformance.checks")


@pytest.fixture
def runtime(request: pytest.FixtureRequest, generation: str, runtime: Runtime) -> Runtime:
    """The containerd of the test's parameter `generation`, noted for the table of the matrix."""
    shape = request.node.callspec.params.get("shape")
    if shape is not None:
        request.node.user_properties.append((CELL, (shape.name, generation)))
    return runtime
