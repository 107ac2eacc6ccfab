"""What an option is.

Invariant: data only; the table of all options is in `agent.options.table`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "path", "bool", "list", "choice", "seconds", "duration", "version"]


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `acted` is false while the program accepts it and does nothing with it;
    `keep_empty` marks those where an empty value has a meaning of its own."""

    name: str
    kind: Kind
    env: tuple[str, ...]
    help: str
    default: str | None = None
    flags: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    acted: bool = True
    keep_empty: bool = False

    @property
    def all_flags(self) -> tuple[str, ...]:
        return self.flags or ("--" + self.name.replace("_", "-"),)
