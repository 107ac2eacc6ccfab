"""From the command line to the waiting process, and the pid file on the way.

Invariant: when this process becomes the supervisor it holds the lock and the pid file and has its
signals blocked already, so there is no moment at which a second instance or a signal could come
between. The pid in the file stays right: it is one process from here to its end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from agent import status
from agent.daemon import supervisor
from agent.errors import Refused, reason
from agent.host import lock, pidfile, trusted
from agent.plan.context import Context
from agent.transaction import stand_aside

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Not `-m agent`: that would put the working directory before everything else. The package that we
# are is found where it is, installed or not.
_CHILD = "import sys; sys.path.append(sys.argv.pop(1)); from agent.cli import main; main()"
COMMAND = "converge-child"


def become_supervisor(ctx: Context, options: Sequence[str]) -> NoReturn:
    """Take the lock and the pid file, and turn into the waiting process; `options` go to every
    child. Raises Locked or Refused.
    """
    since = ctx.clock()
    ctx.store.create()
    fd = lock.take(ctx.store.path("lock"))
    os.set_inheritable(fd, True)
    stand_aside.forget(ctx)
    _not_ready_yet(ctx)
    said = os.memfd_create("said", 0)  # see told.py
    os.set_inheritable(said, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, supervisor.SIGNALS)
    path, held = _pid_path(ctx), ""
    if path is not None:
        number = pidfile.take(path)
        os.set_inheritable(number, True)
        held = f"{number}:{path}"
    child = [
        sys.executable, "-P", "-c", _CHILD, _ROOT, COMMAND, f"--lock-fd={fd}", f"--told-fd={said}",
        f"--since={since}",
        f"--entry={ctx.settings.entry}", *options,
    ]  # fmt: skip
    deadline = 2 * ctx.settings.proof_timeout + 300
    # Without site and the environment's wishes: it imports nothing from there.
    program = [sys.executable, "-I", "-S", supervisor.__file__]
    published = [ctx.publisher.path(name) for name in (status.READY, status.TWIN)]
    words = [str(ctx.settings.interval), str(deadline), held]
    words += [ctx.settings.ready_file or "", ctx.store.path(stand_aside.REQUEST), *published]
    os.execve(  # noqa: S606 - there is no shell in it
        sys.executable, [*program, *words, *child], os.environ
    )


def _not_ready_yet(ctx: Context) -> None:
    """Raises Refused where the ready file is not ours to write."""
    readiness = supervisor.Readiness(ctx.settings.ready_file or "")
    try:
        readiness.deny(b"cannot be ready yet: the first look at this node is not over")
    except OSError as error:
        raise Refused(
            f"cannot write the ready file {readiness.path}: {reason(error)}; give a file in a "
            "directory of this process's own, such as an emptyDir in memory"
        ) from error


@contextlib.contextmanager
def pid_file(ctx: Context) -> Iterator[None]:
    """Hold the pid file, if there is to be one, for as long as one convergence takes. Signals that
    would end us wait until it is gone. Raises Locked or Refused."""
    path = _pid_path(ctx)
    if path is None:
        yield
        return
    ending = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    old = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        fd = pidfile.take(path)
        try:
            yield
        finally:
            supervisor.drop(fd, path)
            os.close(fd)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _pid_path(ctx: Context) -> str | None:
    """The agent path of the pid file, in a directory that is there and root's alone. What its own
    name is, a link or not, is not looked at. Raises Refused."""
    given = ctx.settings.pid_file
    if not given:
        return None
    above, name = os.path.split(given)
    purpose, host = f"use the pid file {given}", ctx.host
    try:
        place = trusted.system_name(host, above)
        directory = trusted.directory(host, place, purpose, sticky_is_fine=True, links=False)
    except OSError as error:
        raise Refused(f"cannot {purpose}: {reason(error)}") from error
    return os.path.join(directory.agent, name)
