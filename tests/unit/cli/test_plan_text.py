"""A plan tells its verdict first, and fits a terminal of 80 columns."""

from __future__ import annotations

from dataclasses import replace

from agent.cdi.specs.own_specs import SpecProposal
from agent.cli.render import plan
from agent.cli.render.base import Screen
from agent.cri.client import Answer
from agent.decide import Evidence, Question, Switch, decide
from agent.errors import NoDriver, Refused
from agent.host.files import Change, new_state
from agent.host.paths import HostPath
from agent.plan.propose import Proposal
from agent.runtimes.base import Endpoint, Runtime
from agent.runtimes.restart import Restart

SCREEN = Screen(80)
SOCKET = HostPath("/run/containerd/containerd.sock", "/run/containerd/containerd.sock")
ANSWER = Answer("containerd", "2.1.9", True, None, ())
RUNTIME = Runtime(Endpoint("containerd", SOCKET, None), None, ANSWER)
EVIDENCE = Evidence("cri-status", Switch.TRUE, ("/etc/cdi", "/var/run/cdi"))
DECISION = decide(Question(version="2.1.9", evidence=(EVIDENCE,)))
RIGHT = Proposal(RUNTIME, None, DECISION, ())
SPEC = b'---\nkind: "a.b/gpu"\ndevices:\n  - name: "0"\n  - name: "all"\n'


def change(path: str, data: bytes) -> Change:
    """A file that comes."""
    return Change(HostPath(path, path), None, new_state(data))


WRONG = replace(
    RIGHT,
    repairs=(change("/etc/containerd/config.toml", b"version = 3\n"),),
    spec=SpecProposal((), (change("/run/cdi/a.yaml", SPEC),)),
    unproven=("handler nvidia is missing",),
    restart=Restart("systemd", "containerd.service", print, ("docker.service", "kubelet.service")),
)


def shown(proposal: Proposal, diffs: plan.Diffs = "config") -> list[str]:
    """The lines of a plan."""
    return plan.text(proposal, SCREEN, diffs).splitlines()


def test_decision_has_four_lines_below_the_verdict() -> None:
    """What a person looks for is on the first lines."""
    lines = shown(RIGHT)
    assert lines[0] == "Nothing to do: the node is configured as decided"
    assert [line.split(":")[0] for line in lines[2:]] == ["Runtime", "Decision", "Seen", "So"]
    assert all(len(line) <= 80 for line in lines)


def test_each_thing_that_would_happen_has_one_line() -> None:
    """In the order of an apply; what systemd restarts along is one of them."""
    lines = shown(WRONG)
    assert lines[0].startswith("Changes:   2 files, a restart of containerd")
    start = lines.index("create     /run/cdi/a.yaml (CDI spec, 2 devices)")
    assert lines[start + 1 : start + 5] == [
        "create     /etc/containerd/config.toml",
        "restart    containerd.service, by systemd, because handler nvidia is missing",
        "with it    docker.service, kubelet.service, by systemd",
        "",
    ]


def test_diffs_are_those_that_were_asked_for() -> None:
    """By default of the runtime's configuration alone: a spec has hundreds of lines."""
    spec, config = "+++ /run/cdi/a.yaml", "+version = 3"
    assert {spec, config} <= set(shown(WRONG, "all"))
    assert config in shown(WRONG)
    assert spec not in shown(WRONG)
    assert not any(line.startswith("+++") for line in shown(WRONG, "none"))


def test_all_refusals_are_listed_once_below_the_decision() -> None:
    """A person repairs them all at once, and reads none twice."""
    error, driver = Refused("cannot write /etc: read-only"), NoDriver("cannot find the driver")
    warnings = ("mind this", "mind this")
    refused = replace(
        RIGHT, blocked=error, spec=SpecProposal((), problem=driver), warnings=warnings
    )
    lines = shown(refused)
    assert lines[0].startswith("Cannot apply:")
    assert lines[6:8] == [
        "Refused:   cannot write /etc: read-only", "Refused:   cannot find the driver",
    ]  # fmt: skip
    assert [line for line in lines if "mind this" in line] == ["Warning:   mind this"]
    assert not refused.nothing_to_do
    data = plan.data(refused)
    assert data["refused"] == [error.message, driver.message]
    assert data["warnings"][2:] == [f"apply refuses: {text}" for text in data["refused"]]
