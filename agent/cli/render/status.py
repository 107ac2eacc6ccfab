"""What `status` prints.

Invariant: pure functions of a report; the table has a line for each value of the JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agent.cli.render.plan import spec_data
from agent.reports.node import Report


def data(report: Report) -> dict[str, Any]:
    """A status report for JSON, and for the table."""
    proposal = report.proposal
    answer = proposal.runtime.answer if proposal else None
    toolkit = proposal.toolkit if proposal else None
    return {
        "ready": report.ready,
        "problem": report.problem.message if report.problem else None,
        "runtime": {
            "name": answer.name if answer else None,
            "version": answer.version if answer else None,
            "socket": proposal.runtime.socket.host if proposal else None,
            "ready": answer.ready if answer else None,
        },
        "cdi": {
            "row": proposal.decision.row if proposal else None,
            "native": proposal.decision.native if proposal else None,
            "source": proposal.decision.source if proposal else None,
            "specDirs": list(proposal.decision.spec_dirs) if proposal else [],
        },
        "handlers": sorted(report.handlers),
        "default": report.default,
        "files": [
            {"path": host, "existedBefore": existed, "now": now}
            for host, existed, now in report.files
        ],
        "toolkit": {
            "directory": str(toolkit.found.directory) if toolkit else None,
            "source": toolkit.found.origin.place if toolkit else None,
        },
        "specs": [spec_data(spec) for spec in report.specs],
        "leftOver": [
            {"path": item.path, "what": item.what, "remedy": item.remedy}
            for item in report.left_over_files
        ],
        "drift": list(report.drift),
        "warnings": list(proposal.warnings) if proposal else [],
        "transaction": {"unfinished": report.unfinished, "failed": report.failed},
        "published": dict(report.published),
        "notPublished": report.not_published,
    }


def text(report: Report) -> str:
    """A status report for a person."""
    rows = list(_rows(data(report)))
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in rows)


def _rows(found: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    for key, value in found.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _rows(value, f"{name}.")
        elif isinstance(value, list):
            yield from ((name, _cell(item)) for item in value)
        else:
            yield name, _cell(value)


def _cell(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_cell(item)}" for key, item in value.items())
    return {True: "yes", False: "no", None: "-"}.get(value, str(value)) if (
        value is None or isinstance(value, bool)
    ) else str(value)  # fmt: skip
