"""The nodes that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.tools.lending import Lending


@pytest.fixture(scope="module")
def shared() -> Iterator[Lending[Any]]:
    """The nodes of this module: to make one takes longer than most tests."""
    lending = Lending[Any]()
    yield lending
    lending.close()
