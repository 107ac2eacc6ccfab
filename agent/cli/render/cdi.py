"""The output of `cdi list` and `cdi validate`.

Invariant: names and paths come from files of others, so only their printable characters reach a
terminal.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from agent.cdi.specs.installed import Device, SpecFile
from agent.cli.render.base import Screen, Tone, counted, printable
from agent.reports.specs import Inventory


def list_data(inventory: Inventory) -> dict[str, Any]:
    """Every device for JSON."""
    return {
        "runtime": inventory.reader.name or None,
        "directories": [
            {"path": directory.name, "read": not directory.unread, "why": directory.unread or None}
            for directory in inventory.directories
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
            for device in inventory.devices
        ],
        "files": [
            {
                "path": file.name,
                "writer": file.writer or None,
                "devices": len(list(file.devices())),
                "problem": _unread(file),
            }
            for file in inventory.files
        ],
        "notes": list(inventory.notes),
    }


def _unread(file: SpecFile) -> str | None:
    """The reason why no device of a file is listed, None if there is no such reason."""
    if file.broken:
        return file.broken.what
    return file.problems[0].what if file.problems and not file.spec else None


def list_text(inventory: Inventory, screen: Screen) -> str:
    """Every device for a person: each file with its devices. Files that cannot be read are listed
    too."""
    lines: list[str] = []
    for file in inventory.files:
        writer = f" (by {file.writer})" if file.writer else ""
        lines.append(screen.paint(printable(f"{file.name}{writer}"), "bold"))
        devices = [device for device in inventory.devices if device.file == file.name]
        for device in devices:
            usable = device.state == "resolvable"
            lines += screen.entry("  yes" if usable else "  no", device.name, _tone(device))
            lines += screen.entry("", f"{device.state}: {device.why}") if device.why else []
        if not devices:
            why = file.problems[0].what if file.problems else "it has no devices"
            lines += screen.entry("  no", why, "bad")
    if inventory.devices:
        total = counted(len(inventory.devices), "device")
        lines += ["", f"{total}; yes: a container can request it (RESOLVABLE)"]
    return "\n".join([*(lines or [_none(inventory)]), *_notes(inventory, screen)])


def _tone(device: Device) -> Tone:
    return "good" if device.state == "resolvable" else "bad"


def wide_text(inventory: Inventory, screen: Screen) -> str:
    """One line for each device, without regard to the width of the screen."""
    rows = [("DEVICE", "RESOLVABLE", "WRITER", "FILE", "WHY")]
    for device in inventory.devices:
        yes = "yes" if device.state == "resolvable" else "no"
        why = f"{device.state}: {device.why}" if device.why else ""
        rows.append((device.name, yes, device.writer or "-", device.file, why))
    with_devices = {device.file for device in inventory.devices}
    for file in inventory.files:
        if file.name not in with_devices:
            why = file.problems[0].what if file.problems else "it has no devices"
            rows.append(("-", "no", file.writer or "-", file.name, why))
    cells = [tuple(map(printable, row)) for row in rows]
    lines = replace(screen, width=sys.maxsize).table(cells) if len(rows) > 1 else [_none(inventory)]
    return "\n".join([*lines, *_notes(inventory, screen)])


def name_text(inventory: Inventory, _: Screen) -> str:
    """The qualified name of each device, once."""
    return "\n".join(dict.fromkeys(printable(device.name) for device in inventory.devices))


def _none(inventory: Inventory) -> str:
    looked = ", ".join(directory.name for directory in inventory.directories) or "none"
    return f"There are no CDI specs in {looked}."


def _notes(inventory: Inventory, screen: Screen) -> list[str]:
    return [line for note in inventory.notes for line in screen.entry("Note:", f"{note}.")]


def findings_data(inventory: Inventory) -> dict[str, Any]:
    """All findings for JSON."""
    return {
        "runtime": inventory.reader.name or None,
        "files": [file.name for file in inventory.files],
        "findings": [
            {
                "file": finding.file,
                "severity": finding.problem.severity,
                "where": finding.problem.where or None,
                "what": finding.problem.what,
                "effect": finding.problem.effect,
                "remedy": finding.problem.remedy,
            }
            for finding in inventory.findings
        ],
        "notes": list(inventory.notes),
    }


def findings_text(inventory: Inventory, screen: Screen) -> str:
    """All findings for a person: a block of lines for each file, then the numbers."""
    lines: list[str] = []
    file = None
    for finding in inventory.findings:
        problem = finding.problem
        if finding.file != file:
            file = finding.file
            lines.append(screen.paint(printable(file), "bold"))
        where = f"{problem.where}: " if problem.where else ""
        tone: Tone = "bad" if problem.severity == "error" else "warn"
        lines += screen.entry(f"  {problem.severity}:", f"{where}{problem.what}", tone)
        lines += screen.entry("  do:", problem.remedy)
    errors = sum(finding.problem.severity == "error" for finding in inventory.findings)
    warnings = len(inventory.findings) - errors
    lines.append(
        f"{counted(len(inventory.files), 'file')}: {counted(errors, 'error')}, "
        f"{counted(warnings, 'warning')}."
    )
    return "\n".join([*lines, *_notes(inventory, screen)])
