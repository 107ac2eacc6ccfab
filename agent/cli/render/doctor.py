"""The output of `doctor`.

Invariant: pure functions of a diagnosis. The first lines name the worst finding and its remedy, and
a line has 80 columns unless a single word is longer.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from agent.cli.render.base import Screen, Tone
from agent.doctor.check import ORDER
from agent.doctor.diagnosis import Diagnosis, Finding

_COLUMNS = 80
_HEADLINE = 2  # lines, so that the remedy is in the third line


def data(diagnosis: Diagnosis) -> dict[str, Any]:
    """A diagnosis for JSON."""
    found_ids = {item.check.id for item in diagnosis.findings}
    skipped = {check.id: why for check, why in diagnosis.skipped}
    return {
        "healthy": not diagnosis.faults,
        "findings": [
            {
                "check": item.check.id,
                "severity": item.symptom.severity,
                "found": item.symptom.text,
                "evidence": list(item.symptom.evidence),
                "why": item.check.why,
                "remedy": item.remedy,
            }
            for item in diagnosis.findings
        ],
        "checks": [
            {
                "check": check.id,
                "title": check.title,
                "result": "found" if check.id in found_ids
                else "not looked at" if check.id in skipped else "passed",
                "reason": skipped.get(check.id),
            }
            for check in diagnosis.checks
        ],
    }  # fmt: skip


def text(diagnosis: Diagnosis, screen: Screen) -> str:
    """A diagnosis for a person."""
    lines = [line for item in diagnosis.findings for line in _finding(item, screen)]
    severities = {item.symptom.severity for item in diagnosis.findings}
    if severities <= {"info"}:
        lines = [screen.paint("ok: no fault was found", "good"), "", *lines]
    return "\n".join([*lines, _summary(diagnosis), *_skipped(diagnosis)])


def _finding(item: Finding, screen: Screen) -> Iterator[str]:
    severity = item.symptom.severity
    headline = _wrapped(f"{severity}: ", item.symptom.text)
    if severity != "info":
        tone: Tone = "bad" if severity == "fault" else "warn"
        headline[0] = headline[0].replace(severity, screen.paint(severity, tone), 1)
    yield from headline[: _HEADLINE - 1]
    if len(headline) > _HEADLINE:
        yield f"{headline[_HEADLINE - 1]} …"
    else:
        yield from headline[_HEADLINE - 1 :]
    yield from _wrapped("  do: ", item.remedy)
    if item.symptom.severity != "info":
        yield from _wrapped("  why: ", item.check.why)
    whole = (item.symptom.text,) if len(headline) > _HEADLINE else ()
    for evidence in (*whole, *item.symptom.evidence):
        yield from _wrapped("  seen: ", evidence)
    yield ""


def _wrapped(label: str, words: str) -> list[str]:
    """The lines of a paragraph after a label, without the control characters in words of others."""
    safe = "".join(char if char.isprintable() else " " for char in words)
    return textwrap.wrap(
        safe, _COLUMNS - 2, initial_indent=label, subsequent_indent=" " * 4,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _summary(diagnosis: Diagnosis) -> str:
    """The line with the number of findings of each severity."""
    severities = [item.symptom.severity for item in diagnosis.findings]
    counts = [(severities.count(name), name) for name in ORDER]
    words = [f"{number} {name}{'' if number == 1 or name == 'info' else 's'}"
             for number, name in counts]  # fmt: skip
    return f"{len(diagnosis.checks)} checks: {', '.join(words)}"


def _skipped(diagnosis: Diagnosis) -> Iterator[str]:
    """The lines with the checks whose facts are missing, by reason."""
    for why in dict.fromkeys(why for _, why in diagnosis.skipped):
        names = [check.id for check, reason in diagnosis.skipped if reason == why]
        yield from textwrap.wrap(
            f"not looked at: {', '.join(names)}: {why}", _COLUMNS, subsequent_indent="  ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
