"""Booted nodes as fixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.node.systemd_node", "tests.conformance.checks")

from tests.node.systemd_node import SystemdNode  # noqa: E402 - after the line above
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


@pytest.fixture(scope="module")
def booted() -> Iterator[dict[Path, SystemdNode]]:
    """The nodes that tests share, by the system that they boot."""
    nodes: dict[Path, SystemdNode] = {}
    yield nodes
    for node in nodes.values():
        node.stop()


@pytest.fixture
def boot(tools: NodeTools, booted: dict[Path, SystemdNode]) -> Iterator[Boot]:
    """Gives a node with some lines in containerd's unit; one that could not be put back is given to
    no other test."""
    used: set[Path] = set()
    with ExitStack() as stack:

        def lend(lines: str = "", tools: NodeTools = tools) -> SystemdNode:
            if tools.tree not in booted:
                booted[tools.tree] = SystemdNode(tools).start()
            node = booted[tools.tree]
            try:
                stack.enter_context(node.lent(lines))
            except BaseException:
                booted.pop(tools.tree).stop()
                raise
            used.add(tools.tree)
            return node

        yield lend
        try:
            stack.close()
        except BaseException:
            for tree in used:
                booted.pop(tree).stop()
            raise
