"""Proof that a restarted runtime is what it should be.

Invariant: nothing is proven by a single answer, nor by the process that was there before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.errors import Unreachable
from agent.observe.cri import Answer, Unimplemented

Identity = tuple[int, int] | None

_ANSWERS = 3
_APART = 0.2  # seconds between two answers
_PAUSE = 0.05  # seconds between two tries while nothing answers


class NotProven(Exception):
    """The runtime is not as wanted; the message says how."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The seams: who is behind the socket, what it answers, and time."""

    identity: Callable[[], Identity]
    ask: Callable[[], Answer]
    clock: Callable[[], float]
    sleep: Callable[[float], None]


def prove(
    probe: Probe, old: Identity, problems: Callable[[Answer], list[str]], timeout: float
) -> Answer:
    """Wait until another process than `old` answers as wanted, three times, 0.2 s apart.

    `old` None accepts any process. `timeout` in seconds. Raises NotProven: at once where the CRI
    is not served, after three answers that are not as wanted, or when the time is up.
    """
    end = probe.clock() + timeout
    last = "nothing answered"
    good = bad = 0
    who: Identity = None
    while True:
        try:
            found, answer = _look(probe)
        except Unimplemented as error:
            raise NotProven(str(error)) from error
        except Unreachable as error:
            last, good, bad = str(error), 0, 0
            found = answer = None
        if answer is not None:
            if found is None or found == old:
                last, good, bad = "the old process still answers", 0, 0
            else:
                if found != who:
                    who, good, bad = found, 0, 0
                wrong = problems(answer) if answer.ready else ["RuntimeReady is false"]
                # Not ready yet is no verdict; ready and wrong is one.
                bad = bad + 1 if wrong and answer.ready else 0
                good = 0 if wrong else good + 1
                if good >= _ANSWERS:
                    return answer
                if wrong:
                    last = "; ".join(wrong)
                    if bad >= _ANSWERS:
                        raise NotProven(last)
        if probe.clock() >= end:
            raise NotProven(f"{last} (after {timeout:g} s)")
        probe.sleep(_PAUSE if answer is None else _APART)


def _look(probe: Probe) -> tuple[Identity, Answer | None]:
    """One answer and the process that gave it; no answer where that changed in between."""
    before = probe.identity()
    answer = probe.ask()
    return (before, answer) if probe.identity() == before else (None, None)
