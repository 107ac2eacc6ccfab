"""The part of the proof of a restart in which pods run.

Invariant: only a handler under which a pod ran before the change, or that did not exist then, can
fail. What could not be tried is said, and undoes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from agent.host.paths import HostRoot
from agent.log import Log
from agent.runtimes import registry
from agent.runtimes.base import ConfiguredRuntime
from agent.runtimes.desired_state import programs_of
from agent.runtimes.proof import NotProven
from agent.toml.dialect import Data

if TYPE_CHECKING:
    from agent.verify.pods import PodRunner, Verdict

# Together less than the 20 s after which the timer on the host would undo the change.
_SECONDS_FOR_POD = 5.0
_SECONDS = 8.0  # after which no further pod is run
_TEXTS = {
    "ok": "ran under",
    "failed": "ran neither before the change nor now under",
    "undecided": "undecided under",
}


class PodsFail(NotProven):
    """The runtime is as wanted, and yet a pod does not run."""


class PodProof:
    """Runs a pod under the default handler and each of ours before and after a change. `handlers`
    are ours after it, with their tables."""

    def __init__(
        self, host: HostRoot, node: ConfiguredRuntime, handlers: Mapping[str, Data], log: Log,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._host = host
        self._node = node
        self._handlers = handlers
        self._log = log
        self._clock = clock
        self._runner: PodRunner | str = ""
        self._failed_before: set[str] = set()

    def before(self) -> None:
        """Run pods under the handlers that exist already. Call it while nothing is touched."""
        from agent.verify.verify import pod_runner  # only a restart needs it

        words = (*self._handlers, *itertools.chain(*map(programs_of, self._handlers.values())))
        self._runner = pod_runner(self._host, self._node, words, _SECONDS_FOR_POD)
        if not isinstance(self._runner, str):
            shown = registry.shown_handler_names(self._node.runtime.answer)[1]
            present = (name for name in self._handlers if name in shown)
            found = self._verdicts(self._runner, ("", *present))
            self._failed_before = {n for n, verdict in found.items() if verdict.result == "failed"}

    def after(self) -> str:
        """Run pods after the change. Returns which pods ran, in words. Raises PodsFail."""
        if isinstance(self._runner, str):
            return f"not tried: {self._runner}"
        verdicts = self._verdicts(self._runner, ("", *self._handlers))
        for name, verdict in verdicts.items():
            # Where no pod ran under the default before, something else is wrong on this node.
            if verdict.result == "failed" and not self._failed_before & {name, ""}:
                raise PodsFail(f"no pod runs under {_named(name)}: {verdict.text}")
        parts = []
        for result, text in _TEXTS.items():
            names = [_named(name) for name, found in verdicts.items() if found.result == result]
            parts += [f"{text} {', '.join(names)}"] if names else []
        for name, verdict in verdicts.items():
            if verdict.result != "ok":
                self._log.warning("no pod ran", handler=_named(name), reason=verdict.text)
        return "; ".join(parts)

    def _verdicts(self, runner: PodRunner, handlers: Iterable[str]) -> dict[str, Verdict]:
        from agent.verify.pods import Verdict

        end = self._clock() + _SECONDS
        late = Verdict("undecided", "no time left")
        try:
            return {
                name: late if self._clock() >= end else runner.prove(name)[0] for name in handlers
            }
        finally:
            runner.tidy()


def _named(handler: str) -> str:
    return handler or "the default handler"
