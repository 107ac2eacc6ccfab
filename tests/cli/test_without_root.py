"""Without root a command says what needs root, in words for a person who forgot sudo."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode, fails
from tests.conformance import checks
from tests.conformance.trees import touched
from tests.tools.nobody import as_nobody

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="another user: run tests/run as root")


@pytest.fixture
def node(place: Path) -> CliNode:
    """A node whose files others can read."""
    place.chmod(0o755)
    return CliNode(place)


@pytest.mark.parametrize("command", ["apply", "run", "revert"])
def test_change_is_refused_in_plain_words(node: CliNode, command: str) -> None:
    """Before anything else is wrong, with one line and no option to try."""
    with node:
        node.socket.chmod(0o660)
        before = node.tree()
        done = node.agent(command, prefix=as_nobody(node.directory))
        fails(done, 3, "only root can", "sudo")
        assert "--" not in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert touched(before, node.tree()) == []


def test_socket_of_root_is_not_called_down(node: CliNode) -> None:
    """The runtime is up, and this user may not ask it."""
    with node:
        node.socket.chmod(0o660)
        for command in ("plan", "apply --dry-run"):
            done = node.agent(command, prefix=as_nobody(node.directory))
            fails(done, 4, "permission denied; run as root")
            assert "is the runtime up" not in done.stderr
        doctor = node.agent("doctor", prefix=as_nobody(node.directory))
        assert "run doctor as root" in doctor.stdout, checks.said(doctor)
