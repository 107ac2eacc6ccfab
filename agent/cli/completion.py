"""Completion of command lines in shells, where click's does not know an `=`.

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
    """bash makes three words of `--option=value`."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the incomplete one."""
        words, incomplete = super().get_completion_args()
        return [word for word in words if word != "="], incomplete


class _Joined(ShellComplete):
    """zsh and fish replace the whole of `--option=value`."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """What the incomplete word can become."""
        found = super().get_completions(args, incomplete)
        name, equals, _ = incomplete.partition("=")
        if equals and name.startswith("--"):
            found = [
                CompletionItem(f"{name}={one.value}", one.type, one.help)
                for one in found
                if one.type == "plain"
            ]
        return found


class _Zsh(_Joined, ZshComplete):
    pass


class _Fish(_Joined, FishComplete):
    pass


for made in (_Bash, _Zsh, _Fish):
    add_completion_class(made)


def script(shell: str, program: click.Command) -> str:
    """The script that a shell has to read."""
    found = get_completion_class(shell)
    assert found is not None
    # Not the method of bash's class, which starts a bash to ask for its version.
    return ShellComplete.source(found(program, {}, PROGRAM, VARIABLE))
