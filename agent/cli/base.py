"""The parts that all commands share: options, output, settings.

Invariant: every command accepts every option of the table.
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
    from agent.reports.node import Report

_Result = TypeVar("_Result")
_Command = TypeVar("_Command")
# The keys under which click's context keeps --color and --help-all.
_COLOR, _ALL_OPTIONS = "agent.color", "agent.every"

_LOCK_POLL = 0.5  # seconds between two tries to take the lock
_LOOK_PAUSE = 2.0  # the shortest pause between two reports, in seconds
_LOOK_SHARE = 10  # the same, in multiples of the time for a report, which can need a trial start
_EVER = "for ever"  # the value of --wait-lock without a duration


def flag(option: Option, *, concerned: bool = True) -> click.Option:
    """The click option for an entry of the table. If the option does not concern the command
    (`concerned` is false), it is accepted, but neither shown nor completed, and it has no flag of
    one letter."""
    flags = [name for name in option.all_flags if concerned or name.startswith("--")]
    several = option.kind == "list"
    return click.Option(
        [*flags, option.name], default=None, help=option.help, hidden=not concerned,
        multiple=several, callback=_joined if several else None,
        shell_complete=functools.partial(_complete, option),
    )  # fmt: skip


def _joined(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> str | None:
    """The text of a list option that was given once or several times, None if it was not given."""
    return ",".join(given) if given else None


def _complete(
    option: Option, ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem] | list[str]:
    """The completions of an incomplete value."""
    if option.kind in ("path", "file"):
        return complete_file(ctx, parameter, incomplete)
    choices = ("true", "false") if option.kind == "bool" else option.choices
    return [choice for choice in choices if choice.startswith(incomplete)]


def complete_file(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The completion that makes the shell complete a file name."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


class _WithExitCodes(click.Command):
    """A command. If it is a program's main command, its help ends with the exit codes."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit codes below the help of a program."""
        if ctx.parent is None:
            from agent.cli.help import write_exit_codes

            write_exit_codes(formatter)


class Group(_WithExitCodes, click.Group):
    """A group of commands, in the order in which they were added. Without a command, the group
    lists its commands and ends with exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as in click
        """The names of the commands."""
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line. Raises click's Exit if the command line is empty."""
        if args or ctx.resilient_parsing:  # a completion, which must print nothing
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
        ctx.meta[_ALL_OPTIONS] = True
        click.echo(ctx.get_help())
        ctx.exit()


class Command(_WithExitCodes):
    """A command with every option of the table, before its own options. The options are made when
    click asks for them, because the options of all commands take as long as the rest of --help."""

    _has_options = False
    # By the flag of a boolean option: the value of the option if it is given without one.
    _without_value: Mapping[str, str]

    def topics(self) -> Sequence[Topic]:
        """The options of the table that the command accepts, by topic."""
        from agent.options.table import TOPICS

        return TOPICS

    def command_name(self, ctx: click.Context) -> str:
        """The name of the command in the table of options."""
        return ctx.command_path.partition(" ")[2] or str(self.name)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options of the command, for click."""
        if not self._has_options:
            self._has_options = True
            help_all = click.Option(
                ["--help-all"], is_flag=True, is_eager=True, expose_value=False,
                callback=_show_all, help="Show all options and exit.",
            )  # fmt: skip
            topics, command = self.topics(), self.command_name(ctx)
            shown = {option.name for topic in topics for option in topic.for_command(command)}
            table = [option for topic in topics for option in topic.options]
            flags = [flag(option, concerned=option.name in shown) for option in table]
            self._without_value = {
                name: f"{option.all_flags[0]}=true"
                for option, one in zip(table, flags, strict=True)
                for name in (one.opts if option.kind == "bool" else ())
            }
            self.params = [*flags, *self.params, help_all]
        return super().get_params(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line. Raises click's UsageError."""
        self.get_params(ctx)
        try:
            return super().parse_args(ctx, list(_with_values(args, self._without_value)))
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options that concern the command."""
        from agent.cli.help import write_options

        table = {option.name for topic in self.topics() for option in topic.options}
        own = [one for one in self.get_params(ctx) if one.name not in table]
        write_options(
            ctx,
            formatter,
            self.topics(),
            self.command_name(ctx),
            own,
            every=ctx.meta.get(_ALL_OPTIONS, False),
        )


def _with_values(words: Sequence[str], without_value: Mapping[str, str]) -> Iterator[str]:
    """The words of a command line, in the form that click understands. A boolean option without a
    value gets one, because click would take the next word for it. `-o=json` becomes two words."""
    rest = iter(itertools.zip_longest(words, words[1:]))
    for word, after in rest:
        if word[:1] == "-" and word[1:2] != "-" and word[2:3] == "=":
            yield from (word[:2], word[3:])
        else:
            is_alone = word in without_value and after not in TRUE | FALSE
            yield without_value[word] if is_alone else word
        if word == "--":
            yield from (word for word, _ in rest)


class LongLived(Command):
    """A command that writes a log. Its errors are lines of the log, unless stderr is a terminal.
    The ready file of a dead process is removed first, before anything can fail."""

    def command_name(self, _: click.Context) -> str:
        """The name of the command in the table of options."""
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
    """The path of the ready file on the command line or in the environment, None without one. It is
    also found if another word of the command line is wrong."""
    path = os.environ.get("AGENT_READY_FILE")
    for word, after in itertools.zip_longest(args, args[1:]):
        if word == "--ready-file":
            path = after
        elif word.startswith("--ready-file="):
            path = word.partition("=")[2]
    return path if path and path.startswith("/") else None


@contextlib.contextmanager
def _errors_in_log(ctx: click.Context) -> Iterator[None]:
    try:
        yield
    except (AgentError, click.UsageError) as error:
        if sys.stderr.isatty():
            raise
        from agent.log import StderrLog, failed

        own = error if isinstance(error, AgentError) else usage_error(error, ctx.command_path)
        StderrLog().error("failed", **failed(own))
        raise SystemExit(own.exit_code) from error


def usage_error(error: click.ClickException, name: str) -> AgentError:
    """An error of click about a command line, as a UsageError. `name` is the name of the program;
    it is used for an error without a command."""
    text = " ".join(error.format_message().split())
    path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else name
    end = "" if text.endswith((".", "?", ")")) else "."
    return UsageError(f"cannot use the command line: {text}{end} See {path} --help.")


def output_option(command: _Command, forms: Sequence[str] = ()) -> _Command:
    """The command with the options --output and --color. `forms` are further choices of
    --output."""
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
    """The settings of the command line (`given`: values by name) and the environment. Raises
    UsageError."""
    from agent.options.settings import resolve

    return resolve(given, os.environ, entry)


def emit(
    output: str, result: _Result, text: Callable[[_Result, Screen], str], kind: str,
    data: Callable[[_Result], dict[str, Any]],
) -> None:  # fmt: skip
    """Print a result in the form that `output` names: as the text that `text` makes, or as a
    document of `kind` with the content that `data` makes. If standard output is no terminal, a line
    has as many columns as the variable COLUMNS says, else 80."""
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
    """The seconds of a duration such as `30s`, None without one. Raises UsageError."""
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
    """The result of `work`, which takes the node's lock. While another process holds the lock, the
    work is tried again, for `seconds` at most (None: once). Raises the errors of the work, and
    Locked only after that time."""
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


def reports(
    look: Callable[[], Report],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    seconds: float = math.inf,
) -> Iterator[Report]:
    """Reports by `look`, with pauses, for `seconds`. The last report is made at the end of that
    time; with 0 seconds it is the only one."""
    end = clock() + seconds
    while True:
        start = clock()
        yield look()
        now = clock()
        if now >= end:
            return
        sleep(min(max(_LOOK_PAUSE, _LOOK_SHARE * (now - start)), end - now))


def until_ready(all_reports: Iterator[Report]) -> Report:
    """The first report in which the node is ready, else the last one."""
    report = next(all_reports)
    while not report.ready and (later := next(all_reports, None)):
        report = later
    return report
