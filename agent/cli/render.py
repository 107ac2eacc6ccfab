"""What a person or a program gets to see on stdout.

Invariant: one stable document per command (`apiVersion`, `kind`), the same in JSON and in YAML, and
no secret in it: see `diffs`; URLs have no users and passwords.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from agent.cdi import yaml_text
from agent.redaction import redact
from agent.runtimes.restart import not_back

if TYPE_CHECKING:
    from agent.decide import Decision
    from agent.host.files import Change
    from agent.options.settings import Effective
    from agent.plan.propose import Proposal
    from agent.plan.report import Report
    from agent.toolkit.install import Proposed as Toolkit
    from agent.transaction.converge import Outcome
    from agent.transaction.revert import Reverted

API = "toolkit-agent/v1"


def document(kind: str, body: Mapping[str, Any], form: str = "json") -> str:
    """A document of the program's own schema; `form` is json or yaml, the data are the same."""
    data = {"apiVersion": API, "kind": kind, **redact(body)}
    if form == "yaml":
        return "\n".join(yaml_text.lines(data))
    import json

    return json.dumps(data, indent=2, ensure_ascii=False)


def decision_data(decision: Decision) -> dict[str, Any]:
    """The decision for JSON."""
    return {
        "row": decision.row,
        "rule": decision.rule,
        "native": decision.native,
        "source": decision.source,
        "reason": decision.reason,
        "mode": decision.mode,
        "isDefault": decision.is_default,
        "keptForPods": list(decision.kept_for),
        "enableCDI": decision.enable_cdi,
        "criCDIField": decision.cri_field,
        "deviceListStrategy": list(decision.strategy),
        "cdiAnnotationPrefix": decision.annotation_prefix,
        "annotationPrefixes": list(decision.prefixes),
        "specDirs": list(decision.spec_dirs),
        "evidence": list(decision.evidence),
        "warnings": list(decision.warnings),
    }


def plan_data(proposal: Proposal) -> dict[str, Any]:
    """A plan for JSON."""
    from agent.cli.diffs import diff  # needed only by `plan`

    node, restart = proposal.node, proposal.restart
    return {
        "runtime": {
            "name": proposal.runtime.answer.name,
            "version": proposal.runtime.version,
            "socket": proposal.runtime.socket.host,
            "pid": proposal.runtime.process.pid if proposal.runtime.process else None,
            "executable": node.executable if node else None,
            "config": node.root.name if node else None,
        },
        "decision": decision_data(proposal.decision),
        "changes": [
            {
                "path": change.path.host,
                "action": _action(change),
                "diff": diff(change),
            }
            for change in proposal.changes
        ],
        "toolkit": _toolkit_data(proposal.toolkit),
        "deviceNodes": [str(node) for node in proposal.nodes],
        "specs": [spec.data() for spec in (proposal.spec.specs if proposal.spec else ())],
        "restart": {
            "needed": restart is not None,
            "kind": restart.kind if restart else None,
            "target": restart.target if restart else None,
            "along": list(restart.along) if restart else [],
            "because": list(proposal.gaps),
        },
        "preflight": {"done": proposal.preflight.done, "note": proposal.preflight.note}
        if proposal.preflight
        else None,
        "trial": {"done": proposal.trial.done, "note": proposal.trial.note}
        if proposal.trial
        else None,
        "warnings": list(proposal.warnings),
    }


def _toolkit_data(toolkit: Toolkit | None) -> dict[str, Any] | None:
    if toolkit is None:
        return None
    return {
        "directory": toolkit.found.directory.host,
        "source": toolkit.found.origin.place,
        "write": list(toolkit.difference.write),
        "remove": list(toolkit.difference.remove),
    }


def _toolkit_lines(toolkit: Toolkit | None) -> list[str]:
    if toolkit is None or not toolkit.difference:
        return []
    found, different = toolkit.found, toolkit.difference
    names = (*different.write, *(f"{name} (goes)" for name in different.remove))
    return [f"install {found.directory} from {found.origin.place}: {', '.join(names)}", ""]


def _spec_lines(proposal: Proposal) -> list[str]:
    """Kinds that are somebody else's, or nobody's for a reason that no warning tells."""
    specs = proposal.spec.specs if proposal.spec else ()
    theirs = [
        f"Not ours: {spec.kind} is in {spec.file}, by {spec.writer}" for spec in specs
        if spec.foreign
    ]  # fmt: skip
    told = " ".join(proposal.warnings)
    nobodys = [spec.problem for spec in specs if spec.problem and spec.problem not in told]
    return [*theirs, *(f"Skipped: {problem}" for problem in nobodys)]


def _action(change: Change) -> str:
    return "create" if change.before is None else "remove" if change.after is None else "edit"


def plan_text(proposal: Proposal) -> str:
    """A plan for a person."""
    from agent.cli.diffs import diff

    lines = [*_head(proposal), "", *_toolkit_lines(proposal.toolkit)]
    lines += [f"make device node {node}" for node in proposal.nodes]
    for change in proposal.changes:
        lines += [f"{_action(change)} {change.path.host}", diff(change), ""]
    if not proposal.changes and not lines[-2].startswith("install "):
        lines.append("Files: nothing to change.")
    lines += _spec_lines(proposal)
    if proposal.restart is None:
        lines.append("Restart: none; the running runtime is as it should be.")
    else:
        kind, target = proposal.restart.kind, proposal.restart.target
        how = {"systemd": f"{target}, by systemd", "signal": f"SIGTERM to {target}",
               "none": "yours to do (--restart-mode=none)"}[kind]  # fmt: skip
        lines.append(f"Restart: {how}, because {'; '.join(proposal.gaps)}.")
        if proposal.restart.along:
            lines.append(f"With it: {', '.join(proposal.restart.along)}, by systemd.")
    if proposal.preflight:
        lines.append(f"Pre-flight: {proposal.preflight.note}.")
    if proposal.trial and proposal.trial.done:
        lines.append(f"Trial start: {proposal.trial.note}.")
    return "\n".join([*lines, *(f"Warning: {text}" for text in proposal.warnings)])


def _head(proposal: Proposal) -> list[str]:
    decision, runtime = proposal.decision, proposal.runtime
    default = "the default runtime" if decision.is_default else "not the default runtime"
    prefix = decision.annotation_prefix
    by = f"{decision.reason}, by {decision.source}"
    how = "an OCI hook, no handlers" if decision.hook else f"nvidia runtime in {decision.mode} mode"
    how = how if decision.hook else f"{how}, {default}"
    return [
        f"Runtime:  {runtime.answer.name} {runtime.version} at {runtime.socket.host}",
        f"Decision: row {decision.row}, native CDI {_word(decision.native)} ({by})",
        f"Why:      {decision.rule}",
        *(f"Seen:     {text}" for text in decision.evidence),
        f"So:       {how}; DEVICE_LIST_STRATEGY={','.join(decision.strategy)}"
        + (f", CDI_ANNOTATION_PREFIX={prefix}" if prefix else ""),
    ]


def _word(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[value]


def outcome_data(outcome: Outcome) -> dict[str, Any]:
    """The end of an apply for JSON."""
    return {
        "decision": decision_data(outcome.proposal.decision),
        "changed": list(outcome.changed),
        "restarted": outcome.restarted,
        "pending": outcome.pending,
        "recovered": outcome.recovered,
        "warnings": [*outcome.proposal.warnings, *_not_back(outcome)],
    }


def _not_back(outcome: Outcome) -> list[str]:
    return [not_back(name) for name in outcome.down]


def outcome_text(outcome: Outcome) -> str:
    """The end of an apply for a person."""
    lines = _head(outcome.proposal)
    lines += [f"Changed:  {path}" for path in outcome.changed]
    lines += _spec_lines(outcome.proposal)
    if outcome.recovered:
        lines.append(f"Earlier:  an unfinished change was {outcome.recovered}")
    if outcome.pending:
        lines.append("Pending:  files are written; restart the runtime, then run apply again")
    elif outcome.restarted and outcome.down:
        lines.append("Restarted: the runtime answers as wanted, but not all that ran is back")
    elif outcome.restarted:
        lines.append("Proven:   the runtime was restarted and answers as wanted")
    elif not outcome.changed:
        lines.append("Nothing to do: the node is right")
    warnings = (*outcome.proposal.warnings, *_not_back(outcome))
    return "\n".join([*lines, *(f"Warning:  {text}" for text in warnings)])


def reverted_data(done: Reverted) -> dict[str, Any]:
    """The end of a revert for JSON."""
    return {
        "changed": list(done.changed),
        "removed": list(done.removed),
        "restarted": done.restarted,
        "pending": done.pending,
        "warnings": list(done.notes),
    }


def reverted_text(done: Reverted) -> str:
    """The end of a revert for a person."""
    gone = set(done.removed)
    lines = [f"{'Removed: ' if path in gone else 'Restored:'} {path}" for path in done.changed]
    if done.pending:
        lines.append("Pending:  files are restored; restart the runtime")
    elif done.restarted:
        lines.append("Proven:   the runtime was restarted on its old configuration")
    lines = lines or ["Nothing to do: nothing was ever applied, or all is reverted"]
    return "\n".join([*lines, *(f"Warning:  {text}" for text in done.notes)])


def config_data(values: Iterable[Effective]) -> dict[str, Any]:
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


def config_text(values: Iterable[Effective]) -> str:
    """The same for a person."""
    rows = [("OPTION", "VALUE", "ORIGIN")]
    rows += [(item.option.all_flags[0], _setting(item.value), item.origin) for item in values]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{one:<{widths[0]}}  {two:<{widths[1]}}  {last}" for one, two, last in rows)


def _setting(value: object) -> str:
    """As it could be given."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(value) or '""'
    return (
        "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value) or '""'
    )


def report_text(report: Report) -> str:
    """A status report for a person."""
    rows = list(_rows(report.data()))
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in rows)


def _rows(data: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    for key, value in data.items():
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
