"""The command line.

Invariant: click is imported in this package only. Data goes to stdout, all other text to stderr. An
error is one line that starts with "cannot", and the exit code is that of its class.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import click

from agent import __version__
from agent.cli import about
from agent.cli.base import (
    Command,
    Group,
    LongLived,
    complete_file,
    emit,
    output_option,
    reports,
    settings_of,
    timeout_option,
    until_ready,
    usage_error,
    wait_lock_option,
    with_lock,
)
from agent.cli.cdi import cdi
from agent.cli.start import run_and_end
from agent.errors import AgentError, Refused
from agent.redaction import redact_text

if TYPE_CHECKING:
    from agent.cli.render.plan import Diffs
    from agent.log import Log, StderrLog
    from agent.options.settings import Entry, Settings
    from agent.plan.context import Context

_HELP = """Configure this node's container runtime for NVIDIA GPUs and CDI, and prove the result.

The agent asks the runtime whether it injects CDI devices, registers NVIDIA's handlers in its
configuration, restarts it, proves the result, and publishes the decision in `toolkit-ready`. A
change that cannot be proven is undone.
"""


@click.group(cls=Group, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="toolkit-agent")
def cli() -> None:
    """Group the commands."""


@cli.command(cls=Command, short_help="Show what apply would do, and why; change nothing.")
@click.option(
    "--diff", "diffs", type=click.Choice(["all", "config", "none"]), default="config",
    metavar="all|config|none", show_default=True,
    help="Files that are shown as a diff; config: the runtime's.",
)  # fmt: skip
@output_option
def plan(output: str, diffs: Diffs, **given: str | None) -> None:
    """Show the decision, the changes that apply would make, and their diffs. Writes nothing.

    If apply would refuse, the reason is shown. The exit code is 1 if there is a change to make, or
    if apply would refuse.
    """
    _plan(output, given, diffs)


def _plan(output: str, given: dict[str, str | None], diffs: Diffs = "config") -> None:
    from functools import partial

    from agent.cli.render import plan as render_plan
    from agent.plan.context import reading_context
    from agent.plan.propose import preview

    settings = settings_of(given)
    with _progress(settings, "looking at the node and trying the change") as log:
        proposal = preview(*reading_context(settings, log))
    emit(output, proposal, partial(render_plan.text, diffs=diffs), "Plan", render_plan.data)
    if not proposal.nothing_to_do:
        raise SystemExit(1)


@cli.command(cls=Command, short_help="Configure the node once.")
@click.option("--dry-run", is_flag=True, help="Do what `plan` does, with its exit codes.")
@click.option("--retry", is_flag=True, help="Try a change that failed before once more.")
@wait_lock_option
@output_option
def apply(
    output: str, *, dry_run: bool, retry: bool, wait_lock: float | None, **given: str | None
) -> None:
    """Configure the node once. If it is configured as decided, nothing is written or restarted."""
    from dataclasses import replace

    from agent.cli.render import apply as render_apply
    from agent.plan.context import open_context
    from agent.transaction.converge import converge

    if dry_run:
        _plan(output, given)
        return
    settings = settings_of(given)
    with _progress(settings, "looking at the node and trying the change") as log:
        ctx = replace(_require_rights(open_context(settings, log)), refresh=True, retry=retry)
        outcome = with_lock(ctx, wait_lock, lambda: converge(ctx))
    emit(output, outcome, render_apply.outcome_text, "Outcome", render_apply.outcome_data)


@cli.command(cls=LongLived, short_help="Configure the node, and keep it configured.")
def run(**given: str | None) -> None:
    """Configure the node, publish the decision, and keep the node configured. SIGHUP: check now.

    Stopping it leaves the node as it is.
    """
    _run_until_stopped(given, "toolkit-agent")


@cli.command("converge-child", cls=Command, hidden=True)
@click.option("--lock-fd", type=int, required=True)
@click.option("--watch-fd", type=int, required=True)
@click.option("--since", type=float, required=True)
@click.option("--logged-fd", type=int, required=True)
@click.option("--refresh", is_flag=True)
@click.option("--barrier", is_flag=True)
@click.option("--entry", type=click.Choice(["toolkit-agent", "nvidia-toolkit"]), required=True)
def converge_child(
    *, lock_fd: int, watch_fd: int, logged_fd: int, since: float, refresh: bool, barrier: bool,
    entry: Entry, **given: str | None,
) -> None:  # fmt: skip
    """Converge once as a child of `run`, from which the descriptors are inherited."""
    from agent.daemon import child

    ctx = _context(given, entry, warn=False)  # the parent has logged these warnings
    code = child.work(
        ctx, lock=lock_fd, pipe=watch_fd, logged=logged_fd, since=since, refresh=refresh,
        barrier=barrier,
    )  # fmt: skip
    raise SystemExit(code)


@cli.command(cls=Command, short_help="Show what is wrong, then the state of the node.")
@click.option("-w", "--watch", "watching", is_flag=True, help="Show it again and again.")
@click.option("--wait", "waiting", is_flag=True, help="Wait until the node is ready.")
@timeout_option
@output_option
def status(
    output: str, *, watching: bool, waiting: bool, timeout: float | None, **given: str | None
) -> None:
    """Show what is wrong with this node, then its runtime, handlers, CDI, files and status file.

    The exit code is 1 if the node is not ready.
    """
    import time

    from agent.cli.render import status as render_status
    from agent.plan.context import reading_context
    from agent.reports.node import Report, report

    settings = settings_of(given)

    def look() -> Report:
        return report(reading_context(settings, log)[0])

    def show(shown: Report) -> None:
        if watching:
            click.clear()  # on a terminal only
        emit(output, shown, render_status.text, "Status", render_status.data)
        sys.stdout.flush()

    words = "waiting until the node is ready" if waiting else "looking at the node"
    with _progress(settings, words) as log:
        seconds = 0 if not waiting else math.inf if timeout is None else timeout
        first = until_ready(reports(look, time.monotonic, time.sleep, seconds))
    show(first)
    if watching:
        with contextlib.suppress(KeyboardInterrupt):
            for later in reports(look, time.monotonic, time.sleep):
                show(later)
    elif not first.ready:
        raise SystemExit(1)


@cli.command(cls=Command, short_help="Say what is wrong, why it matters and what to do.")
@click.option(
    "--bundle",
    metavar="FILE",
    shell_complete=complete_file,
    help="Also write an archive for a bug report.",
)
@output_option
def doctor(output: str, bundle: str | None, **given: str | None) -> None:
    """Say what is wrong with this node, why it matters and what to do, the worst first.

    It also works on nodes that other tools configured, and changes nothing. The exit code is 1 if
    there is a fault.
    """
    from agent.cli import progress
    from agent.cli.render import doctor as render_doctor
    from agent.doctor.diagnosis import diagnose
    from agent.doctor.node import Node
    from agent.log import Silent
    from agent.plan.context import reading_context
    from agent.reports.node import report

    settings = settings_of(given)
    ctx, _ = reading_context(settings, _log(settings, warn=False))
    with progress.showing(Silent(), "looking at the node"):
        node_report = report(ctx)
        diagnosis = diagnose(Node(ctx, node_report))
    if bundle:
        from agent.cli import bundle as archive

        archive.write(bundle, ctx.settings, node_report, diagnosis)
    emit(output, diagnosis, render_doctor.text, "Doctor", render_doctor.data)
    if diagnosis.faults:
        raise SystemExit(1)


@cli.command(cls=Command, short_help="Prove that pods run and get their devices.")
@output_option
def verify(output: str, **given: str | None) -> None:
    """Prove on the running runtime that pods run and that a CDI device reaches a container.

    It runs a pod of its own under the default handler and each of ours, from the sandbox image that
    is on the node, and removes it. Exit code: 0 proven, 1 a proof failed, 3 not tried.
    """
    from agent.cli import progress
    from agent.cli.render import verify as render_verify
    from agent.log import Silent
    from agent.plan.context import open_host
    from agent.verify.verify import verify as prove

    settings = settings_of(given)
    with progress.showing(Silent(), "running a pod under each handler"):
        verification = prove(settings, open_host(settings))
    emit(output, verification, render_verify.text, "Verification", render_verify.data)
    raise SystemExit({"ok": 0, "failed": 1, "undecided": 3}[verification.result])


@cli.command(cls=Command, short_help="Restore the original files.")
@click.option("--keep-edits", is_flag=True, help="Remove only our keys from files edited since.")
@click.option("--toolkit", "and_toolkit", is_flag=True, help="Remove the installed toolkit too.")
@wait_lock_option
@output_option
def revert(
    output: str, *, keep_edits: bool, and_toolkit: bool, wait_lock: float | None,
    **given: str | None,
) -> None:  # fmt: skip
    """Restore the original files, restart the runtime on them, and prove the result."""
    from agent.cli.render import apply as render_apply
    from agent.plan.context import open_context
    from agent.transaction.revert import revert as undo

    settings = settings_of(given)
    with _progress(settings, "looking at the node") as log:
        ctx = _require_rights(open_context(settings, log))
        done = with_lock(
            ctx, wait_lock, lambda: undo(ctx, keep_edits=keep_edits, toolkit=and_toolkit)
        )
    emit(output, done, render_apply.reverted_text, "Reverted", render_apply.reverted_data)


@cli.command(cls=Command, short_help="Block until the decision is published, and print it.")
@timeout_option
def wait(timeout: float | None, **given: str | None) -> None:
    """Block until the decision is published, then print its lines. For init containers.

    The exit code is 1 after the timeout.
    """
    import time

    from agent import status as contract
    from agent.cri.process import boot_id
    from agent.host import trust
    from agent.host.paths import open_host_root

    settings = settings_of(given)
    host = open_host_root(settings.host_root, [settings.status_dir])
    directory = trust.system_name(host, settings.status_dir)
    try:
        with _progress(settings, "waiting for the decision"):
            values = contract.wait(host, directory, boot_id(), timeout, time.monotonic, time.sleep)
    except AgentError as error:
        last = contract.read_error(host, directory)
        click.echo(error.message + (f"; the last failure: {last}" if last else ""), err=True)
        raise SystemExit(1) from error
    click.echo("".join(f"{key}={value}\n" for key, value in values.items()), nl=False)


@cli.command(cls=Command, short_help="Show every option, its value and the value's origin.")
@output_option
def config(output: str, **given: str | None) -> None:
    """Show every option, its value (`-`: determined on the node) and the origin of the value.

    It accepts the options of all commands (`toolkit-agent run --help-all` shows them), and needs
    neither a runtime nor root.
    """
    from agent.cli.render import config as render_config

    settings = settings_of(given)
    for text in settings.warnings:
        _print_error(f"warning: {text}")
    emit(output, settings, render_config.text, "Config", render_config.data)


cli.add_command(cdi)
cli.add_command(about.version)
cli.add_command(about.completion)


def _context(
    given: dict[str, str | None], entry: Entry = "toolkit-agent", *, warn: bool = True
) -> Context:
    """The context of a command that writes a log. With `warn`, the warnings of the options are
    logged. Raises UsageError or Refused."""
    from agent.plan.context import open_context

    settings = settings_of(given, entry)
    return open_context(settings, _log(settings, warn=warn))


@contextlib.contextmanager
def _progress(settings: Settings, words: str) -> Iterator[Log]:
    """The log of a command that shows its result at the end. `words` describe its first step."""
    from agent.cli import progress

    with progress.showing(_log(settings), words, debug=settings.debug) as progress_log:
        yield progress_log


def _require_rights(ctx: Context) -> Context:
    """Check that this user may change the node, and return the context. Raises Refused."""
    from agent.host import trees

    if os.geteuid() != 0 and not trees.is_writable(ctx.store.directory):
        raise Refused(
            "cannot change this node: only root can read the runtime's process, write its "
            "configuration and restart it; run this as root, for instance with sudo (plan, status "
            "and doctor need root only for files that this user cannot read)"
        )
    return ctx


def _log(settings: Settings, *, warn: bool = True) -> StderrLog:
    """The log of a command. With --debug, its first line has the options that were given. With
    `warn`, the warnings of the options follow."""
    from agent.log import StderrLog

    log = StderrLog(debug=settings.debug)
    given = {name: origin for name, origin in settings.origins.items() if origin != "default"}
    log.debug("options", **{name: f"{getattr(settings, name, None)} ({origin})"
                            for name, origin in given.items()})  # fmt: skip
    for text in settings.warnings if warn else ():
        log.warning("warning of the options", text=text)
    return log


@click.command(cls=LongLived, context_settings={"help_option_names": ["-h", "--help"]})
def toolkit(**given: str | None) -> None:
    """Configure the node under gpu-operator: `run` with the options of NVIDIA's installer.

    With --no-daemon it ends after the first check. Stopping it leaves the node as it is.
    """
    _run_until_stopped(given, "nvidia-toolkit")


def _run_until_stopped(given: dict[str, str | None], entry: Entry) -> None:
    """Run until a signal ends the process, which becomes the waiting supervisor. The function
    returns only with --no-daemon. Raises AgentError."""
    from dataclasses import replace

    from agent.transaction.converge import converge, publishing_failures

    ctx = _require_rights(_context(given, entry))
    from agent.daemon import pid_file
    from agent.daemon.child import success_fields
    from agent.daemon.start import become_supervisor

    with publishing_failures(ctx):
        if ctx.settings.no_daemon:
            with pid_file.held(ctx.host, ctx.settings.pid_file):
                outcome = converge(replace(ctx, refresh=True))
            ctx.log.info("converged", **success_fields(outcome))
            return
        become_supervisor(ctx, _child_options(given))


def _child_options(given: dict[str, str | None]) -> list[str]:
    """The options of the command line, as words of a child's command line."""
    from agent.options.table import OPTIONS

    values = ((option, given.get(option.name)) for option in OPTIONS)
    return [f"{option.all_flags[0]}={value}" for option, value in values if value is not None]


def _run(command: click.Command, name: str) -> int:
    """Run a command and return its exit code. An error becomes one line on stderr."""
    if "_TOOLKIT_AGENT_COMPLETE" in os.environ:
        from agent.cli import completion  # noqa: F401 - click finds its classes
    try:
        command.main(prog_name=name, standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except SystemExit as error:
        return int(error.code or 0)
    except click.ClickException as error:
        _print_error(usage_error(error, name).message)
        return error.exit_code
    except click.Abort:
        return 130
    except AgentError as error:
        _print_error(error.message)
        return error.exit_code
    return 0


def _print_error(text: str) -> None:
    with contextlib.suppress(OSError):  # the exit code shows the error too
        click.echo(redact_text(text), err=True)


def main() -> NoReturn:
    """The program `toolkit-agent`."""
    run_and_end(lambda: _run(cli, "toolkit-agent"))


def nvidia_toolkit() -> NoReturn:
    """The program `nvidia-toolkit`."""
    run_and_end(lambda: _run(toolkit, "nvidia-toolkit"))
