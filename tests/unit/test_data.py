"""Our dataclasses behave as the standard library's."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from agent.data import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Ours:
    """As they are used here."""

    a: int
    b: str = "b"
    c: dict[str, int] = field(default_factory=dict)

    @property
    def both(self) -> str:
        return f"{self.a}{self.b}"


@dataclasses.dataclass(frozen=True)
class Theirs:
    """The same."""

    a: int
    b: str = "b"
    c: dict[str, int] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    ("given", "named"),
    [((1,), {}), ((1, "x"), {}), ((), {"a": 1}), ((1,), {"c": {"x": 1}}), ((1, "x", {}), {}),
     ((), {}), ((1, "x", {}, 4), {}), ((1,), {"a": 2}), ((1,), {"d": 2}), ((), {"b": "x"})],
)  # fmt: skip
def test_made_as_theirs(given: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Same values from the same arguments, and an error where they have one."""
    try:
        theirs = Theirs(*given, **named)
    except TypeError:
        with pytest.raises(TypeError, match=r"Ours\(\)"):
            Ours(*given, **named)
        return
    ours = Ours(*given, **named)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert repr(ours) == repr(theirs).replace("Theirs", "Ours")
    assert ours == Ours(*given, **named) != replace(ours, a=7)
    assert ours.both == f"{theirs.a}{theirs.b}"


def test_defaults_are_not_shared() -> None:
    """Each has a fresh one."""
    assert Ours(1).c is not Ours(1).c


def test_frozen() -> None:
    """Nothing is assigned, nothing removed."""
    made = Ours(1)
    with pytest.raises(dataclasses.FrozenInstanceError, match="'a'"):
        made.a = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError, match="'a'"):
        del made.a
    assert made == Ours(1)


def test_a_key_of_a_table() -> None:
    """Equal ones are one key; with a mutable value there is no hash."""
    assert len({HASHABLE, Pair(1, (2,)), Pair(1, (3,))}) == 2
    with pytest.raises(TypeError, match="unhashable"):
        hash(Ours(1))


@dataclass(frozen=True, slots=True)
class Pair:
    x: int
    y: tuple[int, ...]


HASHABLE = Pair(1, (2,))


def test_what_else_is_expected() -> None:
    """Copies, patterns, documentation."""
    assert pickle.loads(pickle.dumps(HASHABLE)) == HASHABLE  # noqa: S301 - it is our own
    match HASHABLE:
        case Pair(x, (y,)):
            assert (x, y) == (1, 2)
        case _:
            raise AssertionError
    assert dataclasses.is_dataclass(Pair)
    assert [f.name for f in dataclasses.fields(Pair)] == ["x", "y"]
    assert Ours.__doc__ == "As they are used here."
