"""One option of the program.

Invariant: data only; the table of all options is in `agent.options.table`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "path", "bool", "list", "choice", "seconds", "duration", "version"]


@dataclass(frozen=True, slots=True)
class Option:
    """One option, with its environment variables in the order of their precedence.

    `supported` is false where the program accepts the option and does nothing with it. `keep_empty`
    is true where an empty value differs from no value. `flags` is empty where the only flag is the
    name with dashes.
    """

    name: str
    kind: Kind
    env: tuple[str, ...]
    help: str
    default: str | None = None
    flags: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    supported: bool = True
    keep_empty: bool = False

    @property
    def all_flags(self) -> tuple[str, ...]:
        """The flags on the command line, the usual one first."""
        return self.flags or ("--" + self.name.replace("_", "-"),)
