"""What commands have in common: options, output, settings.

Invariant: every command takes every option of the table, and prints one document.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from agent.userinfo import without_userinfo

if TYPE_CHECKING:
    from agent.option import Option
    from agent.settings import Entry, Settings

EPILOG = """\b
Exit codes: 0 done or nothing to do; 1 plan found changes, status or wait: not ready,
cdi validate found something;
2 usage; 3 refused, nothing touched; 4 runtime unreachable; 5 failed and rolled back;
6 rollback failed; 7 another instance holds the lock."""


def flag(option: Option, *, shown: bool = True) -> click.Option:
    """A click option for an entry of the table; booleans are written --x, --x=true, --x=false.
    Not `shown`: it is taken, and not in the help text."""
    env = f" [{', '.join(option.env)}]" if option.env else ""
    default = f" Default: {option.default}." if option.default else ""
    extra: dict[str, Any] = {"metavar": option.kind.upper()}
    if option.kind == "bool":
        extra = {"is_flag": False, "flag_value": "true", "metavar": "BOOL"}
    elif option.kind == "choice":
        extra = {"metavar": "|".join(option.choices)}
    elif option.kind == "list":
        extra |= {"multiple": True, "callback": _joined}
    return click.Option(
        [*option.all_flags, option.name], default=None, help=f"{option.help}{default}{env}",
        hidden=not (option.acted and shown), **extra,
    )  # fmt: skip


def _joined(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> str | None:
    """A list may be given at once or item by item."""
    return ",".join(given) if given else None


class Command(click.Command):
    """A command with every option of the table, before its own. They are made when it is called:
    for all commands that takes as long as the rest of --help."""

    def __init__(self, name: str | None, epilog: str = EPILOG, **given: Any) -> None:
        super().__init__(name, epilog=epilog, **given)
        self._complete = False

    def options(self) -> list[click.Option]:
        """The options of the table."""
        from agent.options import OPTIONS

        return [flag(option) for option in OPTIONS]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options, as click asks for them."""
        if not self._complete:
            self._complete = True
            self.params = [*self.options(), *self.params]
        return super().get_params(ctx)


output_option = click.option(
    "-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table",
    show_default=True, help="How to show the result.",
)  # fmt: skip


def settings_of(given: dict[str, str | None], entry: Entry = "toolkit-agent") -> Settings:
    """The settings that the command line and the environment give."""
    from agent.settings import resolve

    return resolve(given, os.environ, entry)


def emit(
    output: str, text: Callable[[], str], kind: str, data: Callable[[], dict[str, Any]]
) -> None:
    """Print a result as it was asked for."""
    if output == "table":
        click.echo(without_userinfo(text()))
    else:
        from agent.render import document

        click.echo(document(kind, data(), output))
