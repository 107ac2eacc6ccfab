"""The output of `plan`, and the parts of it that other commands print too.

Invariant: pure functions of a proposal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from agent.cli.render.base import Screen, Tone, counted
from agent.decide import Decision
from agent.host.files import Change
from agent.plan.propose import Proposal
from agent.toolkit.install import ToolkitProposal

if TYPE_CHECKING:
    from agent.cdi.specs.spec_ownership import SpecStatus

Diffs: TypeAlias = Literal["all", "config", "none"]


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
            "along": list(restart.restarted_units) if restart else [],
            "because": list(proposal.unproven),
        },
        "preflight": {"done": proposal.preflight.done, "note": proposal.preflight.note}
        if proposal.preflight
        else None,
        "trial": {"done": proposal.trial.done, "note": proposal.trial.note}
        if proposal.trial
        else None,
        "refused": [error.message for error in proposal.refusals],
        "warnings": warnings_data(proposal),
    }


def text(proposal: Proposal, screen: Screen, diffs: Diffs = "config") -> str:
    """A plan for a person: the verdict, the decision, one line for each thing that `apply` would
    do, and the diffs that `diffs` selects."""
    lines = [*_verdict(proposal, screen), "", *head(proposal, screen)]
    for error in proposal.refusals:
        lines += screen.entry("Refused:", error.message, "bad")
    if done := steps(proposal, screen):
        lines += ["", *done]
    notes = [*_checks(proposal, screen), *spec_lines(proposal, screen)]
    notes += warning_lines(proposal, screen)
    if notes:
        lines += ["", *notes]
    for change in _shown(proposal, diffs):
        lines += ["", *_colored(change, screen)]
    return "\n".join(lines)


def _verdict(proposal: Proposal, screen: Screen) -> list[str]:
    """The first line: would `apply` change something, and would it refuse?"""
    if proposal.refusals:
        return screen.entry("Cannot apply:", "the reason is below the decision", "bad")
    if proposal.nothing_to_do:
        return screen.entry("Nothing to do:", "the node is configured as decided", "good")
    restart = proposal.restart
    specs = proposal.spec.changes if proposal.spec else ()
    files = len(configuration(proposal)) + len(specs)
    parts = [counted(files, "file")] if files else []
    if proposal.toolkit and proposal.toolkit.difference:
        parts.insert(0, "the toolkit")
    parts += [counted(len(proposal.nodes), "device node")] if proposal.nodes else []
    if restart is not None:
        note = " (yours to do)" if restart.kind == "none" else ""
        parts.append(f"a restart of {proposal.runtime.answer.name}{note}")
    words = f"{', '.join(parts) or 'old files to remove'} (`toolkit-agent apply`)"
    return screen.entry("Changes:", words, "warn")


def steps(proposal: Proposal, screen: Screen) -> list[str]:
    """One line for each thing that `apply` would do, in its order."""
    specs = proposal.spec.changes if proposal.spec else ()
    entries = [("make", f"device node {node}") for node in proposal.nodes]
    entries += _toolkit_steps(proposal.toolkit)
    entries += [(_action(change), _spec_words(change)) for change in specs]
    entries += [(_action(change), change.path.host) for change in configuration(proposal)]
    restart = proposal.restart
    if restart is not None:
        how = {"systemd": f"{restart.target}, by systemd", "signal": f"SIGTERM to {restart.target}",
               "none": "yours to do (--restart-mode=none)"}[restart.kind]  # fmt: skip
        entries.append(("restart", f"{how}, because {'; '.join(proposal.unproven)}"))
        if restart.restarted_units:
            entries.append(("with it", f"{', '.join(restart.restarted_units)}, by systemd"))
    return [line for verb, words in entries for line in screen.entry(verb, words)]


def configuration(proposal: Proposal) -> tuple[Change, ...]:
    """The changes of the runtime's configuration files, repairs first."""
    return (*proposal.repairs, *proposal.config_changes)


def _toolkit_steps(toolkit: ToolkitProposal | None) -> list[tuple[str, str]]:
    if toolkit is None or not toolkit.difference:
        return []
    directory, source = str(toolkit.found.directory), toolkit.found.origin.place
    origin = "" if source == directory else f", from {source}"
    write, remove = toolkit.difference.write, toolkit.difference.remove
    more = f", {len(remove)} removed" if remove else ""
    return [("install", f"{directory} (toolkit, {counted(len(write), 'file')}{more}{origin})")]


def _spec_words(change: Change) -> str:
    """The path of a CDI spec, with the number of its devices."""
    if change.after is None:
        return f"{change.path.host} (CDI spec)"
    from agent.cdi.specs import read

    spec = read.document(change.after.data).data
    devices = spec["devices"] if isinstance(spec, dict) else ()
    return f"{change.path.host} (CDI spec, {counted(len(devices), 'device')})"


def _checks(proposal: Proposal, screen: Screen) -> list[str]:
    """The lines of the checks that were made. Checks that were not possible are warnings."""
    checks = (("Checked:", proposal.preflight), ("Tried:", proposal.trial))
    return [line for label, check in checks if check is not None and check.done
            for line in screen.entry(label, check.note)]  # fmt: skip


def warnings_data(proposal: Proposal) -> list[str]:
    """The warnings for JSON, with the reasons for which `apply` refuses."""
    refused = (f"apply refuses: {error.message}" for error in proposal.refusals)
    return [*proposal.warnings, *refused]


def warning_lines(proposal: Proposal, screen: Screen, *more: str) -> list[str]:
    """The lines of the proposal's warnings and of `more`, each text once."""
    texts = dict.fromkeys((*proposal.warnings, *more))
    return [line for text in texts for line in screen.entry("Warning:", text, "warn")]


def _shown(proposal: Proposal, diffs: Diffs) -> tuple[Change, ...]:
    """The changes whose diffs are shown."""
    if diffs == "none":
        return ()
    return proposal.changes if diffs == "all" else configuration(proposal)


def _colored(change: Change, screen: Screen) -> Iterator[str]:
    from agent.cli.render.diffs import diff

    tones: dict[str, Tone] = {"+": "good", "-": "bad", "@": "bold"}
    for line in diff(change).split("\n"):
        tone = tones.get(line[:1])
        yield screen.paint(line, tone) if tone else line


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


def head(proposal: Proposal, screen: Screen) -> list[str]:
    """The lines with runtime, decision and evidence, for a person."""
    decision, runtime = proposal.decision, proposal.runtime
    used = [text for text in decision.evidence if text.endswith(" (used)")]
    seen = used or decision.evidence[2:]  # the first two repeat the options and the runtime
    default = "the default" if decision.is_default else "not the default"
    how = "an OCI hook" if decision.hook else f"nvidia (mode {decision.mode}) is {default}"
    parts = [f"DEVICE_LIST_STRATEGY={','.join(decision.strategy)}"]
    if decision.annotation_prefix and "cdi-annotations" in decision.strategy:
        parts.append(f"CDI_ANNOTATION_PREFIX={decision.annotation_prefix}")
    where = f"{runtime.answer.name} {runtime.version} at {runtime.socket.host}"
    return [
        *screen.entry("Runtime:", where),
        *screen.entry("Decision:", f"row {decision.row}: {decision.rule}"),
        *screen.entry("Seen:", "; ".join(seen) or f"version {runtime.version}"),
        *screen.entry("So:", f"{', '.join(parts)}, {how}"),
    ]


def spec_lines(proposal: Proposal, screen: Screen) -> list[str]:
    """The lines of the kinds that another writer provides, and of those that are missing for a
    reason that is in no warning."""
    specs = proposal.spec.specs if proposal.spec else ()
    entries = [("Not ours:", f"{spec.kind} is in {spec.file}, by {spec.writer}") for spec in specs
               if spec.is_foreign]  # fmt: skip
    texts = " ".join((*proposal.warnings, *(error.message for error in proposal.refusals)))
    entries += [("Skipped:", spec.problem) for spec in specs
                if spec.problem and spec.problem not in texts]  # fmt: skip
    return [line for label, words in entries for line in screen.entry(label, words)]


def _toolkit_data(toolkit: ToolkitProposal | None) -> dict[str, Any] | None:
    if toolkit is None:
        return None
    return {
        "directory": toolkit.found.directory.host,
        "source": toolkit.found.origin.place,
        "write": list(toolkit.difference.write),
        "remove": list(toolkit.difference.remove),
    }


def _action(change: Change) -> str:
    return "create" if change.before is None else "remove" if change.after is None else "edit"


def spec_data(spec: SpecStatus) -> dict[str, str | None]:
    """A kind of CDI devices with its file and its writer, for JSON."""
    return {
        "kind": spec.kind,
        "file": spec.file or None,
        "writer": spec.writer or None,
        "problem": spec.problem or None,
    }
