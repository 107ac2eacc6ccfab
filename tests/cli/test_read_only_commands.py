"""No command but those that say so changes anything on a node, whatever it prints, and in any state
of the node.

The commands are taken from the program itself: a new one is here without a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from agent import cli
from tests.cli import crio
from tests.cli.cli_node import CliNode
from tests.cli.gpu_host import GpuHost
from tests.cli.hosted import HostedNode
from tests.conformance import checks
from tests.conformance.program import AgentNode
from tests.conformance.trees import Tree, snapshot, touched
from tests.doubles.crio.crio_node import CrioNode
from tests.doubles.nvml.nvml import FakeGpu
from tests.unit.support.gpu_node import MARKS

_WRITERS = {"apply", "run", "revert"}
_WORDS = {"wait": ["--timeout=0.2"], "completion": ["bash"]}  # what a command needs to run at all


def leaves(group: click.Group, *above: str) -> Iterator[tuple[str, click.Command]]:
    """The commands of a group, with those of groups in it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, *above, name)
        else:
            yield " ".join((*above, name)), command


def _forms(command: click.Command) -> list[str]:
    """What `-o` may be told."""
    for parameter in command.params:
        if "-o" in parameter.opts and isinstance(parameter.type, click.Choice):
            return [f"--output={form}" for form in parameter.type.choices]
    return []


READERS = {
    name: [[], *([form] for form in _forms(command))]
    for name, command in leaves(cli.cli)
    if name not in _WRITERS and not command.hidden
}

Node = CliNode | CrioNode
Prepare = Callable[[Node], None]


def _new(_: Node) -> None:
    pass


def _applied(node: Node) -> None:
    checks.done(node.agent("apply"))


def _awaiting(node: Node) -> None:
    checks.done(node.agent("apply", "--restart-mode=none"))


def _drifted(node: Node) -> None:
    _applied(node)
    (node.drop_in if node.drop_in.exists() else node.config).write_text("# somebody's\n")


def _broken(node: Node) -> None:
    node.config.write_text("[broken\n")


def _down(node: Node) -> None:
    _applied(node)
    node.__exit__()


STATES: dict[str, Prepare] = {
    "new": _new,
    "applied": _applied,
    "awaiting a restart": _awaiting,
    "drifted": _drifted,
    "broken": _broken,
    "down": _down,
}
NODES: dict[str, Callable[[Path], Node]] = {
    "containerd 2.1": HostedNode,
    "containerd 1.7": lambda place: HostedNode(place, "1.7.24"),
    "CRI-O": crio.make,
}


# Each state on one kind of node, and the states in which kinds differ on the others.
CELLS = [
    *(("containerd 2.1", state) for state in STATES),
    *(("containerd 1.7", state) for state in ("applied", "awaiting a restart")),
    *(("CRI-O", state) for state in ("new", "applied", "broken")),
]


def _tree(node: AgentNode) -> Tree:
    """The whole node with its state, but for logs of the doubles."""
    own = {"supervisor.log", "systemctl.log", "."}
    return {path: one for path, one in snapshot(node.directory).items() if path not in own}


def changes_nothing(node: AgentNode) -> None:
    """Every command that reads, in every form."""
    before = _tree(node)
    for name, forms in READERS.items():
        for words in forms:
            done = node.agent(name, *_WORDS.get(name, ()), *words)
            assert done.returncode in (0, 1, 3, 4), checks.said(done)
            assert "Traceback" not in done.stderr
            assert touched(before, _tree(node)) == [], f"{name} {words}"


@pytest.mark.parametrize(("kind", "state"), CELLS)
def test_command_that_reads_writes_nothing(place: Path, kind: str, state: str) -> None:
    """No file, no time of a file, no lock, no directory."""
    with NODES[kind](place) as node:
        STATES[state](node)
        changes_nothing(node)


@pytest.mark.parametrize("state", [pytest.param(name, marks=MARKS) for name in ("new", "applied")])
def test_command_that_reads_makes_no_device_and_no_spec(place: Path, state: str) -> None:
    """On a node with GPUs, whose specs, device nodes and toolkit `apply` makes."""
    with GpuHost(place, FakeGpu(0)) as node:
        (node.host / "dev/nvidiactl").unlink()
        STATES[state](node)
        changes_nothing(node)


def test_only_these_commands_write() -> None:
    """A command of another name is looked at here, or says here that it writes."""
    assert {name for name, _ in leaves(cli.cli)} >= _WRITERS
    assert {"plan", "status", "doctor", "wait", "config", "cdi list"} <= READERS.keys()
