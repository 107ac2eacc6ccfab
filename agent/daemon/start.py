"""From the command line to the waiting process.

Invariant: when this process becomes the supervisor it holds the lock and has its signals blocked
already, so there is no moment at which a second instance or a signal could come between.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from agent.daemon import supervisor
from agent.engine.context import Context
from agent.host import lock

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Not `-m agent`: that would put the working directory before everything else. The package that we
# are is found where it is, installed or not.
_CHILD = "import sys; sys.path.append(sys.argv.pop(1)); from agent.cli import main; main()"
COMMAND = "converge-child"


def become_supervisor(ctx: Context, options: Sequence[str]) -> NoReturn:
    """Take the lock and turn into the waiting process; `options` go to every child.

    Raises Locked or Refused.
    """
    since = ctx.clock()
    ctx.store.create()
    fd = lock.take(ctx.store.path("lock"))
    os.set_inheritable(fd, True)
    child = [
        sys.executable, "-P", "-c", _CHILD, _ROOT, COMMAND, f"--lock-fd={fd}", f"--since={since}",
        f"--entry={ctx.settings.entry}", *options,
    ]  # fmt: skip
    deadline = 2 * ctx.settings.proof_timeout + 300
    # Without site and the environment's wishes: it imports nothing from there.
    program = [sys.executable, "-I", "-S", supervisor.__file__]
    signal.pthread_sigmask(signal.SIG_BLOCK, supervisor.SIGNALS)
    os.execve(  # noqa: S606 - there is no shell in it
        sys.executable, [*program, str(ctx.settings.interval), str(deadline), *child], os.environ
    )
