"""How a `revert` gets the lock that a `run` holds, and how that `run` does nothing afterwards.

Files in the state directory:

    aside           the request; the `revert` that made it holds a lock on it
    aside.answer    the `run` that saw the request (pid and start time)
    aside.reverted  the `run` that must do nothing more, because the revert is complete

Invariant: if one of the two is killed, the other does not wait for ever. A request is over when the
lock on its file is, which the kernel releases with the process. If no revert was completed,
`run` goes on. The files of one `run` do not count for a later `run`, which is another process.
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
from agent.log import Log
from agent.plan.context import Context
from agent.state.store import Store

REQUEST = "aside"
_ANSWER, _REVERTED = f"{REQUEST}.answer", f"{REQUEST}.reverted"
_ANSWER_TIMEOUT = 5.0  # seconds; a `run` answers at any time
_CHANGE_TIMEOUT = 30.0  # seconds, beyond the proof, in which a `run` ends a change in progress


@contextlib.contextmanager
def node_lock(ctx: Context) -> Iterator[Context]:
    """The context with the lock held. A `run` that holds the lock is asked to release it.

    If the body succeeds, that `run` does nothing more; otherwise it goes on. Raises Locked if
    another command holds the lock, or if a change in progress takes too long; Refused.
    """
    with contextlib.ExitStack() as stack:
        try:
            fd = ctx.store.take_lock()
        except Locked:
            # Left last, because `run` takes the lock again when the request ends.
            stack.enter_context(_request(ctx.store))
            fd = _wait(ctx)
        stack.callback(os.close, fd)
        yield replace(ctx, lock_fd=fd)


@contextlib.contextmanager
def _request(store: Store) -> Iterator[None]:
    path, answer = store.path(REQUEST), store.path(_ANSWER)
    fd = lock.take(path)
    try:
        if not lock.is_current(path, fd):
            raise Locked("cannot start: another revert has just ended; try again")
        files.discard(answer)
        os.ftruncate(fd, 0)  # a new request, so that an earlier answer does not count
        files.write_all(fd, b"%d\n" % os.getpid())
        try:
            yield
            if os.path.lexists(answer):
                files.move(answer, store.path(_REVERTED))
        finally:
            for name in (answer, path):
                files.discard(name)
    except OSError as error:
        raise Refused(f"cannot ask with {path}: {reason(error)}") from error
    finally:
        os.close(fd)


def _wait(ctx: Context) -> int:
    """Wait for the lock and take it. Raises Locked."""
    since, answered = ctx.clock(), False
    while True:
        if not answered and os.path.lexists(ctx.store.path(_ANSWER)):
            answered = True
            ctx.log.info("waiting for run to stand aside")
        change_timeout = _CHANGE_TIMEOUT + ctx.settings.proof_timeout
        timeout = change_timeout if answered else _ANSWER_TIMEOUT
        try:
            return ctx.store.take_lock()
        except Locked:
            if ctx.clock() - since > timeout:
                raise
        ctx.sleep(0.1)


def clear(store: Store) -> None:
    """Forget a completed revert, because a new `run` starts."""
    with contextlib.suppress(OSError):
        files.discard(store.path(_REVERTED))


def yield_to_revert(store: Store, log: Log, lock_fd: int, run: int) -> None:
    """In a child of the `run` with the pid `run`: release the lock to a revert that asks for it,
    and wait for its end. Raises StoodAside if the revert was completed; Refused."""
    path, ours = store.path(REQUEST), f"{run} {process.start_time(run)}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        fd = None
    if fd is not None:
        try:
            _release_until_end(store, log, fd, lock_fd)
        finally:
            os.close(fd)
    found = store.read(_REVERTED)
    if found is not None and found.data.decode("ascii", "replace").strip() == ours:
        with contextlib.suppress(OSError):
            fcntl.flock(lock_fd, fcntl.LOCK_UN)
        raise StoodAside(
            "cannot converge: `revert` undid the changes, and this `run` leaves the node alone; "
            "replace or restart its pod to configure the node again"
        )


def _release_until_end(store: Store, log: Log, fd: int, lock_fd: int) -> None:
    """Release the lock while a living `revert` holds the request's file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        fcntl.flock(lock_fd, fcntl.LOCK_UN)
        log.info("standing aside for revert")
        fcntl.flock(fd, fcntl.LOCK_EX)
    if lock.is_current(store.path(REQUEST), fd):  # it was killed
        with contextlib.suppress(OSError):
            for name in (_ANSWER, REQUEST):
                files.discard(store.path(name))
