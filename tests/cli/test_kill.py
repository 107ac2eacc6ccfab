"""SIGKILL before each step of `apply`, of `revert` and of an undo, and of what `run` starts."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.cli.interrupted import Case, PlainNode, cases, of_part, parts
from tests.conformance import checks, steps

pytestmark = pytest.mark.timeout(600)


@parts
@cases()
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
    return of_part(found, part)
