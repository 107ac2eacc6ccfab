"""Nodes that the tests of a module share, one after the other.

    with nodes.lend("1.7", lambda: gpu_node(runtime), look) as node:
        ...

Invariant: each test finds the node in the same state. A test that changes that state fails, and its
node is not lent again.
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
        """Lend the node of `key` to one test. Raises AssertionError where `look` returns something
        else afterwards."""
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
