"""What `plan` prints, and what other commands print of a decision.

Invariant: pure functions of a proposal.
"""

from __future__ import annotations

from typing import Any

from agent.cdi.specs.spec_ownership import SpecStatus
from agent.decide import Decision
from agent.host.files import Change
from agent.plan.propose import Proposal
from agent.toolkit.install import ToolkitProposal


def data(proposal: Proposal) -> dict[str, Any]:
    """A plan for JSON."""
    from agent.cli.render.diffs import diff  # `apply` needs no diffs

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
        "specs": [spec_data(spec) for spec in (proposal.spec.specs if proposal.spec else ())],
        "restart": {
            "needed": restart is not None,
            "kind": restart.kind if restart else None,
            "target": restart.target if restart else None,
            "along": list(restart.along) if restart else [],
            "because": list(proposal.unproven),
        },
        "preflight": {"done": proposal.preflight.done, "note": proposal.preflight.note}
        if proposal.preflight
        else None,
        "trial": {"done": proposal.trial.done, "note": proposal.trial.note}
        if proposal.trial
        else None,
        "warnings": list(proposal.warnings),
    }


def text(proposal: Proposal) -> str:
    """A plan for a person."""
    from agent.cli.render.diffs import diff

    lines = [*head(proposal), "", *_toolkit_lines(proposal.toolkit)]
    lines += [f"make device node {node}" for node in proposal.nodes]
    for change in proposal.changes:
        lines += [f"{_action(change)} {change.path.host}", diff(change), ""]
    if not proposal.changes and not lines[-2].startswith("install "):
        lines.append("Files: nothing to change.")
    lines += spec_lines(proposal)
    if proposal.restart is None:
        lines.append("Restart: none; the running runtime is as it should be.")
    else:
        kind, target = proposal.restart.kind, proposal.restart.target
        how = {"systemd": f"{target}, by systemd", "signal": f"SIGTERM to {target}",
               "none": "yours to do (--restart-mode=none)"}[kind]  # fmt: skip
        lines.append(f"Restart: {how}, because {'; '.join(proposal.unproven)}.")
        if proposal.restart.along:
            lines.append(f"With it: {', '.join(proposal.restart.along)}, by systemd.")
    if proposal.preflight:
        lines.append(f"Pre-flight: {proposal.preflight.note}.")
    if proposal.trial and proposal.trial.done:
        lines.append(f"Trial start: {proposal.trial.note}.")
    return "\n".join([*lines, *(f"Warning: {text}" for text in proposal.warnings)])


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


def head(proposal: Proposal) -> list[str]:
    """Runtime and decision for a person."""
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


def spec_lines(proposal: Proposal) -> list[str]:
    """Kinds that are somebody else's, or nobody's for a reason that no warning tells."""
    specs = proposal.spec.specs if proposal.spec else ()
    theirs = [
        f"Not ours: {spec.kind} is in {spec.file}, by {spec.writer}" for spec in specs
        if spec.is_foreign
    ]  # fmt: skip
    told = " ".join(proposal.warnings)
    nobodys = [spec.problem for spec in specs if spec.problem and spec.problem not in told]
    return [*theirs, *(f"Skipped: {problem}" for problem in nobodys)]


def _toolkit_data(toolkit: ToolkitProposal | None) -> dict[str, Any] | None:
    if toolkit is None:
        return None
    return {
        "directory": toolkit.found.directory.host,
        "source": toolkit.found.origin.place,
        "write": list(toolkit.difference.write),
        "remove": list(toolkit.difference.remove),
    }


def _toolkit_lines(toolkit: ToolkitProposal | None) -> list[str]:
    if toolkit is None or not toolkit.difference:
        return []
    found, different = toolkit.found, toolkit.difference
    names = (*different.write, *(f"{name} (goes)" for name in different.remove))
    return [f"install {found.directory} from {found.origin.place}: {', '.join(names)}", ""]


def _action(change: Change) -> str:
    return "create" if change.before is None else "remove" if change.after is None else "edit"


def _word(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[value]


def spec_data(spec: SpecStatus) -> dict[str, str | None]:
    """Who has a kind of CDI devices, for JSON."""
    return {
        "kind": spec.kind,
        "file": spec.file or None,
        "writer": spec.writer or None,
        "problem": spec.problem or None,
    }
