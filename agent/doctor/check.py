"""A check of the node, and its symptoms.

Invariant: a check only reads. If a check cannot see the part of the node that it judges, it raises
one of `UNSEEN`; that differs from a check without symptoms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from agent.doctor.node import Node

Severity = Literal["fault", "warning", "info"]
ORDER: Sequence[Severity] = ("fault", "warning", "info")


@dataclass(frozen=True)
class Symptom:
    """A symptom that a check sees: a sentence, and the evidence. `remedy` replaces the check's
    remedy; "" keeps it."""

    severity: Severity
    text: str
    evidence: tuple[str, ...] = ()
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """An entry of a table of checks. `id` never changes its meaning. `title` says what should hold,
    `why` the consequence if it does not, and `remedy` what to do. `find` gives the symptoms, and
    may raise one of `UNSEEN`."""

    id: str
    title: str
    why: str
    remedy: str
    find: Callable[[Node], Iterable[Symptom]]


def split(message: str) -> tuple[str, str]:
    """The problem and the remedy in a message of ours, which are separated by a semicolon."""
    text, _, remedy = message.partition("; ")
    return text, remedy
