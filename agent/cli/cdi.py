"""The commands about CDI specs.

Invariant: they write nothing but the output file of `generate`. `list` and `validate` work without
a runtime, and `generate` never asks one.
"""

from __future__ import annotations

import os

import click

from agent.cli.base import Command, emit, flag, output_option, settings_of


@click.group()
def cdi() -> None:
    """Container Device Interface specs."""


class Generate(Command):
    """A command whose help shows only the options that decide what it writes. It accepts all
    others, so that all commands of a pod can have the same options."""

    def options(self) -> list[click.Option]:
        """Its own options, then those of all commands."""
        from dataclasses import replace

        from agent.options.cdi import GENERATE, GENERATE_ENV, GENERATE_SHOWN
        from agent.options.table import OPTIONS

        own = {name: (variable,) for name, variable in GENERATE_ENV.items()}
        every = (replace(one, env=(*own.get(one.name, ()), *one.env)) for one in OPTIONS)
        return [
            *map(flag, GENERATE),
            *(flag(one, shown=one.name in GENERATE_SHOWN) for one in every),
        ]


@cdi.command(cls=Generate, epilog="Exit codes: 0 done; 2 usage; 3 refused, nothing written.")
def generate(**given: str | None) -> None:
    """Print a CDI spec, or write it to a file. Needs no runtime; nvidia.com/gpu loads the driver's
    NVML. Options are those of `nvidia-ctk cdi generate`, with its environment."""
    from agent.cdi.driver.driver import DRIVER_CONTAINER
    from agent.cdi.make import output
    from agent.cdi.make.generate import spec_text
    from agent.cdi.make.request import request, with_environment
    from agent.host.paths import open_host_root

    asked = request(given, os.environ)
    settings = settings_of(with_environment(given, os.environ))
    host = open_host_root(settings.host_root, (*settings.option_paths, DRIVER_CONTAINER))
    hook = output.hook(settings, host, asked.hook_path)
    found, warnings = spec_text(
        asked.mode, settings, host, asked.form, hook=hook, choice=asked.choice,
        mark=not asked.output,
    )  # fmt: skip
    for warning in (*asked.warnings, *warnings):
        click.echo(f"warning: {warning}", err=True)
    if asked.output:
        click.echo(f"written: {output.write(host, asked.output, asked.form, found)}", err=True)
    else:
        click.echo(found, nl=False)


@cdi.command("list", cls=Command)
@output_option
def list_devices(output: str, **given: str | None) -> None:
    """List every device of every spec on the node, and whether a container can have it."""
    from agent.cli.render import cdi as render_cdi
    from agent.plan.context import open_host
    from agent.reports import specs

    settings = settings_of(given)
    found = specs.inventory(settings, open_host(settings))
    emit(output, found, render_cdi.list_text, "CDIDevices", render_cdi.list_data)


@cdi.command(cls=Command)
@click.argument("files", nargs=-1, metavar="[FILE]...")
@output_option
def validate(files: tuple[str, ...], output: str, **given: str | None) -> None:
    """Tell all that a runtime would choke on, in the specs on the node or in these files.

    `-` is standard input. Exit code 1 where there is anything to tell.
    """
    from agent.cli.render import cdi as render_cdi
    from agent.plan.context import open_host
    from agent.reports import specs

    settings = settings_of(given)
    host = open_host(settings)
    found = specs.of_files(settings, host, files) if files else specs.inventory(settings, host)
    emit(output, found, render_cdi.findings_text, "CDIFindings", render_cdi.findings_data)
    if found.findings:
        raise SystemExit(1)
