"""The command `verify`."""

from __future__ import annotations

import click

from agent.cli.base import Command, emit, output_option, settings_of

_EXIT_CODES = {"ok": 0, "failed": 1, "undecided": 3}


@click.command(cls=Command, short_help="Prove that pods run and get their devices.")
@output_option
def verify(output: str, **given: str | None) -> None:
    """Prove on the running runtime that pods run and that a CDI device reaches a container.

    It runs a pod of its own under the default handler and each of ours, from the sandbox image that
    is on the node, and removes it. Exit: 0 proven, 1 a proof failed, 3 could not be tried.
    """
    from agent.cli import progress
    from agent.cli.render import verify as render_verify
    from agent.log import Silent
    from agent.plan.context import open_host
    from agent.verify.verify import verify as prove

    settings = settings_of(given)
    with progress.shown(Silent(), "running a pod under each handler"):
        found = prove(settings, open_host(settings))
    emit(output, found, render_verify.text, "Verification", render_verify.data)
    raise SystemExit(_EXIT_CODES[found.result])
