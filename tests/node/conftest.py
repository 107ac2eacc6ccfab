"""Booted nodes as fixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

pytest.register_assert_rewrite("tests.node.node", "tests.conformance.checks")

from tests.node.node import SystemdNode  # noqa: E402 - after the line above
from tests.tools.image_tools import Unavailable  # noqa: E402
from tests.tools.node_tools import NodeTools, node_tools  # noqa: E402


def _tools(generation: str) -> NodeTools:
    try:
        return node_tools(generation)
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tools() -> NodeTools:
    """The system with containerd 1.7."""
    return _tools("1.7")


@pytest.fixture(scope="session")
def new_tools() -> NodeTools:
    """The system with containerd 2.1."""
    return _tools("2.1")


Boot = Callable[..., SystemdNode]


@pytest.fixture
def boot(tools: NodeTools) -> Iterator[Boot]:
    """Boots a node with some lines in containerd's unit."""
    with ExitStack() as stack:
        yield lambda dropin="", tools=tools: stack.enter_context(SystemdNode(tools, dropin))
