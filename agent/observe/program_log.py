"""What a runtime's program writes to its log.

Invariant: pure; a line in another format is no entry, whatever is in it.
"""

from __future__ import annotations

import json
import re

_PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)')


def entry(line: str) -> dict[str, str] | None:
    """A log entry of a runtime by its keys, in logfmt or as JSON; None for what is none."""
    if line.startswith("{"):
        try:
            found = json.loads(line)
        except ValueError:
            return None
        return {key: str(value) for key, value in found.items()}
    pairs = {key: _unquoted(value) for key, value in _PAIR.findall(line)}
    return pairs if "level" in pairs else None


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    return re.sub(r"\\(.)", lambda found: {"n": " "}.get(found[1], found[1]), value[1:-1])
