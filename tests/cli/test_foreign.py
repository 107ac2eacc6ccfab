"""A foreign CDI spec that would kill containerd at its start stops a restart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode, Refusal, fails, refuses, shows
from tests.cli.daemon import running
from tests.conformance import checks
from tests.conformance.foreign_specs import spec
from tests.conformance.trees import contents
from tests.doubles.containerd.sample import SECTIONS, handler

Nodes = Callable[[str, str], CliNode]


@pytest.fixture
def nodes(place: Path) -> Iterator[Nodes]:
    """Makes a running node of a version whose `cdi` is the spec directory, with that setting."""
    made: list[CliNode] = []

    def make(version: str, setting: str) -> CliNode:
        section = SECTIONS[2 if version.startswith("1") else 3]
        dirs = json.dumps([str(place / "none"), str(place / "cdi")])
        text = f"[{section}]\ncdi_spec_dirs = {dirs}\n{setting}\n{handler('runc', section)}"
        (place / "cdi").mkdir()
        made.append(CliNode(place, version, text).__enter__())
        return made[0]

    yield make
    for node in made:
        node.__exit__(None, None, None)


def put(node: CliNode, kind: str, name: str = "site.yaml") -> Path:
    """Somebody's spec."""
    path = node.directory / "cdi" / name
    path.write_text(spec(kind))
    return path


off = pytest.mark.parametrize(
    ("version", "setting"), [("1.7.24", ""), ("2.1.9", "enable_cdi = false")]
)


@off
@pytest.mark.parametrize("kind", ["v/gpu", "site.example/x"])
def test_deadly_spec_refuses_a_restart(nodes: Nodes, version: str, setting: str, kind: str) -> None:
    """By name, with what to do, and with nothing touched; also where others would restart it."""
    node = nodes(version, setting)
    path = put(node, kind)
    refuses(node, Refusal(3, f"{path} has kind {kind}"), commands=("apply", "apply"))
    refuses(node, Refusal(3, str(path)), "--restart-mode=none", commands=("apply",))
    path.unlink()
    checks.done(node.agent("apply"))
    assert node.settled().cdi is True


@off
def test_deadly_spec_is_shown_by_plan_and_status(nodes: Nodes, version: str, setting: str) -> None:
    """In the plan with all the rest of it, and in the status."""
    node = nodes(version, setting)
    path = put(node, "v/gpu")
    plan = shows(node.agent("plan", "-o", "json"), "Plan", 1)
    assert plan["changes"]
    assert f"apply refuses: cannot restart containerd: {path}" in plan["warnings"][-1]
    assert f"\nRefused:   cannot restart containerd: {path}" in node.agent("plan").stdout
    status = shows(node.agent("status", "-o", "json"), "Status", 1)
    assert str(path) in status["problem"]
    assert str(path) in status["warnings"][-1]


@pytest.mark.parametrize(("version", "setting"), [("1.7.24", "enable_cdi = true"), ("2.1.9", "")])
def test_right_node_is_warned_of_its_next_restart(nodes: Nodes, version: str, setting: str) -> None:
    """This one has not looked yet; a real one looks as soon as the directory changes."""
    node = nodes(version, setting)
    checks.done(node.agent("apply"))
    path = put(node, "v/gpu")
    result = node.agent("plan")
    checks.done(result)
    assert f"{path} has kind v/gpu" in result.stdout
    assert "Refused:" not in result.stdout
    assert "Nothing to do" in node.agent("apply").stdout
    assert str(path) in node.agent("status").stdout

    ready, starts = node.ready(), node.supervisor.starts
    fails(node.agent("revert"), 3, str(path))
    assert (node.ready(), node.supervisor.starts) == (ready, starts)
    path.unlink()
    checks.done(node.agent("revert"))


@off
def test_deadly_spec_allows_a_revert_that_switches_cdi_off(
    nodes: Nodes, version: str, setting: str
) -> None:
    """The way out of CDI stays open."""
    node = nodes(version, setting)
    before = contents(node.tree())
    checks.done(node.agent("apply"))
    put(node, "v/gpu")
    checks.done(node.agent("revert"))
    assert contents(node.tree()) == before
    assert node.settled().cdi is False


@pytest.mark.parametrize(
    ("version", "option"),
    [
        ("1.6.20", "--debug"),
        ("1.7.24", "--enable-cdi-in-runtime=false"),
        ("1.7.24", "--cdi-enabled=false"),
    ],
)
def test_deadly_spec_is_ignored_where_cdi_stays_off(
    nodes: Nodes, version: str, option: str
) -> None:
    """CDI stays off, or is not known at all."""
    node = nodes(version, "")
    put(node, "v/gpu")
    checks.done(node.agent("apply", option))
    assert node.settled().default == "nvidia"


def test_run_goes_on_when_the_file_has_gone(nodes: Nodes) -> None:
    """At once, not at the next interval."""
    node = nodes("1.7.24", "")
    path = put(node, "v/gpu")
    with running(node) as daemon:
        daemon.until(lambda: str(path) in node.error().get("TOOLKIT_ERROR_REASON", ""))
        path.unlink()
        daemon.until((node.validations / "toolkit-ready").exists)
        assert node.settled().cdi is True
