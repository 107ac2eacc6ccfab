"""The command line.

Invariant: the only module that imports click. Data goes to stdout, everything else to stderr; an
error is one line that starts with "cannot", with the exit code of its class.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import click

from agent import __version__
from agent.errors import AgentError, Locked
from agent.start import run_and_end

if TYPE_CHECKING:
    from agent.engine.context import Context
    from agent.option import Option
    from agent.settings import Entry, Settings

_EPILOG = """\b
Exit codes: 0 done or nothing to do; 1 plan found changes, status or wait: not ready;
2 usage; 3 refused, nothing touched; 4 runtime unreachable; 5 failed and rolled back;
6 rollback failed; 7 another instance holds the lock."""

_HELP = """Make this node's container runtime right for NVIDIA GPUs and CDI, and never break it.

It asks the runtime itself whether it injects CDI devices, registers the nvidia handlers in its
configuration, restarts it, proves the result and publishes the decision in `toolkit-ready`. What
cannot be proven is undone.

\b
  toolkit-agent plan     what would be done, and why; changes nothing
  toolkit-agent apply    do it
  toolkit-agent status   what is
  toolkit-agent config   every option, and where its value comes from
  toolkit-agent revert   back to the files of before
  toolkit-agent run      do it, and keep the node right until stopped
"""


def _flag(option: Option) -> click.Option:
    """A click option for an entry of the table; booleans are written --x, --x=true, --x=false."""
    env = f" [{', '.join(option.env)}]" if option.env else ""
    default = f" Default: {option.default}." if option.default else ""
    extra: dict[str, Any] = {"metavar": option.kind.upper()}
    if option.kind == "bool":
        extra = {"is_flag": False, "flag_value": "true", "metavar": "BOOL"}
    elif option.kind == "choice":
        extra = {"metavar": "|".join(option.choices)}
    return click.Option(
        [*option.all_flags, option.name], default=None, help=f"{option.help}{default}{env}",
        hidden=not option.acted, **extra,
    )  # fmt: skip


class _Command(click.Command):
    """A command with every option of the table, before its own. They are made when it is called:
    for all commands that takes as long as the rest of --help."""

    def __init__(self, name: str | None, **given: Any) -> None:
        super().__init__(name, epilog=_EPILOG, **given)
        self._complete = False

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options, as click asks for them."""
        if not self._complete:
            from agent.options import OPTIONS

            self._complete = True
            self.params = [*map(_flag, OPTIONS), *self.params]
        return super().get_params(ctx)


_output = click.option(
    "-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table",
    show_default=True, help="How to show the result.",
)  # fmt: skip


@click.group(help=_HELP, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="toolkit-agent")
def cli() -> None:
    """The group; commands are below."""


@cli.command(cls=_Command)
@_output
def plan(output: str, **given: str | None) -> None:
    """Show the decision with its evidence, the diff of every file, and restarts. Writes nothing."""
    from agent import render
    from agent.engine.propose import propose

    ctx = _context(given)
    proposal = propose(ctx, ctx.store.memory())
    _emit(output, lambda: render.plan_text(proposal), "Plan", lambda: render.plan_data(proposal))
    if not proposal.right:
        raise SystemExit(1)


@cli.command(cls=_Command)
@_output
def apply(output: str, **given: str | None) -> None:
    """Make the node right, once; on a node that is right it writes and restarts nothing."""
    from agent import render
    from agent.engine.converge import converge

    outcome = converge(_context(given))
    _emit(
        output, lambda: render.outcome_text(outcome), "Outcome",
        lambda: render.outcome_data(outcome),
    )  # fmt: skip


@cli.command(cls=_Command)
def run(**given: str | None) -> None:
    """Make the node right, publish, and keep it right until stopped; SIGHUP: look now.

    Stopping it leaves the node as it is.
    """
    _keep(given, "toolkit-agent")


@cli.command("converge-child", cls=_Command, hidden=True)
@click.option("--lock-fd", type=int, required=True)
@click.option("--watch-fd", type=int, required=True)
@click.option("--since", type=float, required=True)
@click.option("--told", type=int, default=0)
@click.option("--entry", type=click.Choice(["toolkit-agent", "nvidia-toolkit"]), required=True)
def converge_child(
    lock_fd: int, watch_fd: int, since: float, told: int, entry: Entry, **given: str | None
) -> None:
    """One convergence of run; started by it, and of no use to anybody else."""
    from agent.daemon import child

    inherited = child.Inherited(lock_fd, watch_fd, since, told)
    ctx = _context(given, entry, tell=False)  # its parent has told
    code = child.work(ctx, inherited, _say)
    raise SystemExit(code)


@cli.command(cls=_Command)
@_output
def status(output: str, **given: str | None) -> None:
    """Show runtime, CDI, handlers, files, status file, drift and the last transaction."""
    from agent import render
    from agent.engine.report import report

    found = report(_context(given))
    _emit(output, lambda: render.report_text(found), "Status", found.data)
    if not found.ready:
        raise SystemExit(1)


@cli.command(cls=_Command)
@click.option("--keep-edits", is_flag=True, help="Take our keys out of files edited since.")
@click.option("--toolkit", "and_toolkit", is_flag=True, help="Remove the installed toolkit too.")
@_output
def revert(output: str, *, keep_edits: bool, and_toolkit: bool, **given: str | None) -> None:
    """Put the original files back, restart the runtime on them and prove it."""
    from agent import render
    from agent.engine.revert import revert as undo

    done = undo(_context(given), keep_edits=keep_edits, toolkit=and_toolkit)
    _emit(
        output, lambda: render.reverted_text(done), "Reverted", lambda: render.reverted_data(done)
    )


@cli.command(cls=_Command)
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds; default: for ever.")
def wait(timeout: float | None, **given: str | None) -> None:
    """Block until the decision is published, then print its lines. For init containers."""
    import time

    from agent import status as contract
    from agent.host.paths import open_host_root
    from agent.observe.process import boot_id

    settings = _settings(given)
    directory = open_host_root(settings.host_root).locate(settings.status_dir).agent
    try:
        values = contract.wait(directory, boot_id(), timeout, time.monotonic, time.sleep)
    except AgentError as error:
        click.echo(error.message, err=True)
        raise SystemExit(1) from error
    click.echo("".join(f"{key}={value}\n" for key, value in values.items()), nl=False)


@cli.command(cls=_Command)
@_output
def config(output: str, **given: str | None) -> None:
    """Show every option with its value and where that came from; `-`: found on the node.

    Needs neither a runtime nor root.
    """
    from agent import render
    from agent.settings import effective

    settings = _settings(given)
    values = effective(settings)
    for text in settings.warnings:
        click.echo(f"warning: {text}", err=True)
    _emit(output, lambda: render.config_text(values), "Config", lambda: render.config_data(values))


@cli.group()
def cdi() -> None:
    """Container Device Interface specs."""


@cdi.command(cls=_Command)
@click.option(
    "--mode",
    "spec_mode",
    type=click.Choice(["management"]),
    default="management",
    show_default=True,
    help="Which spec: management has the one device `all`.",
)
@click.option(
    "--format", "form", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True,
    help="How to write it.",
)  # fmt: skip
def generate(spec_mode: str, form: str, **given: str | None) -> None:
    """Print the spec that `apply` writes. Needs no runtime and no NVML."""
    from agent.cdi.generate import management
    from agent.host.paths import open_host_root
    from agent.toolkit import programs

    assert spec_mode == "management"
    settings = _settings(given)
    host = open_host_root(settings.host_root)
    hook = programs.find(settings, host, programs.CDI_HOOK)
    text, warnings = management(settings, host, form, hook=hook)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(text, nl=False)


def _settings(given: dict[str, str | None], entry: Entry = "toolkit-agent") -> Settings:
    from agent.settings import resolve

    return resolve(given, os.environ, entry)


def _context(
    given: dict[str, str | None], entry: Entry = "toolkit-agent", *, tell: bool = True
) -> Context:
    from agent.engine.context import open_context
    from agent.log import logger

    settings = _settings(given, entry)
    log = logger(debug=settings.debug)
    for text in settings.warnings if tell else ():
        log("warning", text=text)
    return open_context(settings, log)


def _emit(
    output: str, text: Callable[[], str], kind: str, data: Callable[[], dict[str, Any]]
) -> None:
    if output == "table":
        click.echo(text())
    else:
        from agent.render import document

        click.echo(document(kind, data(), output))


@click.command(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
def toolkit(**given: str | None) -> None:
    """Entry point for gpu-operator: run with upstream's names and defaults.

    With --no-daemon it ends after the convergence. Stopping it leaves the node as it is.
    """
    _keep(given, "nvidia-toolkit")


def _keep(given: dict[str, str | None], entry: Entry) -> None:
    """What `run` does. It does not return: this process becomes the waiting one."""
    from agent.engine.converge import converge, tell

    ctx = _context(given, entry)
    from agent.daemon.start import become_supervisor, pid_file

    try:
        if ctx.settings.no_daemon:
            with pid_file(ctx):
                converge(ctx)
            return
        become_supervisor(ctx, _again(given))
    except Locked:
        raise
    except AgentError as error:
        tell(ctx, error)
        raise


def _again(given: dict[str, str | None]) -> list[str]:
    """The options as they were given, for a child's command line."""
    from agent.options import OPTIONS

    values = ((option, given.get(option.name)) for option in OPTIONS)
    return [f"{option.all_flags[0]}={value}" for option, value in values if value is not None]


def _run(command: click.Command, name: str) -> int:
    """Run a command; every failure becomes one line and an exit code."""
    try:
        command.main(prog_name=name, standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except SystemExit as error:
        return int(error.code or 0)
    except click.ClickException as error:
        text = error.format_message().rstrip(".")
        _say(f"cannot use the command line: {text}; see {name} --help")
        return error.exit_code
    except click.Abort:
        return 130
    except AgentError as error:
        _say(error.message)
        return error.exit_code
    return 0


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the exit code tells it too
        click.echo(text, err=True)


def main() -> NoReturn:
    """`toolkit-agent`."""
    run_and_end(lambda: _run(cli, "toolkit-agent"))


def nvidia_toolkit() -> NoReturn:
    """`nvidia-toolkit`."""
    run_and_end(lambda: _run(toolkit, "nvidia-toolkit"))
