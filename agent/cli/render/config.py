"""The output of `config`.

Invariant: pure functions of the settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agent.cli.render.base import Screen
from agent.options.option import Option
from agent.options.settings import Settings
from agent.options.table import OPTIONS


def data(settings: Settings) -> dict[str, Any]:
    """Every option that has an effect, with its value and the value's origin, for JSON. The value
    is None if it is determined on the node or by the decision."""
    return {
        "options": [
            {
                "option": option.all_flags[0],
                "value": value,
                "origin": settings.origins[option.name],
                "environment": list(option.env),
            }
            for option, value in _values(settings)
        ]
    }


def _values(settings: Settings) -> Iterator[tuple[Option, Any]]:
    for option in (one for one in OPTIONS if one.supported):
        value = getattr(settings, option.name)
        if isinstance(value, tuple):
            value = ".".join(map(str, value)) if option.kind == "version" else list(value)
        elif option.name == "enable_cdi_in_runtime" and value is None:
            value = settings.may_enable_cdi
        elif option.name == "cdi_output_dir" and value is None:
            value = ""
        yield option, value


def text(settings: Settings, screen: Screen) -> str:
    """Every option that has an effect, for a person."""
    rows = [("OPTION", "VALUE", "ORIGIN")]
    for option, value in _values(settings):
        rows.append((option.all_flags[0], _setting(value), settings.origins[option.name]))
    return "\n".join(screen.table(rows))


def _setting(value: object) -> str:
    """A value as it is written on a command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(value) or '""'
    return (
        "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value) or '""'
    )
