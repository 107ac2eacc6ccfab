"""`revert --toolkit` removes what it installed, unless something on the node still needs it.

Nothing goes that anybody still needs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.cli_node import Refusal, fails, is_refused, refuses, shows
from tests.cli.installing import (
    BEFORE,
    FOREIGN,
    RUNTIME,
    SourceNode,
    beside,
    installed,
    put_foreign,
)
from tests.conformance import checks
from tests.conformance.trees import contents, snapshot, touched
from tests.doubles.containerd.sample import SECTIONS, handler
from tests.doubles.crio.crio_node import CrioNode
from tests.doubles.toolkit.source import make_tree

REVERT = "revert --toolkit"


def reverted(node: SourceNode, *options: str) -> list[str]:
    """What a revert with the toolkit changed."""
    found = shows(node.agent(REVERT, *options, "-o", "json"), "Reverted")
    changed: list[str] = found["changed"]
    return changed


def test_nothing_is_left(sourced: SourceNode) -> None:
    """Also the directory above, which was made for it; a second time there is nothing to do."""
    before = contents(sourced.tree())
    checks.done(sourced.agent("apply"))
    assert beside(sourced.toolkit) == ["toolkit"]
    assert str(sourced.toolkit) in reverted(sourced)
    assert not sourced.toolkit.parent.exists()
    assert contents(sourced.tree()) == before
    assert sourced.ready() is None
    assert reverted(sourced) == []
    shows(sourced.agent("plan", "-o", "json"), "Plan", 1)
    checks.done(sourced.agent("status"), 1)


def test_without_the_option_it_stays(sourced: SourceNode) -> None:
    """The toolkit does no harm, and the next apply finds it."""
    checks.done(sourced.agent("apply"))
    before = snapshot(sourced.toolkit)
    found = shows(sourced.agent("revert", "-o", "json"), "Reverted")
    assert str(sourced.toolkit) not in found["changed"]
    assert touched(before, snapshot(sourced.toolkit)) == []
    checks.done(sourced.agent("apply"))
    assert touched(before, snapshot(sourced.toolkit)) == []
    sourced.source = None
    checks.done(sourced.agent("revert"))
    assert reverted(sourced) == [str(sourced.toolkit)]
    assert not sourced.toolkit.parent.exists()
    is_refused("plan", sourced.agent("plan"), 3, "cannot find the NVIDIA container toolkit")


def test_somebody_else_s_directory_comes_back(sourced: SourceNode) -> None:
    """As it was, also after an upgrade of ours."""
    put_foreign(sourced.toolkit)
    theirs, traces = installed(sourced.toolkit), snapshot(sourced.toolkit)
    checks.done(sourced.agent("apply"))
    assert beside(sourced.toolkit) == [BEFORE, "toolkit"]
    assert (sourced.toolkit / "notes/a.txt").read_text() == FOREIGN["notes/a.txt"]
    assert sourced.source
    make_tree(sourced.source, "1.20.0")
    checks.done(sourced.agent("apply"))
    assert beside(sourced.toolkit) == [BEFORE, "toolkit"]
    assert contents(snapshot(sourced.toolkit.parent / BEFORE)) == theirs
    reverted(sourced)
    assert installed(sourced.toolkit) == theirs
    assert snapshot(sourced.toolkit)[RUNTIME].traces[:2] == traces[RUNTIME].traces[:2]
    assert beside(sourced.toolkit) == ["toolkit"]


def test_what_others_did_since_stays(sourced: SourceNode) -> None:
    """A file that they put there, and one of theirs that they changed."""
    put_foreign(sourced.toolkit)
    checks.done(sourced.agent("apply"))
    (sourced.toolkit / "mine").write_text("mine")
    (sourced.toolkit / "notes/b.txt").write_text("another note")
    note = sourced.toolkit / "notes/a.txt"
    note.with_name("new").write_text("changed")
    note.with_name("new").replace(note)
    assert sourced.source
    make_tree(sourced.source, "1.20.0")
    checks.done(sourced.agent("apply"))
    assert (sourced.toolkit / "mine").read_text() == "mine"
    reverted(sourced)
    found = {name: (sourced.toolkit / name).read_text() for name in ("mine", *FOREIGN)}
    assert found == {**FOREIGN, "notes/a.txt": "changed", "mine": "mine"}
    assert (sourced.toolkit / "notes/b.txt").read_text() == "another note"
    assert beside(sourced.toolkit) == ["toolkit"]


def test_files_among_ours_stay(sourced: SourceNode) -> None:
    """Then the directory stays with them, and no other."""
    checks.done(sourced.agent("apply"))
    (sourced.toolkit / "mine").write_text("mine")
    reverted(sourced)
    assert [path.name for path in sourced.toolkit.iterdir()] == ["mine"]


@pytest.mark.parametrize("version", ["1.7.24", "2.1.9"])
def test_revert_is_refused_while_the_configuration_runs_the_toolkit(
    place: Path, version: str
) -> None:
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


def test_configuration_may_name_a_program_that_comes_back(place: Path) -> None:
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
def test_revert_is_refused_while_a_foreign_spec_names_a_hook(place: Path, suffix: str) -> None:
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
        fails(node.agent(*REVERT.split()), 3, str(spec), "when no device plugin runs here")
        assert touched(before, snapshot(node.toolkit)) == []
        spec.unlink()
        reverted(node)
        assert not node.toolkit.exists()


@pytest.mark.parametrize("kind", ["pod", "spec", "handler"])
def test_revert_is_refused_while_a_link_leads_to_the_toolkit(kind: str, place: Path) -> None:
    """The operator's device plugin, or a pod of before, calls it as the option does."""
    section = SECTIONS[3]
    cdi, link = place / "cdi", place / "nvidia"
    cdi.mkdir()
    text = f'[{section}]\ncdi_spec_dirs = ["{cdi}"]\n{handler("runc", section)}'
    if kind == "handler":
        text += handler("site", section).replace("/opt/site", f"{link}/toolkit/{RUNTIME}")
    with SourceNode(place, "2.1.9", text) as node:
        (place / "disk").mkdir()
        link.symlink_to(place / "disk")
        checks.done(node.agent("apply"))
        if kind == "pod":
            program = str(link / "toolkit" / RUNTIME)
            node.script(pods=[{"name": "train-0", "namespace": "ml", "binary": program}])
        if kind == "spec":
            hook = {"hookName": "createContainer", "path": f"{link}/toolkit/nvidia-cdi-hook"}
            devices = [{"name": "0", "containerEdits": {"hooks": [hook]}}]
            data = {"cdiVersion": "0.5.0", "kind": "vendor.example/gpu", "devices": devices}
            (cdi / "vendor.json").write_text(json.dumps(data))
        names = {"pod": "ml/train-0", "spec": "vendor.json", "handler": "handler site"}
        refuses(node, Refusal(3, names[kind]), commands=(REVERT, REVERT))
        assert (link / "toolkit" / RUNTIME).exists()


def test_revert_is_refused_while_pods_run_by_the_toolkit(sourced: SourceNode) -> None:
    """Whatever their handler is called now; what a pod only talks about does not matter."""
    checks.done(sourced.agent("apply"))
    program = str(sourced.toolkit / RUNTIME)
    pods = [
        {"name": "web", "namespace": "shop", "annotations": {"note": f"see {program}"}},
        {"name": "old", "handler": "runc", "binary": f"{sourced.toolkit}-old/{RUNTIME}"},
        {"name": "train-0", "namespace": "ml", "binary": program},
    ]
    sourced.script(pods=pods)
    before = snapshot(sourced.toolkit)
    refuses(sourced, Refusal(3, "ml/train-0 (default)"), commands=(REVERT, REVERT))
    assert "shop/web" not in sourced.agent(REVERT).stderr
    assert touched(before, snapshot(sourced.toolkit)) == []
    checks.done(sourced.agent("revert"))
    refuses(sourced, Refusal(3, "ml/train-0 (default)"), commands=(REVERT,))
    sourced.script(pods=pods[:2])
    assert reverted(sourced) == [str(sourced.toolkit)]


def test_revert_is_refused_while_the_runtime_does_not_answer(sourced: SourceNode) -> None:
    """Nobody knows then who runs by it."""
    checks.done(sourced.agent("apply"))
    before = snapshot(sourced.toolkit)
    sourced.script(unimplemented=True)
    fails(sourced.agent(REVERT), 4, str(sourced.socket))
    assert touched(before, snapshot(sourced.toolkit)) == []


@contextmanager
def monitor(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is called as CRI-O's monitors are."""
    with subprocess.Popen(["conmon", "-c", "read x", *words], executable="/bin/sh",
                          stdin=subprocess.PIPE) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("kind", ["admin", "before"])
def test_revert_is_refused_while_a_crio_hook_runs_the_toolkit(kind: str, place: Path) -> None:
    """One that was there before, or an admin's: it is for containers that would not start."""
    with CrioNode(place) as node:
        shutil.rmtree(node.toolkit)
        source = f"--toolkit-source-root={make_tree(place / 'source')}"
        ours = node.hooks / "oci-nvidia-hook.json"
        theirs = ours if kind == "before" else node.hooks / "10-site.json"
        hook = {"path": str(node.toolkit / f"{RUNTIME}-hook")}
        theirs.write_text(json.dumps({"version": "1.0.0", "hook": hook, "stages": ["prestart"]}))
        checks.done(node.agent("apply", "--cdi-enabled=false", source))
        (node.hooks / "20-broken.json").write_text("[]")
        before = snapshot(node.toolkit)
        fails(node.agent(REVERT), 3, str(theirs), str(node.toolkit))
        assert touched(before, snapshot(node.toolkit)) == []
        assert ours.exists()
        checks.done(node.agent("revert"))
        assert ours.exists() == (kind == "before")
        theirs.unlink()
        found = shows(node.agent(REVERT, "-o", "json"), "Reverted")
        assert found["changed"] == [str(node.toolkit)]


def test_revert_is_refused_while_crio_containers_need_the_toolkit(place: Path) -> None:
    """Their monitors call the program when a container ends."""
    with CrioNode(place) as node:
        checks.done(node.agent("apply"))
        before = snapshot(node.toolkit)
        number = node.run_pod("train-0", "nvidia")
        fails(node.agent(REVERT), 3, "default/train-0 (nvidia)")
        main = "k8s_main_{}_default_6f1d2c9e-0d53-4d0e-9a55-2f6f6c1d0001_0"
        runs = ("-r", str(node.toolkit / RUNTIME))
        with monitor("-n", main.format("train-0"), *runs), monitor("-n", main.format("old"), *runs):
            result = node.agent(REVERT)
            fails(result, 3, "default/train-0 (nvidia)")
            assert result.stderr.count("train-0") == 1
        node.remove_pod(number)
        with monitor("-n", main.format("old"), *runs):
            fails(node.agent(REVERT), 3, "programs in", "default/old")
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
