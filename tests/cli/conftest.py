"""Nodes as fixtures, for the black box tests of the command line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

# A failed check in there shows its values, as one in a test does.
pytest.register_assert_rewrite("tests.cli.cli_node", "tests.cli.daemon", "tests.conformance.checks")

from tests.cli.cli_node import CliNode  # noqa: E402
from tests.cli.hosted import HostedNode  # noqa: E402 - after the line above
from tests.cli.installing import SourceNode  # noqa: E402
from tests.cli.namespace import Namespace  # noqa: E402


@pytest.fixture
def node(tmp_path: Path) -> Iterator[CliNode]:
    """A node with a runtime that answers, on which nothing was applied yet."""
    with CliNode(tmp_path) as node:
        yield node


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliNode]:
    """One running node for all tests after which it must be as before anyway."""
    with CliNode(tmp_path_factory.mktemp("shared")) as node:
        yield node


@pytest.fixture
def same_node(shared: CliNode) -> Iterator[CliNode]:
    """The shared node, its configuration put back after the test has broken it."""
    text = shared.config.read_bytes()
    yield shared
    shutil.rmtree(shared.etc)
    shared.etc.mkdir()
    shared.config.write_bytes(text)
    shutil.rmtree(shared.state, ignore_errors=True)


@pytest.fixture
def sourced(place: Path) -> Iterator[SourceNode]:
    """A node without a toolkit, for which there is a tree of packages."""
    with SourceNode(place) as node:
        yield node


@pytest.fixture
def empty_host(place: Path) -> Iterator[HostedNode]:
    """A node in a directory, without a toolkit."""
    with HostedNode(place) as node:
        shutil.rmtree(node.toolkit.parent)
        yield node


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A mount namespace of its own for the test."""
    found = Namespace()
    yield found
    found.close()
