"""SIGKILL before each step of `apply`, of `revert` and of an undo, and of what `run` starts."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cli.interrupted import Case, DyingNode, OldNode, PlainNode, SpecNode
from tests.conformance import checks, steps

_PARTS = 4  # the steps of a command are shared out among so many tests
_SOME = 3  # of them without --long

pytestmark = pytest.mark.timeout(600)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root: run as root")
CASES = [
    pytest.param(SpecNode, "apply", id="apply", marks=as_root),
    pytest.param(SpecNode, "revert", id="revert", marks=as_root),
    pytest.param(OldNode, "apply", id="apply-in-place"),
    pytest.param(OldNode, "revert", id="revert-in-place"),
    pytest.param(DyingNode, "apply", id="undo"),
]


@pytest.mark.parametrize(
    "part", ["some", *(pytest.param(number, marks=pytest.mark.long) for number in range(_PARTS))]
)
@pytest.mark.parametrize(("kind", "command"), CASES)
def test_killed(kind: type[PlainNode], command: str, part: int | str, place: Path) -> None:
    """The next `apply` makes the node right, `revert` then puts it back, and nothing is left."""
    with kind(place) as node:
        case = Case(node)
        for k in points(case, command, part):
            case.prepare(command)
            killed = node.in_steps(command, str(k))
            assert killed.returncode == -signal.SIGKILL, checks.said(killed)
            try:
                case.is_old_or_new()
                # Who gives up gets the old node as well.
                case.give_up() if k % 3 == 0 else case.recover()
            except AssertionError as error:
                error.add_note(f"killed before step {k}: {steps.read(node.log)[-1]}")
                raise


def points(case: Case, command: str, part: int | str) -> list[int]:
    """The steps of one part. Between a write and the next step that others see nothing happens
    that outlives the process, so that syncing is no step here."""
    found = [
        number
        for number, step in enumerate(case.count(command), 1)
        if not step.startswith("os.fsync")
    ]
    assert len(found) > 40
    return found[:: len(found) // _SOME] if isinstance(part, str) else found[part::_PARTS]
