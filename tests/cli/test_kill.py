"""A command that is killed before any of its steps leaves a node that the next command repairs."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.cli.interrupted import CASES, Case, PlainNode, cases, some_of
from tests.conformance import checks, steps

pytestmark = pytest.mark.timeout(600)


@cases()
def test_next_command_repairs_a_command_killed_at_any_step(
    kind: type[PlainNode], command: str, place: Path
) -> None:
    """The next `apply` makes the node right, `revert` then puts it back, and nothing is left."""
    with kind(place) as node:
        case = Case(node)
        for k in points(case, command):
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


@pytest.mark.parametrize("name", ["upgrade", "take-over", "revert-toolkit"])
def test_toolkit_killed_around_the_exchange_is_old_or_new(name: str, place: Path) -> None:
    """Before it the toolkit is the old one, right after it the new one."""
    kind, command = CASES[name]
    with kind(place) as node:
        case = Case(node)
        log = case.count(command)
        at = next(k for k, step in enumerate(log, 1) if step.startswith("exchange "))
        end = case.new_toolkit if command == "apply" else case.old_toolkit
        for k, wanted in ((at, None), (at + 1, end)):
            case.prepare(command)
            killed = node.in_steps(command, str(k))
            assert killed.returncode == -signal.SIGKILL, checks.said(killed)
            assert node.installed() == (case.start_toolkit if wanted is None else wanted)
            case.is_old_or_new()
            case.give_up() if k == at else case.recover()


def points(case: Case, command: str) -> list[int]:
    """The steps to try."""
    case.count(command)
    found = steps.seen(case.node.log)
    assert len(found) > 10
    return some_of(found, f"kill {type(case.node).__name__} {command}")
