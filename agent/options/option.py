"""One option of the program, and one topic of the help text.

Invariant: data only; the table of all options is in `agent.options.table`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "path", "file", "bool", "list", "choice", "duration", "version"]

# The spellings of Go's strconv.ParseBool, as in NVIDIA's programs (MicroK8s passes 1 and 0).
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
    """One option. `env` has its environment variables in the order of precedence.

    `supported`: false if the option is accepted and has no effect. `keep_empty`: an empty value
    differs from no value. `flags` is empty if the only flag is the name with dashes; the first flag
    is the usual one. A value, or each item of a list, must be one of `choices`, or match the whole
    `pattern`; `needs` is the end of the error otherwise.

    The other fields are for help texts. `unset` describes the behaviour without a value, if there
    is no `default`. `commands` are those that the option concerns; () means those of its topic.
    `main`: the option is in the short help text.
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
        """Is the word valid as a value, or as an item of a list?"""
        if self.choices:
            return word in self.choices
        return re.fullmatch(self.pattern, word) is not None


@dataclass(frozen=True)
class Topic:
    """Options that belong together in a help text, and the commands that they concern."""

    title: str
    commands: tuple[str, ...]
    options: tuple[Option, ...]

    def for_command(self, command: str) -> tuple[Option, ...]:
        """The supported options that concern a command."""
        return tuple(
            option
            for option in self.options
            if option.supported and command in (option.commands or self.commands)
        )
