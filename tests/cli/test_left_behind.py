"""Specs, hooks and toolkits of earlier options do not stay behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.cli_node import shows
from tests.cli.crio import make
from tests.cli.test_refusals import WholeNode, pytestmark
from tests.conformance import checks
from tests.conformance.trees import contents
from tests.doubles.containerd.sample import SECTIONS

__all__ = ["pytestmark"]

MANAGEMENT = "management.nvidia.com-gpu.yaml"


@pytest.fixture
def node(place: Path) -> Iterator[WholeNode]:
    with WholeNode(place) as found:
        checks.done(found.agent("apply"))
        assert [path.name for path in found.cdi.iterdir()] == [MANAGEMENT]
        yield found


@pytest.mark.parametrize("option", ["--cdi-enabled=false", "--cdi-output-dir="])
def test_specs_go_where_none_are_asked_for(node: WholeNode, option: str) -> None:
    """A plan shows it, an apply does it after the proof, and status lists none."""
    theirs = node.cdi / "theirs.yaml"
    theirs.write_bytes((node.cdi / MANAGEMENT).read_bytes())
    plan = shows(node.agent("plan", "-o", "json", option), "Plan", 1)
    assert (str(node.cdi / MANAGEMENT), "remove") in [
        (item["path"], item["action"]) for item in plan["changes"]
    ]
    assert (node.cdi / MANAGEMENT).exists()
    data = shows(node.agent("apply", "-o", "json", option), "Outcome")
    assert str(node.cdi / MANAGEMENT) in data["changed"]
    assert list(node.cdi.iterdir()) == [theirs], "a copy under another name is somebody else's"
    assert "Nothing to do" in node.agent("apply", option).stdout
    assert json.loads(node.agent("status", "-o", "json", option).stdout)["specs"] == []


def test_specs_stay_while_the_change_is_not_proven(node: WholeNode) -> None:
    """The old state needs them: it is back with all of them."""
    before = contents(node.everything())
    node.script(die_when={"default": "nvidia"})
    result = node.agent("apply", "--cdi-enabled=false", "--proof-timeout=1")
    assert result.returncode == 5, checks.said(result)
    assert (node.cdi / MANAGEMENT).exists()
    found = contents(node.everything())
    assert {n: e for n, e in found.items() if "/cdi" in n} == {
        n: e for n, e in before.items() if "/cdi" in n
    }


def test_spec_of_the_kind_before_goes(node: WholeNode) -> None:
    """Another --cdi-kind: the file of the old one goes."""
    checks.done(node.agent("apply", "--cdi-kind=management.example.com/gpu"))
    assert [path.name for path in node.cdi.iterdir()] == ["management.example.com-gpu.yaml"]


def test_status_lists_no_spec_before_one_is_written(place: Path) -> None:
    """Status lists what is, not what would be."""
    with WholeNode(place) as node:
        (spec,) = (
            item
            for item in json.loads(node.agent("status", "-o", "json").stdout)["specs"]
            if item["kind"] == "management.nvidia.com/gpu"
        )
        assert spec["file"] is None
        assert spec["writer"] is None
        checks.done(node.agent("apply"))
        (spec, *_) = json.loads(node.agent("status", "-o", "json").stdout)["specs"]
        assert spec["file"] == str(node.cdi / MANAGEMENT)


def test_old_directory_goes_when_the_toolkit_moves(node: WholeNode) -> None:
    """The old directory goes with what nothing needs any more, and what was made for it."""
    elsewhere = f"--toolkit-install-dir={node.directory}/elsewhere"
    plan = node.agent("plan", elsewhere)
    assert f"the toolkit in {node.toolkit} is removed" in plan.stdout
    checks.done(node.agent("apply", elsewhere))
    assert not node.toolkit.exists()
    assert (node.directory / "elsewhere/toolkit/nvidia-container-runtime").exists()
    assert "Nothing to do" in node.agent("apply", elsewhere).stdout
    assert "moved" not in node.agent("status", elsewhere).stdout
    checks.done(node.agent("revert --toolkit", elsewhere))
    assert not (node.directory / "elsewhere").exists()


def test_old_directory_stays_while_a_pod_runs_by_it(node: WholeNode) -> None:
    """It stays while a pod runs by it, status says so, and the next apply takes it away."""
    program = str(node.toolkit / "nvidia-container-runtime")
    pod = {
        "name": "train-0", "namespace": "ml", "handler": "nvidia",
        "binary": program,
    }  # fmt: skip
    node.script(pods=[pod])
    elsewhere = f"--toolkit-install-dir={node.directory}/elsewhere"
    for command in ("apply", "apply"):
        result = node.agent(command, elsewhere)
        checks.done(result)
        assert f"the toolkit in {node.toolkit} is left" in result.stdout
        assert "ml/train-0" in result.stdout
        assert node.toolkit.exists()
    warnings = json.loads(node.agent("status", "-o", "json", elsewhere).stdout)["warnings"]
    assert any("ml/train-0" in text for text in warnings)
    node.script()
    checks.done(node.agent("apply", elsewhere))
    assert not node.toolkit.exists()


def test_crio_hook_goes_when_handlers_are_asked_for(place: Path) -> None:
    """Row 2 to row 8 and back: the hook, and then the drop-in, go."""
    with make(place) as node:
        checks.done(node.agent("apply"))
        drop_in = node.drop_in
        assert drop_in.exists()
        shutil.copy(drop_in, place / "kept")
        checks.done(node.agent("apply", "--cdi-enabled=false"))
        assert not drop_in.exists()
        checks.done(node.agent("apply"))
        assert drop_in.read_bytes() == (place / "kept").read_bytes()


def test_drop_in_without_its_import_is_named_by_status(node: WholeNode) -> None:
    """It wrote the root file anew, and with it our import: status names the file of ours."""

    def now() -> dict[str, str]:
        data = json.loads(node.agent("status", "-o", "json").stdout)
        return {item["path"]: item["now"] for item in data["files"]}

    assert set(now().values()) == {"as written"}
    lines = node.config.read_text().splitlines(keepends=True)
    node.config.write_text("".join(line for line in lines if not line.startswith("imports")))
    found = now()
    assert found[str(node.drop_in)] == "as written, and the runtime does not load it"
    assert not any("not load" in text for path, text in found.items() if path != str(node.drop_in))


def _take_over(node: WholeNode, original: str, *, apart: bool) -> None:
    """What another toolkit's installer does: programs of its own, and a handler that runs them, in
    a file of its own (`apart`) or in the root file, which it writes anew."""
    program = node.directory / "other/toolkit/nvidia-container-runtime"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    version = 2 if "version = 2" in original else 3
    above = f"{SECTIONS[version]}.containerd.runtimes.nvidia"
    text = (
        f'[{above}]\nruntime_type = "io.containerd.runc.v2"\n'
        f'[{above}.options]\nBinaryName = "{program}"\n'
    )
    if apart:
        theirs = node.config.parent / "theirs.toml"
        theirs.write_text(f"version = {version}\n{text}")
        node.config.write_text(f'imports = ["{theirs}"]\n{original}')
    else:
        node.config.write_text(original + text)


def _left_over(node: WholeNode) -> list[dict[str, str]]:
    found = json.loads(node.agent("status", "-o", "json").stdout)["leftOver"]
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(
    ("version", "apart"), [("2.1.9", True), ("2.1.9", False), ("1.7.24", False)]
)
def test_specs_and_programs_beside_another_toolkit_are_named_by_status(
    version: str, apart: bool, place: Path
) -> None:
    """Status names them, with what removes them: a revert, which leaves the other toolkit's handler
    as it is, also in a file that we edited before."""
    with WholeNode(place, version) as node:
        original = node.config.read_text()
        assert _left_over(node) == []
        checks.done(node.agent("apply"))
        assert _left_over(node) == []
        _take_over(node, original, apart=apart)
        found = _left_over(node)
        assert [(item["path"], item["what"]) for item in found] == [
            (str(node.cdi / MANAGEMENT), "CDI spec"),
            (str(node.toolkit), "toolkit"),
        ]
        table = node.agent("status").stdout
        assert all(item["path"] in table and item["remedy"] in table for item in found)
        (remedy,) = {item["remedy"] for item in found}
        program, _, command = remedy.partition(" ")
        assert program == "toolkit-agent"
        before = node.config.read_bytes()
        checks.done(node.agent(command))
        assert _left_over(node) == []
        assert list(node.cdi.iterdir()) == []
        assert not node.toolkit.exists()
        assert node.config.read_bytes() == before


def test_nothing_is_left_over_where_only_a_file_is_gone(node: WholeNode) -> None:
    """A node to be repaired is no other toolkit's."""
    node.drop_in.unlink()
    assert _left_over(node) == []
