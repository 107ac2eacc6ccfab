"""System calls that fail at a chosen moment, and a process that is killed there.

    faults = Faults.failing(3, errno.ENOSPC)   # the third call fails
    with faults.installed():
        files.write(path, state)

The modules that change files say `os.something(...)`; `installed` gives them another `os`, which
counts and records these calls, and fails as told. Nothing else in the process is affected.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from unittest import mock

from agent import status
from agent.host import files, nofollow, trees
from agent.state import store
from agent.toolkit import device_nodes
from agent.transaction import file_changes

# What a kernel can refuse. `path.exists` and its like answer False for an error: no failure.
CALLS = (
    "open read write fsync fstat fchmod fchown close rename unlink mkdir rmdir listdir "
    "getxattr setxattr link symlink chmod mknod"
).split()
# What needs room on the disk.
_ALLOCATING = frozenset({"write", "mkdir"})
_CHANGING = frozenset(
    "link symlink write rename exchange unlink mkdir rmdir chmod fchmod fchown mknod".split()
)
_MODULES = (files, device_nodes, trees, store, file_changes, status)

CODES = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EPERM)


class Killed(BaseException):
    """SIGKILL, as far as Python can play it: no later call has an effect either."""


@dataclass
class Faults:
    """Decides about each call, by its number (from 1), name and arguments, and remembers it."""

    decide: Callable[[int, str, tuple[Any, ...]], BaseException | None]
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    @classmethod
    def none(cls) -> Self:
        """Nothing fails; calls are recorded."""
        return cls(lambda _number, _name, _args: None)

    @classmethod
    def failing(cls, at: int, code: int) -> Self:
        """Call number `at` fails, and no other."""
        return cls(
            lambda number, _name, _args: OSError(code, os.strerror(code)) if number == at else None
        )

    @classmethod
    def read_only_disk(cls, since: int) -> Self:
        """From call number `since` on, nothing can be changed: the kernel met an error."""

        def decide(number: int, name: str, args: tuple[Any, ...]) -> BaseException | None:
            opens = name == "open" and bool(args[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR))
            if number >= since and (opens or name in _CHANGING):
                return OSError(errno.EROFS, os.strerror(errno.EROFS))
            return None

        return cls(decide)

    @classmethod
    def full_disk(cls, since: int = 1) -> Self:
        """From call number `since` on, nothing that needs room succeeds."""

        def decide(number: int, name: str, args: tuple[Any, ...]) -> BaseException | None:
            creates = name == "open" and bool(args[1] & os.O_CREAT)
            if number >= since and (creates or name in _ALLOCATING):
                return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return None

        return cls(decide)

    @classmethod
    def killed(cls, at: int) -> Self:
        """The process ends before call number `at`."""
        return cls(lambda number, _name, _args: Killed() if number >= at else None)

    def called(self, name: str, *also: str) -> list[tuple[str, str]]:
        """Calls of these names in order, each with the name of the file that it makes or takes."""
        wanted = (name, *also)
        return [(n, Path(str(args[-1])).name) for n, args in self.calls if n in wanted]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the modules that change files run into this."""
        with ExitStack() as stack:
            for module in _MODULES:
                stack.enter_context(mock.patch.object(module, "os", _Os(self)))
            # Opening a directory counts as one call.
            walk = _Os(self).wrapped("walk", nofollow.walk)
            stack.enter_context(mock.patch.object(nofollow, "walk", walk))
            exchange = _Os(self).wrapped("exchange", trees.exchange)
            stack.enter_context(mock.patch.object(trees, "exchange", exchange))
            yield

    def enter(self, name: str, args: tuple[Any, ...]) -> BaseException | None:
        """Count one call; gives what it ends with."""
        self.calls.append((name, args))
        return self.decide(len(self.calls), name, args)


class _Os:
    """The module `os`, with a fault in it."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self.wrapped(name, real) if name in CALLS else real

    def wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """A call that may fail before it does anything."""

        def call(*args: Any, **kwargs: Any) -> Any:
            error = self._faults.enter(name, args)
            if error is not None:
                if name == "close":
                    real(*args)  # the kernel closes it even where it reports an error
                raise error
            # Whether bytes reached the disk cannot be seen here; waiting for them takes minutes.
            return None if name == "fsync" else real(*args, **kwargs)

        return call


def count(action: Callable[[], object]) -> int:
    """How many calls an action makes where nothing fails."""
    faults = Faults.none()
    with faults.installed():
        action()
    return len(faults.calls)
