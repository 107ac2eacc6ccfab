"""The parts that all commands share: options, output, settings.

Invariant: every command takes every option of the table, and prints one document.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.errors import AgentError, Locked, UsageError
from agent.options.option import FALSE, TRUE
from agent.redaction import redact_text

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from agent.cli.render.base import Screen
    from agent.options.option import Option, Topic
    from agent.options.settings import Entry, Settings
    from agent.plan.context import Context

_Result = TypeVar("_Result")
_Command = TypeVar("_Command")
# Keys of --color and --help-all among what click keeps for a command.
_COLOR, _EVERY = "agent.color", "agent.every"

_LOCK_POLL = 0.5  # seconds between two tries to take the lock
_EVER = "for ever"  # a duration without an end


def flag(option: Option, *, concerned: bool = True) -> click.Option:
    """A click option for an entry of the table. One that is not `concerned` is accepted, but it is
    neither shown nor completed, and it has no flag of one letter."""
    flags = [name for name in option.all_flags if concerned or name.startswith("--")]
    several = option.kind == "list"
    return click.Option(
        [*flags, option.name], default=None, help=option.help, hidden=not concerned,
        multiple=several, callback=_joined if several else None,
        shell_complete=functools.partial(_complete, option),
    )  # fmt: skip


def _joined(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> str | None:
    """The text of a list that was given at once or item by item."""
    return ",".join(given) if given else None


def _complete(
    option: Option, ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem] | list[str]:
    """What a shell may put in the place of an incomplete value."""
    if option.kind in ("path", "file"):
        return complete_file(ctx, parameter, incomplete)
    choices = ("true", "false") if option.kind == "bool" else option.choices
    return [choice for choice in choices if choice.startswith(incomplete)]


def complete_file(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete the name of a file."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


class _Described(click.Command):
    """A command whose help ends with the exit codes, if it is a program."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit codes below the help of a program."""
        if ctx.parent is None:
            from agent.cli.help import write_exit_codes

            write_exit_codes(formatter)


class Group(_Described, click.Group):
    """Commands in the order in which they were added. Without a command, it says which there are
    and ends with exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as in click
        """The names of the commands."""
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line. Raises click's Exit without words."""
        if args or ctx.resilient_parsing:  # to complete a command line
            return super().parse_args(ctx, args)
        formatter = ctx.make_formatter()
        self.format_usage(ctx, formatter)
        self.format_commands(ctx, formatter)
        formatter.write_paragraph()
        formatter.write_text(f"{ctx.command_path} --help says more.")
        click.echo(formatter.getvalue(), err=True, nl=False)
        raise click.exceptions.Exit(2)


def _show_all(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        ctx.meta[_EVERY] = True
        click.echo(ctx.get_help())
        ctx.exit()


class Command(_Described):
    """A command with every option of the table, before its own options. The options are made when
    click asks for them, because those of all commands take as long as the rest of --help."""

    _complete = False
    _alone: Mapping[str, str]  # by the flag of a boolean: what it means without a value

    def topics(self) -> Sequence[Topic]:
        """The options that it accepts."""
        from agent.options.table import TOPICS

        return TOPICS

    def concern(self, ctx: click.Context) -> str:
        """Its name in the table."""
        return ctx.command_path.partition(" ")[2] or str(self.name)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Give click the options."""
        if not self._complete:
            self._complete = True
            every = click.Option(
                ["--help-all"], is_flag=True, is_eager=True, expose_value=False,
                callback=_show_all, help="Show all options and exit.",
            )  # fmt: skip
            topics, command = self.topics(), self.concern(ctx)
            shown = {option.name for topic in topics for option in topic.of(command)}
            table = [option for topic in topics for option in topic.options]
            made = [flag(option, concerned=option.name in shown) for option in table]
            self._alone = {
                name: f"{option.all_flags[0]}=true"
                for option, one in zip(table, made, strict=True)
                for name in (one.opts if option.kind == "bool" else ())
            }
            self.params = [*made, *self.params, every]
        return super().get_params(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line. Raises click's UsageError."""
        self.get_params(ctx)
        try:
            return super().parse_args(ctx, list(_with_values(args, self._alone)))
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options that concern the command."""
        from agent.cli.help import write_options

        table = {option.name for topic in self.topics() for option in topic.options}
        own = [one for one in self.get_params(ctx) if one.name not in table]
        write_options(
            ctx, formatter, self.topics(), self.concern(ctx), own, every=ctx.meta.get(_EVERY, False)
        )


def _with_values(words: Sequence[str], alone: Mapping[str, str]) -> Iterator[str]:
    """The words of a command line as click understands them. A boolean option that stands alone
    gets its value, because click would take the next word for it. `-o=json` becomes two words."""
    rest = iter(itertools.zip_longest(words, words[1:]))
    for word, after in rest:
        if word[:1] == "-" and word[1:2] != "-" and word[2:3] == "=":
            yield from (word[:2], word[3:])
        else:
            yield alone[word] if word in alone and after not in TRUE | FALSE else word
        if word == "--":
            yield from (word for word, _ in rest)


class LongLived(Command):
    """A command that writes a log. Its errors are lines of the log unless stderr is a terminal. It
    removes the ready file of a dead process before anything else can fail."""

    def concern(self, _: click.Context) -> str:
        """Its name in the table."""
        return "run"

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
    """The ready file that the command line or the environment names, also if another word of the
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

        found = error if isinstance(error, AgentError) else usage_error(error, ctx.command_path)
        StderrLog().error("failed", **failed(found))
        raise SystemExit(found.exit_code) from error


def usage_error(error: click.ClickException, name: str) -> AgentError:
    """An error of click about a command line, as a UsageError. `name` is that of the program, for
    an error that does not know its command."""
    text = " ".join(error.format_message().split())
    path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else name
    end = "" if text.endswith((".", "?", ")")) else "."
    return UsageError(f"cannot use the command line: {text}{end} See {path} --help.")


def output_option(command: _Command, forms: Sequence[str] = ()) -> _Command:
    """Give a command the options about what it prints; `forms` are further choices of --output."""
    choices = ["table", *forms, "json", "yaml"]
    output = click.option(
        "-o", "--output", type=click.Choice(choices), default="table",
        metavar="|".join(choices), show_default=True, help="How to show the result.",
    )  # fmt: skip
    color = click.option(
        "--color", type=click.Choice(["auto", "always", "never"]), default="auto",
        metavar="auto|always|never", show_default=True, expose_value=False,
        callback=_remember_color, help="Colours; auto: on a terminal, unless NO_COLOR is set.",
    )  # fmt: skip
    return output(color(command))  # type: ignore[type-var]


def _remember_color(ctx: click.Context, _: click.Parameter, value: str) -> None:
    ctx.meta[_COLOR] = value


def settings_of(given: dict[str, str | None], entry: Entry = "toolkit-agent") -> Settings:
    """The settings from the command line and the environment. Raises UsageError."""
    from agent.options.settings import resolve

    return resolve(given, os.environ, entry)


def emit(
    output: str, result: _Result, text: Callable[[_Result, Screen], str], kind: str,
    data: Callable[[_Result], dict[str, Any]],
) -> None:  # fmt: skip
    """Print a result in the form that `output` names: as a text, or as a document of a kind. If
    standard output is no terminal, a line has 80 columns, or those that the variable COLUMNS
    names."""
    from agent.cli.render.base import Screen, document

    if output in ("json", "yaml"):
        click.echo(document(kind, data(result), output))
        return
    color = click.get_current_context().meta[_COLOR]
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    colored = color == "always" or (color == "auto" and sys.stdout.isatty() and not plain)
    screen = Screen(shutil.get_terminal_size((80, 24)).columns, colored)
    click.echo(redact_text(text(result, screen)), color=colored)


def duration(_: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """The seconds of a text, written as the durations of the table. Raises UsageError."""
    from agent.options.settings import parse_duration

    if text is None or text == _EVER:
        return math.inf if text else None
    return parse_duration(text, option.opts[0])


timeout_option = click.option(
    "--timeout", callback=duration, metavar="DURATION",
    help="Give up waiting after this time, such as 30s or 5m. [default: never]",
)  # fmt: skip
wait_lock_option = click.option(
    "--wait-lock", is_flag=False, flag_value=_EVER, callback=duration, metavar="[=DURATION]",
    help="Wait for another toolkit-agent that holds the lock, in place of exit code 7.",
)  # fmt: skip


def with_lock(ctx: Context, seconds: float | None, work: Callable[[], _Result]) -> _Result:
    """The result of work that takes the node's lock. While another process holds it, the work is
    tried again for so many seconds. Raises what the work raises, after the time also Locked."""
    end = ctx.clock() + (seconds or 0)
    waits = False
    while True:
        try:
            return work()
        except Locked as error:
            if ctx.clock() >= end:
                raise
            if not waits:
                ctx.log.info("waiting for the lock", reason=error.message)
            waits = True
        ctx.sleep(_LOCK_POLL)
