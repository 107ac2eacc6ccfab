"""What `config` prints.

Invariant: pure functions of the settings.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agent.cli.render.base import Screen
from agent.options.settings import Effective


def data(values: Iterable[Effective]) -> dict[str, Any]:
    """Every option with its origin."""
    return {
        "options": [
            {
                "option": item.option.all_flags[0],
                "value": item.value,
                "origin": item.origin,
                "environment": list(item.option.env),
            }
            for item in values
        ]
    }


def text(values: Iterable[Effective], screen: Screen) -> str:
    """The same for a person."""
    rows = [("OPTION", "VALUE", "ORIGIN")]
    rows += [(item.option.all_flags[0], _setting(item.value), item.origin) for item in values]
    return "\n".join(screen.table(rows))


def _setting(value: object) -> str:
    """As it could be given."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(value) or '""'
    return (
        "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value) or '""'
    )
