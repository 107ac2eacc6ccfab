"""A command whose k-th write fails, or every write from it on, is done, refused or undone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cli.interrupted import Case, PlainNode, cases, readable, some_of
from tests.conformance import checks, steps
from tests.conformance.trees import contents

_CODES = ("ENOSPC", "EDQUOT", "EIO", "EROFS", "EPERM")
_NO_ROOM = ("ENOSPC", "EDQUOT")

pytestmark = pytest.mark.timeout(600)

# Of the reverts, one kind does.
most = cases("revert-in-place")
# Where all fails from some step on, nothing new comes of how the toolkit was before.
fewer = cases("revert-in-place", "upgrade", "take-over", "revert-toolkit")


@most
def test_one_failing_step_is_done_refused_or_undone(
    kind: type[PlainNode], command: str, place: Path
) -> None:
    """Done, refused with nothing touched, or undone and proven; once it is over, all is as ever."""
    with kind(place) as node:
        case = Case(node)
        for k in points(case, command):
            fault = f"fail:{k}:{_CODES[k % len(_CODES)]}"
            case.prepare(command)
            result = node.in_steps(command, fault)
            try:
                ends_well(case, command, result)
                case.recover()
            except AssertionError as error:
                error.add_note(f"{fault}: {steps.read(node.log)[k - 1]}\n{checks.said(result)}")
                raise


@pytest.mark.parametrize("where", ["everywhere", "configuration"])
@fewer
def test_lasting_failure_is_reported_and_repaired_later(
    kind: type[PlainNode], command: str, where: str, place: Path
) -> None:
    """What cannot be undone is told (6), and undone or finished when the disk is well again. A full
    disk is in no undo's way."""
    with kind(place) as node:
        case = Case(node)
        near = str(node.etc) if where == "configuration" else ""
        disk = {"STEPS_DISK": near} if near else {}
        for k in points(case, command, near, more=4):
            code = _CODES[k % len(_CODES)]
            case.prepare(command)
            result = node.in_steps(command, f"since:{k}:{code}", env=disk)
            try:
                ends_well(case, command, result)
                assert result.returncode != 6 or code not in _NO_ROOM
                case.give_up() if k % 3 == 0 else case.recover()
            except AssertionError as error:
                step = f"since:{k}:{code} ({where}): {steps.read(node.log)[k - 1]}"
                error.add_note(f"{step}\n{checks.said(result)}")
                raise


def test_what_cannot_be_removed_is_removed_later(place: Path) -> None:
    """The node is right meanwhile, and nothing is undone or restarted because of it."""
    with PlainNode(place) as node:
        case = Case(node)
        case.prepare("apply")
        disk = {"STEPS_DISK": str(node.etc)}
        checks.done(node.in_steps("apply", "since:@memory.json:EROFS", env=disk))
        left = sorted(node.etc.rglob("*~"))
        assert left
        assert node.agent("status").returncode == 0
        starts = node.supervisor.starts
        checks.done(node.in_steps("apply", "since:1:EROFS", env=disk))
        assert sorted(node.etc.rglob("*~")) == left
        checks.done(node.agent("apply"))
        assert node.supervisor.starts == starts
        case.is_right()
        case.recover()


def points(case: Case, command: str, near: str = "", more: int = 8) -> list[int]:
    """The steps to try, `more` in a long run, each soon before one on that path."""
    log = case.count(command)
    steps_of_kind = range(1, len(log) + 1, case.node.every)
    assert len(steps_of_kind) > 10
    found = [k for k in steps_of_kind if any(near in step for step in log[k - 1 : k + 9])]
    return some_of(found, f"fault {type(case.node).__name__} {command}", more)


def ends_well(case: Case, command: str, result: subprocess.CompletedProcess[str]) -> None:
    """The exit code is the truth."""
    code = result.returncode
    assert "Traceback" not in result.stderr
    case.is_old_or_new()
    wanted = case.new if command == "apply" else case.old
    now, start, end = map(readable, (contents(case.node.tree()), case.start, wanted))
    if code == 0:
        assert now == end
        toolkit = case.new_toolkit if command == "apply" else case.old_toolkit
        assert case.node.installed() == toolkit
        assert case.runs_on_its_files()
        return
    assert [line for line in result.stderr.splitlines() if line.startswith("cannot ")]
    assert code in (3, 5, 6)
    if code == 3:
        # Nothing was touched; or all is done but for telling so, or for tidying up.
        assert now == start or (now == end and case.runs_on_its_files())
        assert now == start or "status file" in result.stderr or "remove" in result.stderr
    elif code == 5:
        assert now == start
        assert case.runs_on_its_files()
