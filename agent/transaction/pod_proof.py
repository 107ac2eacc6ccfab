"""The part of the proof of a restart in which pods run.

Invariant: the proof fails only for a handler under which a pod ran before the change, or that did
not exist then. A pod that could not be tried is reported, and undoes nothing.
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

# The sum is less than the 20 s after which the timer on the host would undo the change.
_SECONDS_FOR_POD = 5.0
_SECONDS = 8.0  # no further pod is started after this time
_TEXTS = {
    "ok": "ran under",
    "failed": "ran neither before the change nor now under",
    "undecided": "undecided under",
}


class PodsFail(NotProven):
    """The runtime has the desired state, but a pod does not run."""


class PodProof:
    """Runs a pod under the default handler and each of ours, before and after a change. `handlers`
    are the tables of our handlers after the change, by name."""

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
        """Run pods under the handlers that exist before the change. Must be called before the first
        write."""
        from agent.verify.verify import pod_runner  # only a restart needs it

        words = (*self._handlers, *itertools.chain(*map(programs_of, self._handlers.values())))
        self._runner = pod_runner(self._host, self._node, words, _SECONDS_FOR_POD)
        if not isinstance(self._runner, str):
            shown = registry.shown_handler_names(self._node.runtime.answer)[1]
            present = (name for name in self._handlers if name in shown)
            verdicts = self._verdicts(self._runner, ("", *present))
            self._failed_before = {n for n, one in verdicts.items() if one.result == "failed"}

    def after(self) -> str:
        """Run pods after the change, and return in words under which handlers they ran. Raises
        PodsFail."""
        if isinstance(self._runner, str):
            return f"not tried: {self._runner}"
        verdicts = self._verdicts(self._runner, ("", *self._handlers))
        for name, verdict in verdicts.items():
            # If no pod ran under the default handler before, the cause is not the change.
            if verdict.result == "failed" and not self._failed_before & {name, ""}:
                raise PodsFail(f"no pod runs under {_handler_title(name)}: {verdict.text}")
        parts = []
        for result, text in _TEXTS.items():
            names = [
                _handler_title(name) for name, found in verdicts.items() if found.result == result
            ]
            parts += [f"{text} {', '.join(names)}"] if names else []
        for name, verdict in verdicts.items():
            if verdict.result != "ok":
                self._log.warning("no pod ran", handler=_handler_title(name), reason=verdict.text)
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


def _handler_title(handler: str) -> str:
    return handler or "the default handler"
