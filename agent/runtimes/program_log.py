"""What a runtime's program writes to its log.

Invariant: pure; a line in another format is no entry, whatever is in it.
"""

from __future__ import annotations

import re

from agent.host import budget

_PAIR = re.compile(r'(?<!\w)(\w+)=("(?:[^"\\]|\\.)*"|\S+)')


def entry(line: str) -> dict[str, str] | None:
    """A log entry of a runtime by its keys, in logfmt or as JSON; None for what is none."""
    if line.startswith("{"):
        try:
            found = budget.json_value(line, budget.LINE)
        except ValueError:
            return None
        return {key: str(value) for key, value in found.items()}
    pairs = {key: _unquoted(value) for key, value in _PAIR.findall(line[: budget.LINE.size])}
    return pairs if "level" in pairs else None


def last_words(output: str) -> str:
    """The last lines of a program's output that are no log entries; a value that it repeats can
    have several."""
    words: list[str] = []
    goes_on = False
    for line in filter(None, map(str.strip, output.splitlines())):
        is_words = entry(line) is None
        if is_words:
            words = [*words, line] if goes_on else [line]
        goes_on = is_words
    return " ".join(words)


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    return re.sub(r"\\(.)", lambda found: {"n": " "}.get(found[1], found[1]), value[1:-1])
