"""What all commands have in common in what they print on stdout.

Invariant: one stable document per command (`apiVersion`, `kind`), the same in JSON and in YAML, and
no secret in it: see `diffs`; URLs have no users and passwords.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent.cdi import yaml_text
from agent.redaction import redact

API = "toolkit-agent/v1"


def document(kind: str, body: Mapping[str, Any], form: str = "json") -> str:
    """A document of the program's own schema; `form` is json or yaml, the data are the same."""
    data = {"apiVersion": API, "kind": kind, **redact(body)}
    if form == "yaml":
        return "\n".join(yaml_text.lines(data))
    import json

    return json.dumps(data, indent=2, ensure_ascii=False)


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines with aligned columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)),
                   row[-1]]).rstrip()
        for row in rows
    ]  # fmt: skip
