"""Which pods undo a change: those that ran before it, and those of new handlers."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest

from agent.cri.client import Answer
from agent.host.paths import HostPath, HostRoot
from agent.log import Silent
from agent.runtimes.base import ConfiguredRuntime, Endpoint, Runtime
from agent.transaction.pod_proof import PodProof, PodsFail
from agent.verify import verify
from agent.verify.pods import Result, Verdict

NEITHER = "ran neither before the change nor now under"


@dataclass
class Runner:
    """Runs no pod, and says what is told."""

    results: dict[str, Result] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)
    seconds: float = 0.0
    pace: float = 0.1
    tidied: int = 0

    def prove(self, handler: str) -> list[Verdict]:
        """As the real one."""
        self.tried.append(handler)
        self.seconds += self.pace
        return [Verdict(self.results.get(handler, "ok"), "because")]

    def tidy(self) -> None:
        """Nothing is left."""
        self.tidied += 1


class Tried:
    """The proof of a change after which there are the handlers a and b; a is there already."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.opened = 0

    def __call__(self, runner: Runner | str) -> PodProof:
        def opened(*_: object) -> Runner | str:
            self.opened += 1
            return runner

        def clock() -> float:
            return 0.0 if isinstance(runner, str) else runner.seconds

        self._monkeypatch.setattr(verify, "pod_runner", opened)
        shown: dict[str, object] = {"containerd": {"runtimes": {"runc": {}, "a": {}}}}
        socket = HostPath("/none/c.sock", "/none/c.sock")
        answer = Answer("containerd", "2.1.9", True, shown, ())
        runtime = Runtime(Endpoint("containerd", socket), None, answer)
        node = cast("ConfiguredRuntime", SimpleNamespace(runtime=runtime))
        return PodProof(HostRoot("/"), node, {"a": {}, "b": {}}, Silent(), clock)


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> Tried:
    return Tried(monkeypatch)


def test_all_pods_run(proof: Tried) -> None:
    """Each handler is tried before the change if it exists, and after it."""
    runner = Runner()
    found = proof(runner)
    found.before()
    assert found.after() == "ran under the default handler, a, b"
    assert runner.tried == ["", "a", "", "a", "b"]
    assert runner.tidied == 2
    assert proof.opened == 1


@pytest.mark.parametrize("broken", ["", "a", "b"])
def test_a_pod_that_does_not_run_any_more_undoes_the_change(broken: str, proof: Tried) -> None:
    runner = Runner()
    found = proof(runner)
    found.before()
    runner.results[broken] = "failed"
    named = broken or "the default handler"
    with pytest.raises(PodsFail, match=f"no pod runs under {named}: because"):
        found.after()


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ({"a": "failed"}, f"ran under the default handler, b; {NEITHER} a"),
        ({"": "failed", "b": "failed"}, f"ran under a; {NEITHER} the default handler, b"),
        ({"b": "undecided"}, "ran under the default handler, a; undecided under b"),
    ],
)
def test_what_did_not_run_before_undoes_nothing(
    results: dict[str, Result], words: str, proof: Tried
) -> None:
    """And where no pod ran under the default, nothing is the change's fault."""
    runner = Runner(results)
    found = proof(runner)
    found.before()
    assert found.after() == words


def test_without_an_image_nothing_is_tried(proof: Tried) -> None:
    found = proof("there is no image")
    found.before()
    assert found.after() == "not tried: there is no image"


def test_a_slow_runtime_is_not_waited_for(proof: Tried) -> None:
    """The timer on the host would undo a change that is all right."""
    runner = Runner(pace=9.0)
    found = proof(runner)
    found.before()
    assert found.after() == "ran under the default handler; undecided under a, b"
    assert runner.tried == ["", ""]
