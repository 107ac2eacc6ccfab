"""The commands about the program itself: `version` and `completion`.

Invariant: neither command reads anything of the host root or asks a runtime.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from agent import __version__
from agent.cli.base import Command, emit, output_option

if TYPE_CHECKING:
    from agent.cli.render.base import Screen

CRI_API = "runtime.v1"
SHELLS = ("bash", "zsh", "fish")


@click.command(cls=Command, short_help="Print the versions of the agent and of what it runs on.")
@output_option
def version(output: str, **_: str | None) -> None:
    """Print the versions of the agent, of the CRI that it speaks, of its documents, of Python and
    of the kernel."""
    emit(output, versions(), _text, "Version", dict)


def versions() -> Mapping[str, str]:
    """The versions by name, as in the document of kind Version."""
    from agent.cli.render.base import API

    kernel = os.uname()
    return {
        "agent": __version__,
        "cri": CRI_API,
        "documents": API,
        "python": sys.version.split()[0],
        "kernel": kernel.release,
        "machine": kernel.machine,
    }


def _text(by_name: Mapping[str, str], _: Screen) -> str:
    return "\n".join(f"{name + ':':<10} {value}" for name, value in by_name.items())


@click.command(cls=Command, short_help="Print a script that completes command lines in a shell.")
@click.argument("shell", type=click.Choice(SHELLS), metavar="|".join(SHELLS))
def completion(shell: str, **_: str | None) -> None:
    """Print a script with which a shell completes commands, options, their values and file names.

    \b
    bash  source <(toolkit-agent completion bash)
    zsh   source <(toolkit-agent completion zsh)      after compinit
    fish  toolkit-agent completion fish | source
    """
    from agent.cli.completion import script

    click.echo(script(shell, click.get_current_context().find_root().command))
