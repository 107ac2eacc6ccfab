"""The help texts: options by topic, and the exit codes.

Invariant: no line is longer than 80 columns, and no name is broken. This module is loaded only
if a help text is shown.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from agent.errors import EXIT_CODES

if TYPE_CHECKING:
    import click

    from agent.options.option import Option, Topic

_FIRST_COLUMN = 18  # leaves 56 columns, in which the longest name of a variable fits
_FEW = 12  # a command with at most this number of options shows all of them
_OWN = "Options"


def write_options(
    ctx: click.Context, formatter: click.HelpFormatter, topics: Sequence[Topic], command: str,
    own: Sequence[click.Parameter], *, every: bool,
) -> None:  # fmt: skip
    """Write a command's own options, then those of the table that concern the command, by topic. If
    there are many, only the main options are shown, unless `every` is true."""
    number = sum(len(topic.for_command(command)) for topic in topics)
    every = every or number <= _FEW
    records = (parameter.get_help_record(ctx) for parameter in own)
    sections = {_OWN: [(one[0].replace(" [=", "[="), one[1]) for one in records if one]}
    for topic in topics:
        shown = [one for one in topic.for_command(command) if every or one.main]
        rows = [row for one in shown for row in _rows(one, formatter.width, every)]
        sections.setdefault(topic.title, []).extend(rows)
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows, _FIRST_COLUMN)
    if number:
        formatter.write_paragraph()
        more = "" if every else f"{ctx.command_path} --help-all lists all {number} options. "
        formatter.write_text(
            f"{more}$NAME: the variable for the same value; the command line wins, then the first "
            "variable that is set. A LIST is separated by commas."
        )


def _rows(option: Option, width: int, every: bool) -> Iterator[tuple[str, str]]:
    """The rows of an option: its help text, its variables, and with `every` its other names."""
    long = [name for name in option.all_flags if name.startswith("--")]
    short = [name for name in option.all_flags if name not in long]
    default = option.unset or option.default
    texts = [
        f"{option.help} [default: {default}]" if default else option.help,
        ", ".join(f"${name}" for name in option.env),
        *(f"or {name}" for name in long[1:] if every),
    ]
    term = ", ".join([*short, long[0]]) + _value(option)
    for text in texts:
        # click would break words at hyphens.
        for line in textwrap.wrap(text, width - _FIRST_COLUMN - 4, break_on_hyphens=False):
            yield term, line
            term = ""


def _value(option: Option) -> str:
    """The form of an option's value, such as `|`-separated choices."""
    if option.kind == "bool":
        return "[=BOOL]"
    return " " + ("|".join(option.choices) if option.kind == "choice" else option.kind.upper())


def write_exit_codes(formatter: click.HelpFormatter) -> None:
    """Write the exit codes with their meanings."""
    with formatter.section("Exit codes"):
        formatter.write_dl([(str(code), text) for code, text in EXIT_CODES.items()])
