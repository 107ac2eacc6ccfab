"""The commands about CDI specs.

Invariant: they read only; `list` and `validate` work without a runtime, `generate` never asks one.
"""

from __future__ import annotations

import click

from agent.cli.base import Command, emit, output_option, settings_of


@click.group()
def cdi() -> None:
    """Container Device Interface specs."""


@cdi.command(cls=Command)
@click.option(
    "--mode", "spec_mode", default="management", show_default=True,
    type=click.Choice("management nvml gpu gdrcopy gds mofed nvswitch imex".split()),
    help="Which spec: nvml or gpu is nvidia.com/gpu, each GPU and MIG device.",
)  # fmt: skip
@click.option(
    "--format", "form", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True,
    help="How to write it.",
)  # fmt: skip
def generate(spec_mode: str, form: str, **given: str | None) -> None:
    """Print a CDI spec. Needs no runtime; nvidia.com/gpu loads the driver's NVML."""
    from agent.cdi.generate import text
    from agent.host.paths import open_host_root
    from agent.toolkit import programs

    settings = settings_of(given)
    host = open_host_root(settings.host_root)
    hook = programs.find(settings, host, programs.CDI_HOOK)
    found, warnings = text(spec_mode, settings, host, form, hook=hook)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(found, nl=False)


@cdi.command("list", cls=Command)
@output_option
def list_devices(output: str, **given: str | None) -> None:
    """List every device of every spec on the node, and whether a container can have it."""
    from agent import render_cdi
    from agent.engine.inventory import inventory
    from agent.host.paths import open_host_root

    settings = settings_of(given)
    found = inventory(settings, open_host_root(settings.host_root))
    emit(
        output, lambda: render_cdi.list_text(found), "CDIDevices",
        lambda: render_cdi.list_data(found),
    )  # fmt: skip


@cdi.command(cls=Command)
@click.argument("files", nargs=-1, metavar="[FILE]...")
@output_option
def validate(files: tuple[str, ...], output: str, **given: str | None) -> None:
    """Tell all that a runtime would choke on, in the specs on the node or in these files.

    `-` is standard input. Exit code 1 where there is anything to tell.
    """
    from agent import render_cdi
    from agent.engine import inventory
    from agent.host.paths import open_host_root

    settings = settings_of(given)
    host = open_host_root(settings.host_root)
    found = inventory.given(settings, host, files) if files else inventory.inventory(settings, host)
    emit(
        output, lambda: render_cdi.findings_text(found), "CDIFindings",
        lambda: render_cdi.findings_data(found),
    )  # fmt: skip
    if found.findings:
        raise SystemExit(1)
