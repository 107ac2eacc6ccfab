"""`doctor` on real runtimes: what only a real start finds, and no fault where there is none."""

from __future__ import annotations

import re
import signal
import time

import pytest

from tests.conformance import checks
from tests.conformance.private_node import PrivateNode
from tests.conformance.shapes import BY_NAME
from tests.conformance.test_dormant import DORMANT, root_of, text
from tests.conformance.trees import touched
from tests.tools.runtimes import Runtime

pytestmark = pytest.mark.real

_EVERY = ("1.6", "1.7", "2.1")


def head(node: PrivateNode, *options: str) -> str:
    """The first three lines on one line; nothing was touched."""
    before = node.whole()
    done = node.agent("doctor", *options)
    assert done.stderr == "", checks.said(done)
    assert touched(before, node.whole()) == []
    return re.sub(r"\s+", " ", " ".join(done.stdout.splitlines()[:3]))


@pytest.mark.parametrize("generation", _EVERY)
def test_file_that_waits_for_a_restart_to_end_the_runtime(
    generation: str, runtime: Runtime
) -> None:
    """containerd#5306: before the restart, and after it."""
    with PrivateNode(runtime, BY_NAME["kubeadm-v2"]) as node:
        root, mirrors = root_of(node), DORMANT["mirrors"]
        root.write_text(text(node))
        node.restart()
        time.sleep(3)  # a file counts as newer only if it is 0.1 s younger than the process
        root.write_text(text(node, mirrors.keys, mirrors.tables))
        said = head(node)
        assert said.startswith("fault: the runtime would not come back from a restart")
        assert "mirrors" in said

        starts = node.supervisor.starts
        node.supervisor.send(signal.SIGTERM)
        assert node.supervisor.wait_until(lambda s: s.starts > starts)
        node.wait(3.0)
        said = head(node)
        assert said.startswith("fault: the runtime does not start on its files")
        assert "mirrors" in said


@pytest.mark.parametrize(
    ("name", "generation"),
    [(name, found.generations[-1]) for name, found in DORMANT.items() if name != "mirrors"],
)
def test_value_that_a_start_turns_down_is_named(
    name: str, generation: str, runtime: Runtime
) -> None:
    """containerd#4574: the dump accepts it, and the runtime still runs on what was before."""
    with PrivateNode(runtime, BY_NAME["kubeadm-v2"]) as node:
        root_of(node).write_text(text(node))
        node.restart()
        time.sleep(3)  # a file counts as newer only if it is 0.1 s younger than the process
        root_of(node).write_text(text(node, DORMANT[name].keys, DORMANT[name].tables))
        said = head(node)
        assert said.startswith("fault: the runtime would not come back from a restart")
        assert root_of(node).name in said


@pytest.mark.parametrize("generation", _EVERY)
def test_node_that_was_configured_has_no_fault(generation: str, runtime: Runtime) -> None:
    """By this agent, of every generation; nothing that is no finding of a human's is one here."""
    with PrivateNode(runtime, BY_NAME["kubeadm-v2"]) as node:
        checks.done(node.agent("apply"))
        done = node.agent("doctor")
        assert "fault:" not in done.stdout, checks.said(done)
