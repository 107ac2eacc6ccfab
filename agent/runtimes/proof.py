"""The proof that a restarted runtime has the desired state.

Invariant: a single answer proves nothing, and neither does the process from before the restart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.cri.client import Answer, Unimplemented
from agent.errors import Unreachable

# Pid and start time; pid 0 and systemd's InvocationID as a number if the process cannot be seen.
Identity = tuple[int, int] | None

_ANSWERS = 3
_APART = 0.2  # seconds between two answers
_PAUSE = 0.05  # seconds between two tries while nothing answers


class NotProven(Exception):
    """The runtime does not have the desired state. The message says what is wrong."""


@dataclass(frozen=True)
class Probe:
    """The functions that a proof needs: the identity of the process behind the socket, its answer,
    and time. `given_up` returns why nothing will answer any more, None if something may."""

    identity: Callable[[], Identity]
    ask: Callable[[], Answer]
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    given_up: Callable[[], str | None] = lambda: None


def prove(
    probe: Probe, old: Identity, problems: Callable[[Answer], list[str]], timeout: float
) -> Answer:
    """Wait until another process than `old` answers as wanted, three times, 0.2 s apart.

    `old` None accepts any process. `timeout` in seconds. Raises NotProven: after three answers of
    one process that are not as wanted or say that it does not serve the CRI, when nothing answers
    and nothing ever will, or when the time is up.
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
    """What is wrong with an answer, and whether that is final. A runtime that is not ready yet is
    not final."""
    if isinstance(answer, Unimplemented):
        return [str(answer)], True
    if not answer.ready:
        return ["RuntimeReady is false"], False
    return problems(answer), True


def _ask_once(probe: Probe) -> tuple[Identity, Answer | Unimplemented | None]:
    """One answer and the process that gave it, no answer if the process changed meanwhile. The
    error that the CRI is not served counts as an answer, which a process that is about to end can
    give too."""
    before = probe.identity()
    answer: Answer | Unimplemented
    try:
        answer = probe.ask()
    except Unimplemented as error:
        answer = error
    return (before, answer) if probe.identity() == before else (None, None)
