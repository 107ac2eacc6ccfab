"""Completion of command lines in shells. Unlike click's own, it completes `--option=value`.

Invariant: this module is loaded only for a script or for a completion. No shell is started.
"""

from __future__ import annotations

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    get_completion_class,
)

VARIABLE = "_TOOLKIT_AGENT_COMPLETE"
PROGRAM = "toolkit-agent"


class _Bash(BashComplete):
    """Completion in bash, which splits `--option=value` into three words."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the incomplete word."""
        words, incomplete = super().get_completion_args()
        return [word for word in words if word != "="], incomplete


class _Joined(ShellComplete):
    """Completion in zsh and fish, which replace the whole word `--option=value`."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """The completions of the incomplete word."""
        items = super().get_completions(args, incomplete)
        name, equals, _ = incomplete.partition("=")
        if equals and name.startswith("--"):
            items = [
                CompletionItem(f"{name}={one.value}", one.type, one.help)
                for one in items
                if one.type == "plain"
            ]
        return items


class _Zsh(_Joined, ZshComplete):
    pass


class _Fish(_Joined, FishComplete):
    pass


for shell_class in (_Bash, _Zsh, _Fish):
    add_completion_class(shell_class)


def script(shell: str, program: click.Command) -> str:
    """The script with which a shell (bash, zsh or fish) completes command lines of `program`."""
    completion_class = get_completion_class(shell)
    assert completion_class is not None
    # The method of bash's class is not called, because it starts a bash to ask for its version.
    return ShellComplete.source(completion_class(program, {}, PROGRAM, VARIABLE))
