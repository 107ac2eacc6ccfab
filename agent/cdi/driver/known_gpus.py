"""The last answer of NVML, which stays valid while the kernel shows the same GPUs.

Asking NVML has side effects: it wakes idle GPUs (seconds each, without nvidia-persistenced), makes
missing device nodes, and hangs if the driver hangs. So NVML is always asked when the node is to be
configured (`apply`, the start of `run`, its interval, SIGHUP). All other callers, such as `plan`
and `status`, ask it only if the kernel shows other GPUs or MIG devices than at the last answer.

Invariant: an answer is used again only in the same boot, for the same library and with the same
GPUs in the kernel's list. It stays in use if the library fails later.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace

from agent.cdi.driver import kernel, nvml
from agent.cdi.driver.nvml import Answer, Library
from agent.errors import AgentError, DriverFailed
from agent.host import budget, files
from agent.host.paths import HostRoot
from agent.state.store import Store

_NAME = "gpus.json"


@dataclass(frozen=True)
class _Known:
    """The last good answer for a trace, and the error since then. `crashed`: the library crashed or
    hung, and did not return an error."""

    trace: str
    answer: Answer | None = None
    failure: str = ""
    crashed: bool = False


class KnownGpus:
    """Answers of NVML for one proposal; NVML is asked once at most. `refresh`: NVML is asked
    although the kernel shows the same GPUs."""

    def __init__(self, store: Store, host: HostRoot, boot_id: str, *, refresh: bool) -> None:
        self._store, self._host, self._boot_id, self._refresh = store, host, boot_id, refresh
        self._saved = self._known = _load(store)
        self._asked = ""

    def ask(self, library: Library) -> Answer:
        """The new or the saved answer; like `nvml.ask` otherwise. Raises DriverFailed."""
        trace = self._trace(library)
        same = self._known if self._known and self._known.trace == trace else None
        # Ask again after an error, which is quick, but not after a crash or a hang, which is slow.
        stale = same is None or (bool(same.failure) and not same.crashed)
        if trace != self._asked and (stale or self._refresh):
            before = same.answer if same else None
            try:
                answer = nvml.ask(library)
                same = _Known(trace, before if answer.error else answer, answer.error)
            except DriverFailed as error:
                same = _Known(trace, before, error.message, crashed=True)
            self._asked = trace
        assert same is not None
        self._known = same
        return _answer(same)

    def keep(self) -> None:
        """Save a new answer. An OSError is ignored, because the saved answer only saves time."""
        if self._known is None or self._known == self._saved:
            return
        content = files.new_state(json.dumps(asdict(self._known)).encode(), 0o600)
        try:
            files.write(self._store.path(_NAME), content)
        except OSError:
            return

    def _trace(self, library: Library) -> str:
        """A hash of everything that determines an answer."""
        found = os.fstat(library.fd)
        facts = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]
        parts = [self._boot_id, library.name, facts, kernel.trace(self._host)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def forget(store: Store) -> None:
    """Remove the saved answer. Raises OSError."""
    files.discard(store.path(_NAME))


def _answer(known: _Known) -> Answer:
    if known.answer is None and known.crashed:
        raise DriverFailed(known.failure)
    if known.answer is None:
        return Answer(error=known.failure)
    if not known.failure:
        return known.answer
    warning = (
        "GPUs are those that NVML listed before, because the kernel shows the same ones and NVML "
        f"lists none now: {known.failure}"
    )
    return replace(known.answer, warnings=(warning, *known.answer.warnings))


def _load(store: Store) -> _Known | None:
    try:
        if (found := store.read(_NAME)) is None:
            return None
        data = budget.json_value(found.data, budget.CHILD)
        answer = data["answer"]
        return _Known(
            str(data["trace"]),
            nvml.parsed(answer["gpus"], answer["warnings"], answer["cuda"]) if answer else None,
            str(data["failure"]),
            bool(data["crashed"]),
        )
    except (AgentError, ValueError, KeyError, TypeError):
        return None
