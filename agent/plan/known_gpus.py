"""What NVML told of the GPUs, kept for as long as the kernel shows the same.

Asking has effects: NVML wakes GPUs that nothing else uses (seconds each, without
nvidia-persistenced), makes device nodes that are missing, and hangs where the driver does. So it is
asked by whoever makes the node right of his own accord (`apply`, the start of `run`, its interval,
SIGHUP), and otherwise, by `plan` and `status` too, only where the kernel shows other GPUs or other
MIG devices than at the last answer.

Invariant: an answer is used again only in the boot, for the library and with the kernel's list for
which it was given. It is also what a library that fails from then on cannot take away.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from typing import Any

from agent.cdi.driver import gpus, kernel
from agent.cdi.driver.gpus import Answer, Library
from agent.errors import AgentError, DriverFailed
from agent.host import budget, files
from agent.plan.context import Context
from agent.state.store import Store

_NAME = "gpus.json"


@dataclass(frozen=True, slots=True)
class _Known:
    """The last good answer under a trace, and what went wrong since; `crashed`: the library broke
    or hung, rather than saying so."""

    trace: str
    answer: Answer | None = None
    failure: str = ""
    crashed: bool = False


class Gpus:
    """NVML for one proposal: what it told once in it is not asked for again."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._saved = self._known = _load(ctx.store)
        self._asked = ""

    def ask(self, library: Library) -> Answer:
        """As `inventory.ask`. Raises DriverFailed."""
        trace = _trace(self._ctx, library)
        same = self._known if self._known and self._known.trace == trace else None
        # A plain error is quick to get again, and may be gone by now; a crash or a hang is neither.
        stale = same is None or (bool(same.failure) and not same.crashed)
        if trace != self._asked and (stale or self._ctx.refresh):
            same = _asked(library, trace, same.answer if same else None)
            self._asked = trace
        assert same is not None
        self._known = same
        return _answer(same)

    def keep(self) -> None:
        """Remember the answer, where it is another one; nothing depends on it."""
        if self._known is None or self._known == self._saved:
            return
        content = files.new_state(json.dumps(asdict(self._known)).encode(), 0o600)
        try:
            files.write(self._ctx.store.path(_NAME), content)
        except OSError:
            return


def forget(store: Store) -> None:
    """Nothing is remembered any more. Raises OSError."""
    files.discard(store.path(_NAME))


def _asked(library: Library, trace: str, before: Answer | None) -> _Known:
    try:
        answer = gpus.ask(library)
    except DriverFailed as error:
        return _Known(trace, before, error.message, crashed=True)
    return _Known(trace, before, answer.error) if answer.error else _Known(trace, answer)


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


def _trace(ctx: Context, library: Library) -> str:
    """A hash of everything that has to be the same for an answer to be so."""
    found = os.fstat(library.fd)
    facts = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]
    parts = [ctx.boot_id, library.name, facts, kernel.trace(ctx.host)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _load(store: Store) -> _Known | None:
    try:
        found = store.read(_NAME)
        return _known(budget.json_value(found.data, budget.CHILD)) if found else None
    except (AgentError, ValueError, KeyError, TypeError):
        return None


def _known(data: dict[str, Any]) -> _Known:
    answer = data["answer"]
    return _Known(
        str(data["trace"]),
        gpus.parsed(answer["gpus"], answer["warnings"], answer["cuda"]) if answer else None,
        str(data["failure"]),
        bool(data["crashed"]),
    )
