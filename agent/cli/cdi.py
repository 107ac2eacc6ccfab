"""The commands about CDI specs.

Invariant: only `generate` writes a file, its output. `list` and `validate` work without a runtime,
and `generate` never asks one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from agent.cli.base import Command, Group, complete_file, emit, output_option, settings_of

if TYPE_CHECKING:
    from agent.options.option import Topic


@click.group(cls=Group, short_help="Make CDI specs, list their devices, find what is wrong.")
def cdi() -> None:
    """Container Device Interface specs."""


class Generate(Command):
    """The command `generate`, which has further options and variables in the tables."""

    def topics(self) -> Sequence[Topic]:
        """The options of `generate`, then those of all commands."""
        from dataclasses import replace

        from agent.options.cdi import GENERATE, GENERATE_ENV
        from agent.options.option import MAKE_SPEC, Topic
        from agent.options.table import TOPICS

        own = {name: (variable,) for name, variable in GENERATE_ENV.items()}
        return [
            Topic("Options", MAKE_SPEC, tuple(replace(one, main=True) for one in GENERATE)),
            *(
                replace(topic, options=tuple(
                    replace(one, env=(*own.get(one.name, ()), *one.env)) for one in topic.options
                ))
                for topic in TOPICS
            ),
        ]  # fmt: skip


@cdi.command(cls=Generate, short_help="Print a CDI spec, or write it to a file.")
def generate(**given: str | None) -> None:
    """Print a CDI spec, or write it to a file. Needs no runtime; for nvidia.com/gpu, the driver's
    NVML is loaded. Options and variables are those of `nvidia-ctk cdi generate`."""
    from agent.cdi.driver.driver import DRIVER_CONTAINER
    from agent.cdi.make.generate import spec_text
    from agent.cdi.make.request import hook_program, request, with_environment, write_output
    from agent.host.paths import open_host_root

    wish = request(given, os.environ)
    settings = settings_of(with_environment(given, os.environ))
    host = open_host_root(settings.host_root, (*settings.option_paths, DRIVER_CONTAINER))
    hook = hook_program(settings, host, wish.hook_path)
    text, warnings = spec_text(
        wish.mode, settings, host, wish.form, hook=hook, choice=wish.choice, mark=not wish.output
    )
    for warning in (*wish.warnings, *warnings):
        click.echo(f"warning: {warning}", err=True)
    if wish.output:
        path = write_output(host, wish.output, wish.form, text)
        click.echo(f"written: {path}", err=True)
    else:
        click.echo(text, nl=False)


@cdi.command(
    "list", cls=Command, short_help="List every device, and whether a container can have it."
)
@partial(output_option, forms=("wide", "name"))
def list_devices(output: str, **given: str | None) -> None:
    """List every device of every spec on the node, and whether a container can have it."""
    from agent.cli.render import cdi as render_cdi
    from agent.plan.context import open_host
    from agent.reports import specs

    settings = settings_of(given)
    inventory = specs.inventory(settings, open_host(settings))
    texts = {"name": render_cdi.name_text, "wide": render_cdi.wide_text}
    text = texts.get(output, render_cdi.list_text)
    emit(output, inventory, text, "CDIDevices", render_cdi.list_data)


@cdi.command(cls=Command, short_help="Check CDI specs by the rules of the runtimes.")
@click.argument("files", nargs=-1, metavar="[FILE]...", shell_complete=complete_file)
@output_option
def validate(files: tuple[str, ...], output: str, **given: str | None) -> None:
    """Check the CDI specs on the node, or these files, by the rules of the runtimes.

    `-` is standard input. The exit code is 1 if there is a finding.
    """
    from agent.cli.render import cdi as render_cdi
    from agent.plan.context import open_host
    from agent.reports import specs

    settings = settings_of(given)
    host = open_host(settings)
    inventory = (
        specs.inventory_of_files(settings, host, files)
        if files
        else specs.inventory(settings, host)
    )
    emit(output, inventory, render_cdi.findings_text, "CDIFindings", render_cdi.findings_data)
    if inventory.findings:
        raise SystemExit(1)
