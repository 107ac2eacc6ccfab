"""The parts that all commands share: options, output, settings.

Invariant: every command takes every option of the table, and prints one document.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.errors import AgentError, UsageError
from agent.redaction import redact_text

if TYPE_CHECKING:
    from agent.options.option import Option
    from agent.options.settings import Entry, Settings

_Result = TypeVar("_Result")

EPILOG = """\b
Exit codes: 0 done or nothing to do; 1 plan found changes, status or wait: not ready,
doctor or cdi validate found a fault;
2 usage; 3 refused, nothing touched; 4 runtime unreachable; 5 failed and rolled back;
6 rollback failed; 7 another instance holds the lock."""


def flag(option: Option, *, shown: bool = True) -> click.Option:
    """A click option for an entry of the table. A boolean is written --x, --x=true or --x=false. An
    option that is not `shown` is accepted and is not in the help text."""
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
        hidden=not (option.supported and shown), **extra,
    )  # fmt: skip


def _joined(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> str | None:
    """The text of a list that was given at once or item by item."""
    return ",".join(given) if given else None


class Command(click.Command):
    """A command with every option of the table, before its own options. The options are made when
    click asks for them, because those of all commands take as long as the rest of --help."""

    def __init__(self, name: str | None, epilog: str = EPILOG, **given: Any) -> None:
        super().__init__(name, epilog=epilog, **given)
        self._complete = False

    def options(self) -> list[click.Option]:
        """The options of the table."""
        from agent.options.table import OPTIONS

        return [flag(option) for option in OPTIONS]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Give click the options."""
        if not self._complete:
            self._complete = True
            self.params = [*self.options(), *self.params]
        return super().get_params(ctx)


class LongLived(Command):
    """A command that writes a log. Its errors are lines of the log unless stderr is a terminal. It
    removes the ready file of a dead process before anything else can fail."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line. Raises SystemExit for a wrong option."""
        from agent.daemon.supervisor import Readiness

        if path := _ready_file(args):
            Readiness(path).remove_stale()
        with _errors_in_log(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _errors_in_log(ctx):
            return super().invoke(ctx)


def _ready_file(args: list[str]) -> str | None:
    """The ready file that the command line or the environment names, also where another word of the
    command line is wrong."""
    found = os.environ.get("AGENT_READY_FILE")
    for word, after in itertools.zip_longest(args, args[1:]):
        if word == "--ready-file":
            found = after
        elif word.startswith("--ready-file="):
            found = word.partition("=")[2]
    return found if found and found.startswith("/") else None


@contextlib.contextmanager
def _errors_in_log(ctx: click.Context) -> Iterator[None]:
    try:
        yield
    except (AgentError, click.UsageError) as error:
        if sys.stderr.isatty():
            raise
        from agent.log import StderrLog, failed

        name = ctx.find_root().info_name or ""
        found = error if isinstance(error, AgentError) else usage_error(error, name)
        StderrLog().error("failed", **failed(found))
        raise SystemExit(found.exit_code) from error


def usage_error(error: click.ClickException, name: str) -> AgentError:
    """An error of click about a command line of the program `name`, as a UsageError."""
    text = error.format_message().rstrip(".")
    return UsageError(f"cannot use the command line: {text}; see {name} --help")


output_option = click.option(
    "-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table",
    show_default=True, help="How to show the result.",
)  # fmt: skip


def settings_of(given: dict[str, str | None], entry: Entry = "toolkit-agent") -> Settings:
    """The settings from the command line and the environment. Raises UsageError."""
    from agent.options.settings import resolve

    return resolve(given, os.environ, entry)


def emit(
    output: str, result: _Result, text: Callable[[_Result], str], kind: str,
    data: Callable[[_Result], dict[str, Any]],
) -> None:  # fmt: skip
    """Print a result in the form that `output` names: as a text, or as a document of a kind."""
    if output == "table":
        click.echo(redact_text(text(result)))
    else:
        from agent.cli.render.base import document

        click.echo(document(kind, data(result), output))
