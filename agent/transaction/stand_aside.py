"""The protocol by which a `revert` gets the node's lock from a `run`, which then does nothing more.

Files in the state directory:

    aside           the request; the `revert` that wrote it holds a lock on it
    aside.answer    the `run` that saw the request (pid and start time)
    aside.reverted  the `run` that must do nothing more, because the revert is complete

Invariant: if one of the two processes is killed, the other does not wait for ever. A request ends
when the lock on its file is released, which the kernel does at the end of the process. If the
revert was not completed, `run` goes on. The files name one `run` process and do not count for a
later one.
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
_ANSWER_TIMEOUT = 5.0  # seconds; a `run` answers also while it waits
_CHANGE_TIMEOUT = 30.0  # seconds beyond the proof timeout in which a `run` ends its change


@contextlib.contextmanager
def node_lock(ctx: Context) -> Iterator[Context]:
    """Take the node's lock, and yield the context with it. A `run` that holds the lock is asked to
    release it.

    If the body succeeds, that `run` does nothing more; otherwise it goes on. Raises Locked if
    another command holds the lock, or if a change in progress takes too long; Refused if the
    request cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            fd = ctx.store.take_lock()
        except Locked:
            # Entered first, so that it ends last: `run` takes the lock again when it ends.
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
        raise Refused(
            f"cannot ask `run` to release the lock by {path}: {reason(error)}; make it writable"
        ) from error
    finally:
        os.close(fd)


def _wait(ctx: Context) -> int:
    """Wait until `run` releases the lock, take it, and return its descriptor. Raises Locked after
    the timeout."""
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
    """Remove the mark of a completed revert, because a new `run` starts."""
    with contextlib.suppress(OSError):
        files.discard(store.path(_REVERTED))


def yield_to_revert(store: Store, log: Log, lock_fd: int, run: int) -> None:
    """If a revert asks for the node's lock (`lock_fd`), release it and wait for the end of the
    revert. Called in a child of `run`, whose pid is `run`. Raises StoodAside if the revert was
    completed; Refused."""
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
    mark = store.read(_REVERTED)
    if mark is not None and mark.data.decode("ascii", "replace").strip() == ours:
        with contextlib.suppress(OSError):
            fcntl.flock(lock_fd, fcntl.LOCK_UN)
        raise StoodAside(
            "cannot converge: `revert` undid the changes, and this `run` leaves the node alone; "
            "replace or restart its pod to configure the node again"
        )


def _release_until_end(store: Store, log: Log, fd: int, lock_fd: int) -> None:
    """Release the lock `lock_fd` while a living `revert` holds the lock of the request's file
    `fd`."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        fcntl.flock(lock_fd, fcntl.LOCK_UN)
        log.info("standing aside for revert")
        fcntl.flock(fd, fcntl.LOCK_EX)
    if lock.is_current(store.path(REQUEST), fd):  # the revert was killed and left its request
        with contextlib.suppress(OSError):
            for name in (_ANSWER, REQUEST):
                files.discard(store.path(name))
