"""A check and what it finds.

Invariant: a check only reads. A check that cannot see what it judges raises one of `UNSEEN`; it is
not a check that found nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from agent.doctor.node import Node

Severity = Literal["fault", "warning", "info"]
ORDER: Sequence[Severity] = ("fault", "warning", "info")


@dataclass(frozen=True)
class Found:
    """What a check found: a sentence, the evidence for it, and what to do if that is not what the
    check says in general."""

    severity: Severity
    text: str
    evidence: tuple[str, ...] = ()
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """An entry of a table. `id` never changes its meaning; `why` says what comes of such a finding,
    and `remedy` what to do. `find` may raise one of `UNSEEN`."""

    id: str
    title: str
    why: str
    remedy: str
    find: Callable[[Node], Iterable[Found]]


def split(message: str) -> tuple[str, str]:
    """An error of ours as what is wrong and what to do: a semicolon stands between them."""
    text, _, remedy = message.partition("; ")
    return text, remedy
