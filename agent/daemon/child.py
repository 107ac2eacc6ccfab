"""One convergence of `run`, in a process of its own.

Invariant: whatever comes of it, the watch list is written before it ends, so that the supervisor
waits for the right things; and a failure that was told before is not told again.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from agent.data import dataclass, replace
from agent.engine.context import Context
from agent.engine.converge import converge
from agent.engine.guard import Deadly
from agent.engine.watch import watched
from agent.errors import AgentError


@dataclass(frozen=True, slots=True)
class Inherited:
    """What the supervisor hands down: descriptors of the lock and of the watch list's pipe, the
    monotonic time of its start, the last exit code, whether to look at everything afresh, and
    whether it took `toolkit-ready` away because a convergence did not finish."""

    lock: int
    pipe: int
    since: float
    told: int
    afresh: bool
    barrier: bool = False


def work(ctx: Context, inherited: Inherited, say: Callable[[str], None]) -> int:
    """Converge once; gives the exit code. `say` takes the line of a failure that is new."""
    for fd in (inherited.lock, inherited.pipe):
        os.set_inheritable(fd, False)
    ctx = replace(
        ctx, lock_fd=inherited.lock, ask_again=inherited.afresh, barrier=inherited.barrier
    )
    before, node, spec, code = ctx.publisher.told(), None, None, 0
    blamed: tuple[str, ...] = ()
    try:
        outcome = converge(ctx)
        node, spec = outcome.proposal.node, outcome.proposal.spec
    except AgentError as error:
        code = error.exit_code
        blamed = (error.path.agent,) if isinstance(error, Deadly) else ()
        if code != inherited.told or ctx.publisher.told() != before:
            say(error.message)
    finally:
        _report((*watched(ctx, node, spec), *blamed), inherited.pipe)
    return code


def _report(entries: tuple[str, ...], pipe: int) -> None:
    data = b"\0".join(map(os.fsencode, entries))
    try:
        with open(pipe, "wb") as file:
            file.write(data)
    except BrokenPipeError:
        return  # the supervisor was killed; the work is done all the same
