"""Proof that a restarted runtime is what it should be.

Invariant: nothing is proven by a single answer, nor by the process that was there before.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.data import dataclass
from agent.errors import Unreachable
from agent.observe.cri import Answer, Unimplemented

# Pid and start time; pid 0 and systemd's InvocationID as a number where the process cannot be seen.
Identity = tuple[int, int] | None

_ANSWERS = 3
_APART = 0.2  # seconds between two answers
_PAUSE = 0.05  # seconds between two tries while nothing answers


def _never() -> None:
    """It may answer at any time."""


class NotProven(Exception):
    """The runtime is not as wanted; the message says how."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The seams: who is behind the socket, what it answers, and time. `hopeless` says why nothing
    will answer any more, if that is known."""

    identity: Callable[[], Identity]
    ask: Callable[[], Answer]
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    hopeless: Callable[[], str | None] = _never


def prove(
    probe: Probe, old: Identity, problems: Callable[[Answer], list[str]], timeout: float
) -> Answer:
    """Wait until another process than `old` answers as wanted, three times, 0.2 s apart.

    `old` None accepts any process. `timeout` in seconds. Raises NotProven: at once where the CRI
    is not served, after three answers that are not as wanted, when nothing answers and nothing ever
    will, or when the time is up.
    """
    end = probe.clock() + timeout
    last = "nothing answered"
    good = bad = lost = 0
    who: Identity = None
    while True:
        try:
            found, answer = _look(probe)
        except Unimplemented as error:
            raise NotProven(str(error)) from error
        except Unreachable as error:
            last, good, bad = str(error), 0, 0
            found = answer = None
            lost = lost + 1 if (why := probe.hopeless()) else 0
            if why and lost > 1:  # seen twice, so that no moment between two states counts
                raise NotProven(why) from error
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
