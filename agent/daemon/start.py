"""The start of `run`, up to the execution of the supervisor.

Invariant: when this process executes the supervisor, it already holds the lock and the pid file and
blocks its signals. So no second instance and no signal can interfere. The process stays the same,
so that the pid in the pid file stays right.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from agent import status
from agent.daemon import pid_file, supervisor
from agent.errors import Refused, reason
from agent.host import own_process
from agent.plan.context import Context
from agent.transaction import stand_aside

COMMAND = "converge-child"


def become_supervisor(ctx: Context, options: Sequence[str]) -> NoReturn:
    """Take the lock and the pid file, and execute the supervisor in this process. `options` are
    options of the command line of every child. Raises Locked or Refused."""
    since = ctx.clock()
    fd = ctx.store.take_lock()
    os.set_inheritable(fd, True)
    stand_aside.clear(ctx.store)
    readiness = supervisor.Readiness(ctx.settings.ready_file or "")
    try:
        readiness.set_not_ready(b"cannot be ready yet: the first look at this node is not over")
    except OSError as error:
        raise Refused(
            f"cannot write the ready file {readiness.path}: {reason(error)}; give a file in a "
            "directory that only this process uses, such as an emptyDir in memory"
        ) from error
    logged = os.memfd_create("logged", 0)  # see RepeatFilter
    os.set_inheritable(logged, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, supervisor.SIGNALS)
    path, held = pid_file.find(ctx.host, ctx.settings.pid_file), ""
    if path is not None:
        number = pid_file.take(path)
        os.set_inheritable(number, True)
        held = f"{number}:{path}"
    child = [
        *own_process.command("agent.cli"), COMMAND, f"--lock-fd={fd}",
        f"--logged-fd={logged}", f"--since={since}", f"--entry={ctx.settings.entry}", *options,
    ]  # fmt: skip
    deadline = 2 * ctx.settings.proof_timeout + 300
    # `site` and PYTHON* variables are not needed: the supervisor imports only the standard library.
    program = [sys.executable, "-I", "-S", supervisor.__file__]
    published = [ctx.publisher.path(name) for name in (status.READY, status.TWIN)]
    words = [str(ctx.settings.interval), str(deadline), held]
    words += [readiness.path, ctx.store.path(stand_aside.REQUEST), *published]
    os.execve(  # noqa: S606 - no shell
        sys.executable, [*program, *words, *child], os.environ
    )
