"""What must hold of a node before, when it is right, and when it was put back."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.conformance import effective, statusfile
from tests.conformance.cri import Answer
from tests.conformance.shapes import BINARIES, HOOK, OURS, Row, Shape
from tests.conformance.trees import Tree, contents

RUNC = "io.containerd.runc.v2"


class Node(Protocol):
    """What is looked at: a node with a real runtime, or with rules of one."""

    shape: Shape
    toolkit: Path
    validations: Path

    @property
    def driver(self) -> Path | None:
        """The root of its driver and of its device nodes; None where it has none."""

    @property
    def socket(self) -> Path:
        """The CRI socket."""

    def status(self) -> Answer:
        """What the runtime answers now."""

    def dump(self) -> Mapping[str, Any]:
        """The effective configuration."""

    def tree(self) -> Tree:
        """Every file of the configuration."""

    def whole(self) -> Tree:
        """Every file that the program under test could write."""


@dataclass(frozen=True)
class Before:
    """A node as it was when its runtime first ran."""

    answer: Answer
    dump: Mapping[str, Any]
    etc: Tree
    whole: Tree


def observe(node: Node) -> Before:
    """Take everything down that is compared later."""
    return Before(node.status(), node.dump(), node.tree(), node.whole())


def shape_is_as_described(node: Node, row: Row, before: Before) -> None:
    """The files do to the real runtime what the table of shapes says of them."""
    shape, answer = node.shape, before.answer
    assert answer.ready
    assert tuple(sorted(answer.runtimes)) == tuple(sorted(shape.handlers))
    assert answer.default == shape.default
    assert answer.cdi == row.cdi_before
    for name in set(OURS) & set(shape.handlers):
        wanted = str(node.toolkit / BINARIES[name])
        assert wanted not in effective.binaries(answer.runtimes[name]), "already right"


def node_is_right(node: Node, row: Row, before: Before) -> None:
    """The runtime runs what the row says, everything else is what it was, and it is published."""
    answer = node.status()
    assert answer.ready
    _handlers_are_right(node, row, before, answer)
    assert answer.default == node.shape.default_after(row), "default runtime"
    assert answer.default in answer.runtimes
    assert answer.cdi == row.cdi_after, "enableCDI"
    assert answer.spec_dirs == before.answer.spec_dirs
    ours = node.shape.ours
    was, now = before.answer.config, answer.config
    same = effective.others_in_status(now, ours) == effective.others_in_status(was, ours)
    assert same, "other settings"
    was, now = before.dump, node.dump()
    same = effective.others_in_dump(now, ours) == effective.others_in_dump(was, ours)
    assert same, "other settings"
    _admins_text_is_kept(before.etc, node.tree())
    published(node, row, answer)


def _handlers_are_right(node: Node, row: Row, before: Before, answer: Answer) -> None:
    base = before.answer.runtimes[node.shape.base]
    options = effective.inherited(base, node.shape.strange)
    if node.shape.carried and not row.is_default:
        runc = answer.runtimes["runc"]
        assert runc["runtimeType"] == RUNC
        assert not effective.binaries(runc) - {""}, "binary of runc"
        assert effective.inherited(runc) == options
    present = set(answer.runtimes) & set(OURS)
    assert present >= set(node.shape.handlers_after)
    for name in node.shape.handlers_after:
        handler = answer.runtimes[name]
        wanted = {str(node.toolkit / BINARIES[name])}
        assert effective.binaries(handler) == wanted, f"binary of {name}"
        assert handler["runtimeType"] == RUNC, f"type of {name}"
        assert not handler.get("runtimeEngine")
        assert not handler.get("runtimeRoot")
        assert effective.inherited(handler) == options, f"inherited by {name}"
        passed, was = effective.passed_on(handler), effective.passed_on(base)
        if row.native:
            # Where the runtime injects by itself, passing its own annotations on injects twice.
            assert was <= passed <= was | {"nvidia.cdi.k8s.io/*"}, f"annotations of {name}"
        else:
            assert passed == was | set(row.annotations), f"annotations of {name}"


def _without_comma(line: str) -> str:
    """The last entry of a table over several lines gets a comma where another one follows."""
    return re.sub(r",(?=\s*(#.*)?$)", "", line)


def _text(content: bytes) -> str:
    """Bytes that are not UTF-8 included: they are somebody's, too."""
    return content.decode("utf-8", "surrogateescape")


def _admins_text_is_kept(before: Tree, after: Tree) -> None:
    for path, entry in before.items():
        assert path in after, f"{path} is gone"
        assert after[path].mode == entry.mode, f"mode of {path}"
        assert after[path].owner == entry.owner, f"owner of {path}"
        was, now = (_text(found.content) for found in (entry, after[path]))
        assert _within(effective.comments(was), effective.comments(now)), f"comments of {path}"
        lines = map(_without_comma, effective.foreign_lines(was))
        assert _within(lines, map(_without_comma, now.splitlines())), f"lines of {path}"


def _within(some: Iterable[str], others: Iterable[str]) -> bool:
    """Whether all of `some` are among `others`, in the same order."""
    rest = iter(others)
    return all(item in rest for item in some)


def published(node: Node, row: Row, answer: Answer) -> None:
    """Both status files are there, equal, and say what the row says."""
    ready, twin = (node.validations / name for name in (statusfile.READY, statusfile.TWIN))
    assert ready.read_bytes() == twin.read_bytes()
    assert not (node.validations / statusfile.ERROR).exists()
    for path in (ready, twin):
        assert path.stat().st_mode & 0o7777 == 0o644
    values = statusfile.parse(ready.read_text("ascii"))
    hook = node.toolkit / HOOK if HOOK in node.shape.binaries else None
    wanted = statusfile.expected(row, answer, node.socket, hook, node.driver)
    assert {key: values.get(key) for key in wanted} == wanted
    assert statusfile.in_order(values)
    assert abs(time.time() - int(values["TOOLKIT_TIMESTAMP"])) < 600
    assert re.fullmatch(r"sha256:[0-9a-f]{8,64}", values["TOOLKIT_CONFIG_HASH"])


def not_published(node: Node) -> None:
    """Nobody who waits for the node is told that it is ready."""
    for name in (statusfile.READY, statusfile.TWIN):
        assert not (node.validations / name).exists()


def node_is_as_before(node: Node, before: Before) -> None:
    """Every byte, mode and directory of the configuration is back, and the runtime runs on it."""
    assert contents(node.tree()) == contents(before.etc)
    assert node.status() == before.answer


def refused(result: subprocess.CompletedProcess[str], code: int, names: str) -> None:
    """It ended with that exit code and said why, in a line that starts with "cannot"."""
    assert result.returncode == code, said(result)
    assert re.search(rf"(?m)\bcannot\b.*{re.escape(names)}", result.stderr), said(result)


def foresees(result: subprocess.CompletedProcess[str], names: str) -> None:
    """It is a plan that shows the decision, and why `apply` would refuse."""
    assert result.returncode == 1, said(result)
    assert result.stdout.startswith("Cannot apply:"), said(result)
    assert "\nDecision:" in result.stdout, said(result)
    told = [line for line in result.stdout.splitlines() if line.startswith("Refused:")]
    assert any("cannot " in line and names in line for line in told), said(result)


def tells(command: str, result: subprocess.CompletedProcess[str], code: int, names: str) -> None:
    """The command is refused; a plan shows the refusal."""
    if command == "plan" and code == 3:
        foresees(result, names)
    else:
        refused(result, code, names)


def done(result: subprocess.CompletedProcess[str], code: int = 0) -> None:
    """It ended with that exit code."""
    assert result.returncode == code, said(result)


def said(result: subprocess.CompletedProcess[str]) -> str:
    """What a program printed, for a failed assertion."""
    return f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"
