"""A restarted runtime is proven by its answers, on a clock that moves only by sleeping."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from agent.cri.client import Answer, Unimplemented
from agent.errors import Unreachable
from agent.runtimes.proof import Identity, NotProven, Probe, prove

OLD, NEW, NEWER = (10, 100), (20, 200), (30, 300)
GOOD = Answer("containerd", "2.1.9", True, {}, ())
NOT_READY = Answer("containerd", "2.1.9", False, {}, ())
WRONG = Answer("containerd", "wrong", True, {}, ())
DOWN = Unreachable("cannot reach it: connection refused")

Look = tuple[Identity, Answer | Exception]


@dataclass
class Runtime:
    """What is behind the socket at each moment: (from second, who, answer), the last one stays.

    An answer takes `cost` seconds; `asked` are the moments of the questions.
    """

    script: list[tuple[float, Identity, Answer | Exception]]
    cost: float = 0.01
    now: float = 0.0
    asked: list[tuple[float, Identity]] = field(default_factory=list)

    def _current(self) -> Look:
        who, answer = next((w, a) for t, w, a in reversed(self.script) if t <= self.now)
        return who, answer

    def identity(self) -> Identity:
        """Who is there; nobody where the connection fails."""
        who, _ = self._current()
        if who == (0, 0):
            raise DOWN
        return who

    def ask(self) -> Answer:
        """The answer of this moment."""
        who, answer = self._current()
        self.asked.append((self.now, who))
        self.now += self.cost
        if isinstance(answer, Exception):
            raise answer
        return answer

    def sleep(self, seconds: float) -> None:
        """Pass time."""
        assert seconds > 0
        self.now += seconds

    def prove(
        self,
        old: Identity = OLD,
        timeout: float = 60.0,
        problems: Callable[[Answer], list[str]] | None = None,
    ) -> Answer:
        """Run the proof on this runtime."""
        probe = Probe(self.identity, self.ask, lambda: self.now, self.sleep)
        wrong = problems or (lambda a: ["handler nvidia is missing"] if a is WRONG else [])
        return prove(probe, old, wrong, timeout)


NOBODY: Identity = (0, 0)


def test_proof_needs_three_answers_a_fifth_of_a_second_apart() -> None:
    """Not two, not four, not closer together."""
    runtime = Runtime([(0, NEW, GOOD)])
    assert runtime.prove() is GOOD
    moments = [moment for moment, _ in runtime.asked]
    assert len(moments) == 3
    assert all(b - a >= 0.2 for a, b in itertools.pairwise(moments))


def test_old_process_proves_nothing() -> None:
    """It still answers on the old files while it is being stopped."""
    runtime = Runtime([(0, OLD, GOOD), (2, NOBODY, DOWN), (3, NEW, GOOD)])
    runtime.prove()
    assert [who for _, who in runtime.asked][-3:] == [NEW, NEW, NEW]
    assert runtime.now >= 3.4


def test_old_process_that_stays_is_told() -> None:
    """A signal that was ignored ends in time, by its cause."""
    runtime = Runtime([(0, OLD, GOOD)])
    with pytest.raises(NotProven, match=r"old process still answers .*after 5 s"):
        runtime.prove(timeout=5)
    assert 5 <= runtime.now <= 6


def test_same_pid_started_later_is_another_process() -> None:
    """Pid numbers come back; start times do not."""
    runtime = Runtime([(0, (10, 999), GOOD)])
    assert runtime.prove() is GOOD


def test_without_an_old_process_any_is_accepted() -> None:
    """After a reboot the numbers say nothing."""
    assert Runtime([(0, OLD, GOOD)]).prove(old=None) is GOOD


NO_CRI = Unimplemented("cannot use it: no CRI")


def test_cri_that_is_not_served_fails_soon() -> None:
    """UNIMPLEMENTED does not get better by waiting: three answers are enough."""
    runtime = Runtime([(0, NEW, NO_CRI)])
    with pytest.raises(NotProven, match="no CRI"):
        runtime.prove()
    assert runtime.now < 1


def test_old_process_without_cri_proves_nothing() -> None:
    """An undo restarts a runtime without its CRI: that process still answers while it ends."""
    runtime = Runtime([(0, OLD, NO_CRI), (1, NOBODY, DOWN), (2, NEW, GOOD)])
    assert runtime.prove() is GOOD


def test_flapping_process_is_never_proven() -> None:
    """Two good answers of each of many processes do not make three of one."""
    script: list[tuple[float, Identity, Answer | Exception]] = []
    for number in range(60):
        script.append((number * 0.5, (100 + number, number), GOOD))
        script.append((number * 0.5 + 0.35, NOBODY, DOWN))
    runtime = Runtime(script)
    with pytest.raises(NotProven):
        runtime.prove(timeout=20)
    assert runtime.now >= 20


def test_process_that_changes_between_answers_starts_the_count_again() -> None:
    """Without a pause in which nothing answers, too."""
    runtime = Runtime([(0, NEW, GOOD), (0.3, NEWER, GOOD)])
    runtime.prove()
    assert [who for _, who in runtime.asked] == [NEW, NEW, NEWER, NEWER, NEWER]


def test_answer_during_which_the_process_changed_counts_for_none() -> None:
    """Nobody knows who gave it. It is the third, which would have been the last one."""
    runtime = Runtime([(0, NEW, GOOD), (0.425, NEWER, GOOD)])
    runtime.prove()
    assert [who for _, who in runtime.asked] == [NEW, NEW, NEW, NEWER, NEWER, NEWER]


def test_runtime_that_becomes_ready_later_is_waited_for() -> None:
    """RuntimeReady is false while plugins load; that is no mismatch, however often it is said."""
    runtime = Runtime([(0, NEW, NOT_READY), (4, NEW, GOOD)])
    assert runtime.prove() is GOOD
    assert runtime.now >= 4.4


def test_runtime_that_never_becomes_ready_is_told() -> None:
    """By name, when the time is up."""
    with pytest.raises(NotProven, match="RuntimeReady is false"):
        Runtime([(0, NEW, NOT_READY)]).prove(timeout=3)


def test_three_mismatches_are_final() -> None:
    """A configuration is loaded once: waiting a minute would leave the node wrong for a minute."""
    runtime = Runtime([(0, NEW, WRONG)])
    with pytest.raises(NotProven, match="handler nvidia is missing"):
        runtime.prove()
    assert len(runtime.asked) == 3
    assert runtime.now < 2


def test_one_mismatch_is_not_final() -> None:
    """It starts the count again, and is forgotten."""
    runtime = Runtime([(0, NEW, GOOD), (0.3, NEW, WRONG), (0.6, NEW, GOOD)])
    assert runtime.prove() is GOOD
    assert len(runtime.asked) >= 6


def test_answers_before_it_was_ready_are_no_mismatches() -> None:
    """Only what a ready runtime says can be held against it."""
    runtime = Runtime([(0, NEW, NOT_READY), (1, NEW, WRONG), (1.1, NEW, GOOD)])
    assert runtime.prove() is GOOD


def test_nothing_that_answers_ends_in_time() -> None:
    """With the last cause, and not much later than asked for."""
    runtime = Runtime([(0, NOBODY, DOWN)])
    with pytest.raises(NotProven, match=r"connection refused.*\(after 2 s\)"):
        runtime.prove(timeout=2)
    assert 2 <= runtime.now <= 2.2


def test_silent_runtime_ends_after_its_last_question() -> None:
    """A question that is not answered takes its own time and no more."""
    runtime = Runtime([(0, NEW, Unreachable("cannot reach it: no answer in time"))], cost=5.0)
    with pytest.raises(NotProven, match="no answer in time"):
        runtime.prove(timeout=12)
    assert 12 <= runtime.now <= 17.2


def test_unreachable_in_between_starts_the_count_again() -> None:
    """Three answers in a row, by the same process."""
    runtime = Runtime([(0, NEW, GOOD), (0.3, NEW, DOWN), (0.5, NEW, GOOD)])
    runtime.prove()
    assert len([a for a in runtime.asked if a[0] >= 0.5]) == 3


@pytest.mark.parametrize(("sightings", "ends"), [([True, True], True), ([True, False], False)])
def test_nobody_waits_for_what_systemd_has_given_up(sightings: list[bool], ends: bool) -> None:
    """Seen twice in a row, so that a moment between two states does not count."""
    runtime = Runtime([(0, NOBODY, GOOD), (2, NEW, GOOD)])
    looks = iter(sightings)
    probe = Probe(
        runtime.identity, runtime.ask, lambda: runtime.now, runtime.sleep,
        lambda: "given up" if next(looks, False) else None,
    )  # fmt: skip
    if ends:
        with pytest.raises(NotProven, match="given up"):
            prove(probe, OLD, lambda _: [], 60.0)
        assert runtime.now < 2
    else:
        assert prove(probe, OLD, lambda _: [], 60.0) is GOOD
