"""`revert --toolkit`: what was installed goes, what is somebody else's stays or comes back.

Nothing goes that anybody still needs.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.installing import (
    BEFORE,
    FOREIGN,
    RUNTIME,
    SourceNode,
    beside,
    installed,
    put_foreign,
)
from tests.cli.node import Refusal, fails, refuses, shows
from tests.conformance import checks
from tests.conformance.trees import contents, snapshot, touched
from tests.crio.node import CrioNode
from tests.double.sample import SECTIONS, handler
from tests.toolkit.source import make_tree

REVERT = "revert --toolkit"


@pytest.fixture
def node(place: Path) -> Iterator[SourceNode]:
    """A node without a toolkit, on which nothing was applied yet."""
    with SourceNode(place) as node:
        yield node


def reverted(node: SourceNode, *options: str) -> list[str]:
    """What a revert with the toolkit changed."""
    found = shows(node.agent(REVERT, *options, "-o", "json"), "Reverted")
    changed: list[str] = found["changed"]
    return changed


def test_nothing_is_left(node: SourceNode) -> None:
    """Also the directory above, which was made for it; a second time there is nothing to do."""
    before = contents(node.tree())
    checks.done(node.agent("apply"))
    assert beside(node.toolkit) == ["toolkit"]
    assert str(node.toolkit) in reverted(node)
    assert not node.toolkit.parent.exists()
    assert contents(node.tree()) == before
    assert node.ready() is None
    assert reverted(node) == []
    shows(node.agent("plan", "-o", "json"), "Plan", 1)
    checks.done(node.agent("status"), 1)


def test_without_the_option_it_stays(node: SourceNode) -> None:
    """The toolkit does no harm, and the next apply finds it."""
    checks.done(node.agent("apply"))
    before = snapshot(node.toolkit)
    found = shows(node.agent("revert", "-o", "json"), "Reverted")
    assert str(node.toolkit) not in found["changed"]
    assert touched(before, snapshot(node.toolkit)) == []
    checks.done(node.agent("apply"))
    assert touched(before, snapshot(node.toolkit)) == []
    node.source = None
    checks.done(node.agent("revert"))
    assert reverted(node) == [str(node.toolkit)]
    assert not node.toolkit.parent.exists()
    fails(node.agent("plan"), 3, "cannot find the NVIDIA container toolkit")


def test_somebody_else_s_directory_comes_back(node: SourceNode) -> None:
    """As it was, also after an upgrade of ours."""
    put_foreign(node.toolkit)
    theirs, traces = installed(node.toolkit), snapshot(node.toolkit)
    checks.done(node.agent("apply"))
    assert beside(node.toolkit) == [BEFORE, "toolkit"]
    assert (node.toolkit / "notes/a.txt").read_text() == FOREIGN["notes/a.txt"]
    assert node.source
    make_tree(node.source, "1.20.0")
    checks.done(node.agent("apply"))
    assert beside(node.toolkit) == [BEFORE, "toolkit"]
    assert contents(snapshot(node.toolkit.parent / BEFORE)) == theirs
    reverted(node)
    assert installed(node.toolkit) == theirs
    assert snapshot(node.toolkit)[RUNTIME].traces[:2] == traces[RUNTIME].traces[:2]
    assert beside(node.toolkit) == ["toolkit"]


def test_what_others_did_since_stays(node: SourceNode) -> None:
    """A file that they put there, and one of theirs that they changed."""
    put_foreign(node.toolkit)
    checks.done(node.agent("apply"))
    (node.toolkit / "mine").write_text("mine")
    (node.toolkit / "notes/b.txt").write_text("another note")
    note = node.toolkit / "notes/a.txt"
    note.with_name("new").write_text("changed")
    note.with_name("new").replace(note)
    assert node.source
    make_tree(node.source, "1.20.0")
    checks.done(node.agent("apply"))
    assert (node.toolkit / "mine").read_text() == "mine"
    reverted(node)
    found = {name: (node.toolkit / name).read_text() for name in ("mine", *FOREIGN)}
    assert found == {**FOREIGN, "notes/a.txt": "changed", "mine": "mine"}
    assert (node.toolkit / "notes/b.txt").read_text() == "another note"
    assert beside(node.toolkit) == ["toolkit"]


def test_files_among_ours_stay(node: SourceNode) -> None:
    """Then the directory stays with them, and no other."""
    checks.done(node.agent("apply"))
    (node.toolkit / "mine").write_text("mine")
    reverted(node)
    assert [path.name for path in node.toolkit.iterdir()] == ["mine"]


@pytest.mark.parametrize("version", ["1.7.24", "2.1.9"])
def test_configuration_that_needs_it(place: Path, version: str) -> None:
    """A handler of before that runs a program of the directory would lead nowhere."""
    section = SECTIONS[2 if version.startswith("1") else 3]
    program = place / f"nvidia/toolkit/{RUNTIME}"
    text = handler("nvidia", section).replace("/opt/nvidia", str(program))
    with SourceNode(place, version, handler("runc", section) + text) as node:
        checks.done(node.agent("apply"))
        before = snapshot(node.toolkit)
        says = f"handler nvidia of the restored configuration runs {program}"
        refuses(node, Refusal(3, says), commands=(REVERT, REVERT))
        assert touched(before, snapshot(node.toolkit)) == []
        checks.done(node.agent("status"))
        checks.done(node.agent("revert"))
        refuses(node, Refusal(3, says), commands=(REVERT,))


def test_configuration_that_needs_what_comes_back(place: Path) -> None:
    """It may name a program of the directory of before."""
    section = SECTIONS[3]
    text = handler("nvidia", section).replace("/opt/nvidia", f"{place}/nvidia/toolkit/{RUNTIME}")
    with SourceNode(place, "2.1.9", handler("runc", section) + text) as node:
        put_foreign(node.toolkit)
        before, theirs = contents(node.tree()), installed(node.toolkit)
        checks.done(node.agent("apply"))
        reverted(node)
        assert contents(node.tree()) == before
        assert installed(node.toolkit) == theirs


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_spec_that_names_a_hook(place: Path, suffix: str) -> None:
    """Somebody else's, such as the device plugin's."""
    section = SECTIONS[3]
    cdi = place / "cdi"
    cdi.mkdir()
    text = f'[{section}]\ncdi_spec_dirs = ["{cdi}"]\n{handler("runc", section)}'
    with SourceNode(place, "2.1.9", text) as node:
        checks.done(node.agent("apply"))
        hook = {"hookName": "createContainer", "path": str(node.toolkit / "nvidia-cdi-hook")}
        spec = cdi / f"k8s.device-plugin.nvidia.com-gpu.{suffix}"
        data = {"cdiVersion": "0.5.0", "kind": "k8s.device-plugin.nvidia.com/gpu"}
        devices = [{"name": "0", "containerEdits": {"hooks": [hook]}}]
        spec.write_text(json.dumps({**data, "devices": devices}))  # which is YAML too
        before = snapshot(node.toolkit)
        refuses(node, Refusal(3, str(spec)), commands=(REVERT, REVERT))
        assert touched(before, snapshot(node.toolkit)) == []
        spec.unlink()
        reverted(node)
        assert not node.toolkit.exists()


def test_pods_that_run_by_it(node: SourceNode) -> None:
    """Whatever their handler is called now; what a pod only talks about does not matter."""
    checks.done(node.agent("apply"))
    program = str(node.toolkit / RUNTIME)
    pods = [
        {"name": "web", "namespace": "shop", "annotations": {"note": f"see {program}"}},
        {"name": "old", "handler": "runc", "binary": f"{node.toolkit}-old/{RUNTIME}"},
        {"name": "train-0", "namespace": "ml", "binary": program},
    ]
    node.script(pods=pods)
    before = snapshot(node.toolkit)
    refuses(node, Refusal(3, "ml/train-0 (default)"), commands=(REVERT, REVERT))
    assert "shop/web" not in node.agent(REVERT).stderr
    assert touched(before, snapshot(node.toolkit)) == []
    checks.done(node.agent("revert"))
    refuses(node, Refusal(3, "ml/train-0 (default)"), commands=(REVERT,))
    node.script(pods=pods[:2])
    assert reverted(node) == [str(node.toolkit)]


def test_runtime_that_does_not_answer(node: SourceNode) -> None:
    """Nobody knows then who runs by it."""
    checks.done(node.agent("apply"))
    before = snapshot(node.toolkit)
    node.script(unimplemented=True)
    fails(node.agent(REVERT), 4, str(node.socket))
    assert touched(before, snapshot(node.toolkit)) == []


@contextmanager
def monitor(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is called as CRI-O's monitors are."""
    with subprocess.Popen(["conmon", "-c", "read x", *words], executable="/bin/sh",
                          stdin=subprocess.PIPE) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def test_containers_of_crio(place: Path) -> None:
    """Their monitors call the program when a container ends."""
    with CrioNode(place) as node:
        checks.done(node.agent("apply"))
        before = snapshot(node.toolkit)
        number = node.run_pod("train-0", "nvidia")
        fails(node.agent(REVERT), 3, "default/train-0 (nvidia)")
        node.remove_pod(number)
        with (
            monitor("-r", f"{node.toolkit}-old/{RUNTIME}"),
            monitor("-b", "/run/x", "-r", str(node.toolkit / RUNTIME)) as process,
        ):
            fails(node.agent(REVERT), 3, f"pid {process.pid}")
            assert touched(before, snapshot(node.toolkit)) == []
            assert "nvidia" in node.answer().runtimes
        found = shows(node.agent(REVERT, "-o", "json"), "Reverted")
        assert str(node.toolkit) in found["changed"]
        assert not node.drop_in.exists()
        assert BEFORE not in os.listdir(node.toolkit.parent)
