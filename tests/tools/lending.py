"""Nodes that the tests of a module share, one after the other.

    with nodes.lend("1.7", lambda: gpu_node(runtime), look) as node:
        ...

Invariant: a test finds a node as the one before it did. One that was not put back fails the test
that had it, and is given to no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Lending(Generic[T]):
    """What is lent, by a key; each is made when it is first asked for."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[T, ExitStack]] = {}

    @contextmanager
    def lend(
        self, key: str, make: Callable[[], AbstractContextManager[T]], look: Callable[[T], object]
    ) -> Iterator[T]:
        """For one test. An AssertionError where `look` does not see at the end what it saw at the
        beginning."""
        if key not in self._open:
            stack = ExitStack()
            self._open[key] = (stack.enter_context(make()), stack)
        lent, stack = self._open[key]
        try:
            before = look(lent)
            yield lent
            assert look(lent) == before, "the test did not put back what it changed"
        except BaseException:
            del self._open[key]
            stack.close()
            raise

    def close(self) -> None:
        """End all that is still there."""
        while self._open:
            self._open.popitem()[1][1].close()
