"""How a `revert` gets the lock that a `run` holds, and how that `run` stays aside afterwards.

    aside           the request: a living `revert` holds its lock
    aside.answer    the process of `run` that heard it (pid and start time)
    aside.reverted  the process of `run` that stays aside, from the moment the revert is complete

Invariant: whoever is killed, nobody waits for ever. The request ends with the lock of its file,
which the kernel takes from a dead process; without a complete revert `run` goes on; and a new `run`
is another process, for which no file of an earlier one counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import replace

from agent.cri import process
from agent.errors import Locked, Refused, StoodAside, reason
from agent.host import files, lock
from agent.plan.context import Context

REQUEST = "aside"
_ANSWER, _REVERTED = f"{REQUEST}.answer", f"{REQUEST}.reverted"
_HEARD = 5.0  # seconds in which a `run` answers, whatever it does
_ENDED = 30.0  # and, beyond the proof, in which it has ended a change in progress


@contextlib.contextmanager
def lock_of_the_node(ctx: Context) -> Iterator[Context]:
    """The context with the lock held, if need be after the `run` that held it stood aside.

    That `run` stays aside if the body ends well, and goes on otherwise. Raises Locked where another
    command holds it, or where a change in progress takes too long; Refused.
    """
    ctx.store.create()
    with contextlib.ExitStack() as stack:
        try:
            fd = lock.take(ctx.store.path("lock"))
        except Locked:
            # Entered first, so left last: `run` looks at the lock when the request ends.
            stack.enter_context(_request(ctx))
            fd = _wait(ctx)
        stack.callback(os.close, fd)
        yield replace(ctx, lock_fd=fd)


@contextlib.contextmanager
def _request(ctx: Context) -> Iterator[None]:
    path, answer = ctx.store.path(REQUEST), ctx.store.path(_ANSWER)
    fd = lock.take(path)
    try:
        if not lock.same(path, fd):
            raise Locked("cannot start: another revert has just ended; try again")
        files.discard(answer)
        os.ftruncate(fd, 0)  # an answer to what was there before is none to us
        files.write_all(fd, b"%d\n" % os.getpid())
        try:
            yield
            if os.path.lexists(answer):
                files.move(answer, ctx.store.path(_REVERTED))
        finally:
            for name in (answer, path):
                files.discard(name)
    except OSError as error:
        raise Refused(f"cannot ask with {path}: {reason(error)}") from error
    finally:
        os.close(fd)


def _wait(ctx: Context) -> int:
    """The lock, once it is free. Raises Locked."""
    path, since, heard = ctx.store.path("lock"), ctx.clock(), False
    while True:
        if not heard and os.path.lexists(ctx.store.path(_ANSWER)):
            heard = True
            ctx.log("waiting for run to stand aside")
        patience = _ENDED + ctx.settings.proof_timeout if heard else _HEARD
        try:
            return lock.take(path)
        except Locked:
            if ctx.clock() - since > patience:
                raise
        ctx.sleep(0.1)


def forget(ctx: Context) -> None:
    """A new `run` begins: no revert is complete for it."""
    with contextlib.suppress(OSError):
        files.discard(ctx.store.path(_REVERTED))


def stand(ctx: Context, lock_fd: int, run: int) -> None:
    """For a convergence of the `run` with this pid: let a revert have the lock, and wait for its
    end. Raises StoodAside once it is complete, Refused."""
    path, ours = ctx.store.path(REQUEST), f"{run} {process.start_time(run)}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        fd = None
    if fd is not None:
        try:
            _let(ctx, fd, lock_fd)
        finally:
            os.close(fd)
    found = ctx.store.read(_REVERTED)
    if found is not None and found.data.decode("ascii", "replace").strip() == ours:
        with contextlib.suppress(OSError):
            fcntl.flock(lock_fd, fcntl.LOCK_UN)
        raise StoodAside(
            "cannot converge: `revert` undid the changes, and this `run` leaves the node alone; "
            "replace or restart its pod to configure the node again"
        )


def _let(ctx: Context, fd: int, lock_fd: int) -> None:
    """Release the lock for as long as somebody lives behind the request."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        fcntl.flock(lock_fd, fcntl.LOCK_UN)
        ctx.log("standing aside for revert")
        fcntl.flock(fd, fcntl.LOCK_EX)
    if lock.same(ctx.store.path(REQUEST), fd):  # it was killed
        with contextlib.suppress(OSError):
            for name in (_ANSWER, REQUEST):
                files.discard(ctx.store.path(name))
