"""The proof that a restarted runtime has the desired state.

Invariant: a single answer proves nothing, and neither does the process from before the restart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.cri.client import Answer, Unimplemented
from agent.errors import Unreachable

# Pid and start time of a process. If the process cannot be seen: 0 and systemd's InvocationID of
# its unit as a number.
Identity = tuple[int, int] | None

_ANSWERS = 3  # equal answers of one process that decide
_APART = 0.2  # seconds between two answers
_PAUSE = 0.05  # seconds between two tries while nothing answers


class NotProven(Exception):
    """The runtime does not have the desired state. The message says what is wrong."""


@dataclass(frozen=True)
class Probe:
    """The functions that a proof needs. `identity` returns the process behind the socket, `ask` its
    answer. `given_up` returns the reason why no process will ever answer, None while one may."""

    identity: Callable[[], Identity]
    ask: Callable[[], Answer]
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    given_up: Callable[[], str | None] = lambda: None


def prove(
    probe: Probe, old: Identity, problems: Callable[[Answer], list[str]], timeout: float
) -> Answer:
    """Wait until a process other than `old` has answered as desired, three times, 0.2 s apart, and
    return its last answer.

    If `old` is None, any process counts. `problems` returns the differences between an answer and
    the desired state. `timeout` is in seconds. Raises NotProven after three answers of one process
    with problems, or without a CRI; if no process will ever answer; and after the timeout.
    """
    end = probe.clock() + timeout
    last = "nothing answered"
    good = bad = lost = 0
    proven_identity: Identity = None
    while True:
        try:
            identity, answer = _ask_once(probe)
        except Unreachable as error:
            last, good, bad = str(error), 0, 0
            identity = answer = None
            lost = lost + 1 if (why := probe.given_up()) else 0
            if why and lost > 1:  # seen twice, so that no moment between two states counts
                raise NotProven(why) from error
        if answer is not None:
            if identity is None or identity == old:
                last, good, bad = "the old process still answers", 0, 0
            else:
                if identity != proven_identity:
                    proven_identity, good, bad = identity, 0, 0
                wrong, final = _judge(answer, problems)
                bad = bad + 1 if wrong and final else 0
                good = 0 if wrong else good + 1
                if isinstance(answer, Answer) and good >= _ANSWERS:
                    return answer
                if wrong:
                    last = "; ".join(wrong)
                    if bad >= _ANSWERS:
                        raise NotProven(last)
        if probe.clock() >= end:
            raise NotProven(f"{last} (after {timeout:g} s)")
        probe.sleep(_PAUSE if answer is None else _APART)


def _judge(
    answer: Answer | Unimplemented, problems: Callable[[Answer], list[str]]
) -> tuple[list[str], bool]:
    """The problems of an answer, and whether they are final. They are not final while the runtime
    is not ready."""
    if isinstance(answer, Unimplemented):
        return [str(answer)], True
    if not answer.ready:
        return ["RuntimeReady is false"], False
    return problems(answer), True


def _ask_once(probe: Probe) -> tuple[Identity, Answer | Unimplemented | None]:
    """One answer and the process that gave it; neither if the process changed meanwhile. The error
    that the CRI is not served counts as an answer, because a process that is about to end can give
    it too. Raises Unreachable."""
    before = probe.identity()
    answer: Answer | Unimplemented
    try:
        answer = probe.ask()
    except Unimplemented as error:
        answer = error
    return (before, answer) if probe.identity() == before else (None, None)
