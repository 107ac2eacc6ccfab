"""One option of the program, and one topic of the help text.

Invariant: data only; the table of all options is in `agent.options.table`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "path", "file", "bool", "list", "choice", "duration", "version"]

# The spellings of Go's strconv.ParseBool, which reads upstream's options (MicroK8s passes 1 and 0).
TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})

# Commands that an option can concern.
RUN = ("run",)
CHANGE = ("plan", "apply", "run", "revert")
DECIDE = ("plan", "apply", "run", "status", "doctor", "verify")
NODE = (*DECIDE, "revert")
READ_SPECS = ("cdi list", "cdi validate")
MAKE_SPEC = ("cdi generate",)


@dataclass(frozen=True)
class Option:
    """One option, with its environment variables in the order of their precedence.

    `supported` is false if the program accepts the option and does nothing with it. `keep_empty`
    is true if an empty value differs from no value. `flags` is empty if the only flag is the
    name with dashes; the first flag is the usual one. A value, or each item of a list, is one of
    `choices`, or matches `pattern` as a whole; `needs` ends the error for another one.

    The rest is for help texts. `unset` says in words what holds without a value, if `default` does
    not. `commands` are those that the option concerns; it is empty if they are those of its
    topic. `main` is true if the option is in the short help text.
    """

    name: str
    kind: Kind
    env: tuple[str, ...]
    help: str
    default: str | None = None
    flags: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    pattern: str = ".*"
    needs: str = ""
    supported: bool = True
    keep_empty: bool = False
    unset: str = ""
    commands: tuple[str, ...] = ()
    main: bool = False

    @property
    def all_flags(self) -> tuple[str, ...]:
        """The flags on the command line, the usual one first."""
        return self.flags or ("--" + self.name.replace("_", "-"),)

    def allows(self, word: str) -> bool:
        """Can this be a value, or an item of a list?"""
        if self.choices:
            return word in self.choices
        return re.fullmatch(self.pattern, word) is not None


@dataclass(frozen=True)
class Topic:
    """Options that belong together in a help text, and the commands that they concern."""

    title: str
    commands: tuple[str, ...]
    options: tuple[Option, ...]

    def of(self, command: str) -> tuple[Option, ...]:
        """The options that concern a command, without those that have no effect."""
        return tuple(
            option
            for option in self.options
            if option.supported and command in (option.commands or self.commands)
        )
