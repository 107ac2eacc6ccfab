"""The output of `status`.

Invariant: pure functions of a report. If the node is ready, the text fits on one screen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from agent.cli.render.base import Screen
from agent.cli.render.plan import spec_data, steps, warning_lines, warnings_data
from agent.reports.node import OUT_OF_DATE, Report
from agent.status import readable


def data(report: Report) -> dict[str, Any]:
    """A status report for JSON."""
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
        "warnings": warnings_data(proposal) if proposal else [],
        "transaction": {"unfinished": report.unfinished, "failed": report.failed},
        "error": report.error,
        "published": dict(report.published),
        "notPublished": report.not_published,
    }


def text(report: Report, screen: Screen) -> str:
    """A status report for a person: first the faults, then the state of the node."""
    lines = [*_verdict(report, screen), *_wrong(report, screen), ""]
    for label, words in _parts(report):
        lines += screen.entry(label, words)
    if report.proposal:
        lines += warning_lines(report.proposal, screen)
    return "\n".join(lines)


def _verdict(report: Report, screen: Screen) -> list[str]:
    """The first line: is the node ready, and what should the person do?"""
    if report.ready:
        return screen.entry(
            "Ready:", "the node is configured as decided, and the decision is published", "good"
        )
    if report.problem is not None:
        words = "`toolkit-agent apply` would refuse" if report.proposal else "nothing can be asked"
    elif not (report.files or report.published):
        words = "this node is not configured; run `toolkit-agent apply` (`plan` shows what it does)"
    elif report.unfinished:
        words = f"a change is not finished: {report.unfinished}"
    elif report.drift:
        words = "the node is not as decided; `toolkit-agent apply` does this:"
    else:
        words = f"the node is configured, but {report.not_published}; run `toolkit-agent apply`"
    return screen.entry("Not ready:", words, "bad")


def _wrong(report: Report, screen: Screen) -> list[str]:
    """The lines of all faults, the cause first."""
    refusals = report.proposal.refusals if report.proposal else ()
    causes = dict.fromkeys(error.message for error in refusals or filter(None, [report.problem]))
    lines = [line for cause in causes for line in screen.entry("Problem:", cause, "bad")]
    if report.files or report.published:
        lines += steps(report.proposal, screen) if report.proposal else []
        if OUT_OF_DATE in report.drift:
            lines += screen.entry("publish", "the decision, because it is not the published one")
    shown = {_comparable(cause) for cause in causes}
    last = report.failed or report.error
    if last and _comparable(last) not in shown:
        lines += screen.entry("Last try:", last, "bad")
    return lines


def _comparable(text: str) -> str:
    """The form of a reason in which it can be compared with that in the error file, which has no
    spaces."""
    return readable(text)[:400]


def _parts(report: Report) -> Iterator[tuple[str, str]]:
    """The state of the node, as labels and texts."""
    proposal = report.proposal
    if proposal is not None:
        answer, decision = proposal.runtime.answer, proposal.decision
        state = "" if answer.ready else ", NOT ready"
        yield "Runtime:", f"{answer.name} {answer.version} at {proposal.runtime.socket.host}{state}"
        default = f"; default: {report.default}" if report.default else ""
        yield "Handlers:", f"{', '.join(sorted(report.handlers)) or 'none'}{default}"
        yield "Decision:", f"row {decision.row}: {decision.rule}"
        yield "CDI:", f"specs are read in {', '.join(decision.spec_dirs) or 'no directory'}"
    refused = {error.message for error in proposal.refusals} if proposal else set()
    for spec in report.specs:
        by = f", by {spec.writer}" if spec.is_foreign else ""
        if spec.file:
            yield "", f"{spec.kind}: {spec.file}{by}"
        if spec.problem and spec.problem not in refused:
            yield "", f"{spec.kind}: {spec.problem}"
    if proposal is not None and proposal.toolkit is not None:
        toolkit = proposal.toolkit.found
        same = str(toolkit.directory) == toolkit.origin.place
        yield "Toolkit:", f"{toolkit.directory}{'' if same else f', from {toolkit.origin.place}'}"
    label = "Files:"
    for path, _, now in report.files:
        yield label, f"{path}: {now}"
        label = ""
    for item in report.left_over_files:
        yield "Left over:", f"{item.path} ({item.what}); remove it: `{item.remedy}`"
    yield "Status:", _published(report)


def _published(report: Report) -> str:
    """The text about the published decision."""
    if not report.published:
        return f"not published: {report.not_published}"
    since = report.published.get("TOOLKIT_TIMESTAMP", "")
    when = time.strftime("%F %T UTC", time.gmtime(int(since))) if since.isdecimal() else "?"
    keys = ("DEVICE_LIST_STRATEGY", "CDI_ANNOTATION_PREFIX")
    values = (f"{key}={report.published[key]}" for key in keys if key in report.published)
    return f"published {when}: {', '.join(values)}"
