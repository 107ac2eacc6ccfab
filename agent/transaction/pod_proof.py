"""The part of the proof of a restart in which pods run.

Invariant: only a handler under which a pod ran before the change, or that did not exist then, can
fail. What could not be tried is said, and undoes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.log import Log
from agent.runtimes.proof import NotProven

if TYPE_CHECKING:
    from agent.verify.pods import PodRunner, Verdict

# Together less than the 20 s after which the timer on the host would undo the change.
SECONDS_FOR_POD = 5.0
_SECONDS = 8.0  # after which no further pod is run


@dataclass(frozen=True)
class PodProof:
    """Runs a pod before and after a change. `before` is called while nothing is touched. `after`
    returns which pods ran, in words; it raises NotProven if one must run and does not."""

    before: Callable[[], None]
    after: Callable[[], str]


NO_PODS = PodProof(lambda: None, str)


class PodsFail(NotProven):
    """The runtime is as wanted, and yet a pod does not run."""


def of_change(
    open_runner: Callable[[], PodRunner | str],
    present: tuple[str, ...],
    future: tuple[str, ...],
    log: Log,
    clock: Callable[[], float],
) -> PodProof:
    """The proof for a change. `present` and `future` are the handlers to try before and after it,
    "" is the default. `open_runner` is called for each, and may return why no pod can be run."""
    failed_before: set[str] = set()

    def before() -> None:
        runner = open_runner()
        if not isinstance(runner, str):
            verdicts = _verdicts(runner, present, clock).items()
            failed_before.update(name for name, found in verdicts if found.result == "failed")

    def after() -> str:
        runner = open_runner()
        if isinstance(runner, str):
            return f"not tried: {runner}"
        verdicts = _verdicts(runner, future, clock)
        for name, verdict in verdicts.items():
            # Where no pod ran under the default before, something else is wrong on this node.
            if verdict.result == "failed" and not failed_before & {name, ""}:
                raise PodsFail(f"no pod runs under {_named(name)}: {verdict.text}")
        for name, verdict in verdicts.items():
            if verdict.result != "ok":
                log.warning("no pod ran", handler=_named(name), reason=verdict.text)
        return _summary(verdicts)

    return PodProof(before, after)


def _verdicts(
    runner: PodRunner, handlers: tuple[str, ...], clock: Callable[[], float]
) -> dict[str, Verdict]:
    from agent.verify.pods import Verdict  # only a restart needs it

    end = clock() + _SECONDS
    verdicts = {}
    try:
        for name in handlers:
            late = clock() >= end
            verdicts[name] = Verdict("undecided", "no time left") if late else runner.prove(name)[0]
    finally:
        runner.tidy()
    return verdicts


def _summary(verdicts: Mapping[str, Verdict]) -> str:
    texts = {
        "ok": "ran under",
        "failed": "ran neither before the change nor now under",
        "undecided": "undecided under",
    }
    found = (
        (text, [_named(name) for name, verdict in verdicts.items() if verdict.result == result])
        for result, text in texts.items()
    )
    return "; ".join(f"{text} {', '.join(names)}" for text, names in found if names)


def _named(handler: str) -> str:
    return handler or "the default handler"
