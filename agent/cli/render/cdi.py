"""What a person or a program gets to see of CDI specs.

Invariant: names and paths come from files of others: nothing of them reaches a terminal that is not
a printable character.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.cdi.specs.installed import SpecFile
from agent.cli.render.base import table
from agent.reports.specs import Inventory


def list_data(found: Inventory) -> dict[str, Any]:
    """Every device for JSON."""
    return {
        "runtime": found.reader.name or None,
        "directories": [
            {"path": directory.name, "read": not directory.unread, "why": directory.unread or None}
            for directory in found.directories
        ],
        "devices": [
            {
                "name": device.name,
                "file": device.file,
                "writer": device.writer or None,
                "resolvable": device.state == "resolvable",
                "state": device.state,
                "why": device.why or None,
            }
            for device in found.devices
        ],
        "files": [
            {
                "path": file.name,
                "writer": file.writer or None,
                "devices": len(list(file.devices())),
                "problem": _unread(file),
            }
            for file in found.files
        ],
        "notes": list(found.notes),
    }


def _unread(file: SpecFile) -> str | None:
    """Why nothing of a file is shown; None where something is."""
    if file.broken:
        return file.broken.what
    return file.problems[0].what if file.problems and not file.spec else None


def list_text(found: Inventory) -> str:
    """The same for a person. Files from which nothing can be read have a line too."""
    rows = [("DEVICE", "RESOLVABLE", "WRITER", "FILE", "WHY")]
    for device in found.devices:
        yes = "yes" if device.state == "resolvable" else "no"
        why = f"{device.state}: {device.why}" if device.why else ""
        rows.append((device.name, yes, device.writer or "-", device.file, why))
    with_devices = {device.file for device in found.devices}
    for file in found.files:
        if file.name not in with_devices:
            why = file.problems[0].what if file.problems else "it has no devices"
            rows.append(("-", "no", file.writer or "-", file.name, why))
    looked = ", ".join(directory.name for directory in found.directories) or "none"
    lines = _table(rows) if len(rows) > 1 else [f"There are no CDI specs in {looked}."]
    return "\n".join([*lines, *(_clean(f"Note: {note}.") for note in found.notes)])


def findings_data(found: Inventory) -> dict[str, Any]:
    """Everything that is wrong, for JSON."""
    return {
        "runtime": found.reader.name or None,
        "files": [file.name for file in found.files],
        "findings": [
            {
                "file": finding.file,
                "severity": finding.problem.severity,
                "where": finding.problem.where or None,
                "what": finding.problem.what,
                "effect": finding.problem.effect,
                "remedy": finding.problem.remedy,
            }
            for finding in found.findings
        ],
        "notes": list(found.notes),
    }


def findings_text(found: Inventory) -> str:
    """The same for a person: a block of lines for each file."""
    lines: list[str] = []
    file = None
    for finding in found.findings:
        problem = finding.problem
        if finding.file != file:
            file = finding.file
            lines.append(_clean(file))
        where = f"{problem.where}: " if problem.where else ""
        lines.append(_clean(f"  {problem.severity}: {where}{problem.what}"))
        lines.append(_clean(f"    {problem.remedy}"))
    errors = sum(finding.problem.severity == "error" for finding in found.findings)
    warnings = len(found.findings) - errors
    lines.append(
        f"{_count(len(found.files), 'file')}: {_count(errors, 'error')}, "
        f"{_count(warnings, 'warning')}."
    )
    return "\n".join([*lines, *(_clean(f"Note: {note}.") for note in found.notes)])


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    return table([tuple(map(_clean, row)) for row in rows])


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode()
                   for char in text)  # fmt: skip
