"""The decision: one row of the table in README.md for each node, and the settings of that row.

Invariant: `decide` is pure, and returns a decision for every question. A decision has the evidence
with its source, and the rule that was applied.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from agent.cri.versions import Version, parse_version

NVIDIA_PREFIX = "nvidia.cdi.k8s.io/"
CDI_PREFIX = "cdi.k8s.io/"


class Switch(enum.Enum):
    """The value of `enableCDI` in a source. NULL: the key has no value. ABSENT: the source has the
    section without the key. UNSEEN: the source does not show the section."""

    ABSENT = "absent"
    FALSE = "false"
    TRUE = "true"
    NULL = "null"
    UNSEEN = "unseen"


@dataclass(frozen=True)
class Evidence:
    """The evidence of CDI in one source, cri-status or config-dump. `spec_dirs` are the directories
    of CDI specs, None if the source does not show them."""

    source: str
    switch: Switch = Switch.UNSEEN
    spec_dirs: tuple[str, ...] | None = None

    @property
    def seen(self) -> bool:
        return self.switch is not Switch.UNSEEN or self.spec_dirs is not None


@dataclass(frozen=True)
class PodNeeds:
    """The settings of an earlier row that running pods need, so that they stay until these pods are
    gone. `pods` are the names of the pods.

    `default`: do they need nvidia as the default runtime? `prefixes`: the prefixes of their
    annotations. `variables`: do they ask for GPUs by environment variable?"""

    pods: tuple[str, ...]
    default: bool = False
    prefixes: tuple[str, ...] = ()
    variables: bool = False


@dataclass(frozen=True)
class Question:
    """The input of the decision.

    `cdi`: is CDI enabled (--cdi-enabled)?
    `runtime`, `version`: as the runtime spells them in the CRI; None and "" if no runtime answers.
    `evidence`: the best source first.
    `may_enable`: may this agent switch CDI on in containerd?
    `enabled_by_agent`: did this agent write `enable_cdi = true`?
    `forced`: the value of --native-cdi, None for auto.
    `set_as_default`, `mode`, `strategy`, `prefixes`: from options, None if not given.
    `default_negotiable`: may the decision overrule a false `set_as_default`?
    `kubelet`: the version of the kubelet, None if not given. `crio_mode`: --config-mode.
    `needs`: None if no running pod needs a setting that the row would remove.
    """

    cdi: bool = True
    runtime: str | None = "containerd"
    version: str = ""
    evidence: tuple[Evidence, ...] = ()
    may_enable: bool = True
    enabled_by_agent: bool = False
    forced: bool | None = None
    set_as_default: bool | None = None
    default_negotiable: bool = False
    mode: str | None = None
    strategy: tuple[str, ...] | None = None
    prefixes: tuple[str, ...] | None = None
    kubelet: tuple[int, int] | None = None
    crio_mode: str | None = None
    needs: PodNeeds | None = None


@dataclass(frozen=True)
class Decision:
    """A row of the table, and all settings that follow from it.

    `row`, `rule`: the number and the text of the row.
    `native`: does the runtime inject devices? None if that is not known (row 9).
    `source`, `reason`: where the evidence comes from, and the reason in one word.
    `mode`: that of nvidia-container-runtime; "hook" for an OCI hook in place of handlers.
    `is_default`: is nvidia the default runtime?
    `enable_cdi`: is `enable_cdi = true` written?
    `strategy`, `annotation_prefix`: for the device plugin.
    `cri_field`: does the runtime obey the CRI's field for CDI devices?
    `prefixes`: the annotation prefixes that NVIDIA's runtime answers. `pass_prefixes`: those that
    containerd has to pass on to the handlers.
    `spec_dirs`: the directories of CDI specs that the runtime reads.
    `evidence`, `warnings`: in words.
    `kept_for`: the running pods for which `is_default`, `prefixes` and `variables` differ from the
    row.
    `variables`: may an unprivileged container ask by environment variable although CDI is on?
    """

    row: int
    rule: str
    native: bool | None
    source: str
    reason: str
    mode: str
    is_default: bool
    enable_cdi: bool
    strategy: tuple[str, ...]
    annotation_prefix: str | None
    cri_field: bool
    prefixes: tuple[str, ...]
    pass_prefixes: tuple[str, ...]
    spec_dirs: tuple[str, ...]
    evidence: tuple[str, ...]
    warnings: tuple[str, ...]
    kept_for: tuple[str, ...] = ()
    variables: bool = False

    @property
    def hook(self) -> bool:
        """Does an OCI hook replace the handlers (CRI-O with CDI off)?"""
        return self.mode == "hook"


@dataclass(frozen=True)
class _Row:
    """The columns of a row from which the others follow."""

    native: bool | None
    reason: str
    rule: str
    is_default: bool = False
    mode: str = "cdi"


# The modes in which nvidia-container-runtime determines the devices of a container without CDI
# specs and annotations.
MODES_WITHOUT_CDI = ("legacy", "csv", "jit-cdi")

_ROWS = {
    1: _Row(False, "not-requested",
            "CDI is disabled by option: the nvidia runtime is the default, and injects by "
            "environment variable", is_default=True, mode="auto"),
    2: _Row(False, "not-requested",
            "CDI is disabled by option: on CRI-O an OCI hook injects, and no handler is needed",
            mode="hook"),
    3: _Row(True, "enabled", "containerd injects CDI devices itself (enableCDI is on)"),
    4: _Row(True, "enabled-by-agent",
            "containerd can inject CDI devices itself once enable_cdi is switched on, which this "
            "agent may do"),
    5: _Row(False, "disabled",
            "CDI is off in containerd, and this agent may not switch it on: the nvidia runtime "
            "injects", is_default=True),
    6: _Row(False, "unsupported", "the runtime knows no CDI: the nvidia runtime injects",
            is_default=True),
    7: _Row(True, "enabled",
            "containerd has CDI spec directories and no enable_cdi setting: it injects CDI devices "
            "itself"),
    8: _Row(True, "enabled", "CRI-O injects CDI devices itself"),
    9: _Row(None, "unknown", "the runtime does not answer, or is neither containerd nor CRI-O",
            mode=""),
}  # fmt: skip

# The first version that obeys the CRI's field for CDI devices.
_FIELD_SINCE: dict[str, Version] = {"containerd": (1, 7, 2), "cri-o": (1, 28, 0)}

DEFAULT_DIRS = ("/etc/cdi", "/var/run/cdi")


def decide(question: Question) -> Decision:
    """The decision for a question. Never raises."""
    version = parse_version(question.version)
    seen = next((e for e in question.evidence if e.seen), Evidence("version"))
    row, source = _row(question, version, seen)
    decision = _fill(question, version, seen, row, source)
    return _with_pod_needs(question, _with_overrides(question, decision))


def _row(question: Question, version: Version | None, seen: Evidence) -> tuple[int, str]:
    if question.runtime not in ("containerd", "cri-o"):
        return 9, "version"
    is_crio, forced = question.runtime == "cri-o", question.forced
    if not question.cdi:
        return (2 if is_crio and question.crio_mode != "config" else 1), seen.source
    if forced is not None and is_crio:
        return (8 if forced else 6), "forced"
    if forced:
        return (4 if _can_switch_on(question, seen.switch) else 3), "forced"
    if forced is not None:
        return (6 if seen.switch in (Switch.ABSENT, Switch.UNSEEN) else 5), "forced"
    if not is_crio:
        return _containerd_row(question, version, seen)
    if seen.spec_dirs is not None:
        return 8, seen.source
    return (8 if version is not None and version >= (1, 24, 0) else 6), "version"


def _containerd_row(question: Question, version: Version | None, seen: Evidence) -> tuple[int, str]:
    match seen.switch:
        case Switch.TRUE | Switch.NULL:
            return (4 if _can_switch_on(question, seen.switch) else 3), seen.source
        case Switch.FALSE:
            return (4 if question.may_enable else 5), seen.source
        case Switch.ABSENT | Switch.UNSEEN if seen.spec_dirs is not None:
            return 7, seen.source
        case Switch.ABSENT:
            return 6, seen.source
    # The version alone is the weakest evidence; without one, row 6 works on every containerd.
    if version is None or version < (1, 7, 0):
        return 6, "version"
    if version >= (2, 0, 0):
        return 3, "version"
    return (4 if question.may_enable else 5), "version"


def _can_switch_on(question: Question, switch: Switch) -> bool:
    """Is this row 4: may this agent switch CDI on, or did it do so? The row stays the same after
    our edit."""
    if not question.may_enable:
        return False
    return switch is Switch.FALSE or (switch is Switch.TRUE and question.enabled_by_agent)


def _fill(
    question: Question, version: Version | None, seen: Evidence, row: int, source: str
) -> Decision:
    columns, native = _ROWS[row], _ROWS[row].native
    # A kubelet before 1.28 drops the CRI's own field for CDI devices.
    reaches = question.kubelet is None or question.kubelet >= (1, 28)
    reads = version is None or version >= _FIELD_SINCE.get(question.runtime or "", (0, 0, 0))
    field = bool(native) and reaches and reads
    strategy: tuple[str, ...] = ("cdi-cri",) if field else ("cdi-annotations",)
    if not question.cdi or row == 9:
        strategy = ("envvar",) if row != 9 else ()
    annotation_prefix = CDI_PREFIX if native else NVIDIA_PREFIX
    prefixes: tuple[str, ...] = ()
    if question.cdi and row != 9:
        prefixes = (NVIDIA_PREFIX,) if native else (NVIDIA_PREFIX, CDI_PREFIX)
    if row == 8:
        prefixes = ()  # CRI-O copies a pod's annotations to its containers, and any user sets them
    if row == 5 and seen.switch in (Switch.TRUE, Switch.NULL):
        prefixes = (NVIDIA_PREFIX,)  # forced: containerd goes on answering cdi.k8s.io/ itself
    if question.prefixes is not None and row != 9:
        prefixes = question.prefixes
    dirs = DEFAULT_DIRS if seen.spec_dirs is None else seen.spec_dirs
    return Decision(
        row=row,
        rule=columns.rule,
        native=native,
        source=source,
        reason=columns.reason,
        mode=columns.mode,
        is_default=columns.is_default,
        enable_cdi=row == 4,
        strategy=strategy,
        annotation_prefix=annotation_prefix if question.cdi and row != 9 else None,
        cri_field=field,
        prefixes=prefixes,
        pass_prefixes=prefixes if row in (5, 6) or question.prefixes else (),
        spec_dirs=() if row == 9 else dirs,
        evidence=_evidence_words(question, seen),
        warnings=(),
    )  # fmt: skip


def _with_pod_needs(question: Question, decision: Decision) -> Decision:
    """The decision with the settings that running pods need. The published values stay those of the
    row, because they are for new pods. With an OCI hook, no handler exists that could be kept."""
    needs = question.needs
    if needs is None or decision.row == 9 or decision.hook:
        return decision
    # A prefix that a native runtime answers itself would inject devices twice.
    kept = tuple(p for p in needs.prefixes if not (decision.native and p == CDI_PREFIX))
    prefixes = tuple(dict.fromkeys((*decision.prefixes, *kept)))
    passed = tuple(dict.fromkeys((*decision.pass_prefixes, *kept)))
    keeps_default = needs.default and not decision.is_default
    kept_words = [
        *(["nvidia as the default runtime"] if keeps_default else []),
        *(f"annotations {prefix}" for prefix in kept),
        *(["NVIDIA_VISIBLE_DEVICES in unprivileged containers"] if needs.variables else []),
    ]
    shown = ", ".join(needs.pods[:20]) + (" and others" if len(needs.pods) > 20 else "")
    warning = (
        f"kept for running pods: {', '.join(kept_words)}; otherwise a container of these pods that "
        f"restarts would have no GPU: {shown}; once they are gone, the next convergence applies "
        f"row {decision.row}"
    )
    return replace(
        decision,
        is_default=decision.is_default or keeps_default,
        prefixes=prefixes,
        pass_prefixes=passed,
        variables=needs.variables,
        kept_for=needs.pods,
        warnings=(*decision.warnings, warning),
    )


def _evidence_words(question: Question, seen: Evidence) -> tuple[str, ...]:
    words = [
        f"CDI {'is' if question.cdi else 'is not'} wanted",
        f"the CRI names the runtime {question.runtime or 'nothing'} {question.version}".rstrip(),
    ]
    for item in question.evidence:
        nothing = "unseen" if item.switch is Switch.UNSEEN else "absent"
        shown = nothing if item.spec_dirs is None else ", ".join(item.spec_dirs)
        used = " (used)" if item is seen else ""
        words.append(f"{item.source}: enableCDI {item.switch.value}, cdiSpecDirs {shown}{used}")
    if question.forced is not None:
        words.append(f"--native-cdi={str(question.forced).lower()} was given")
    if question.enabled_by_agent:
        words.append("enable_cdi was switched on by this agent")
    if question.needs is not None:
        words.append(f"{len(question.needs.pods)} running pods need what another row gave them")
    return tuple(words)


def _with_overrides(question: Question, decision: Decision) -> Decision:
    """The decision with the settings of options, and a warning for each that contradicts the
    row."""
    if decision.row == 9:
        return decision
    decision, warnings = _with_given_default(question, decision)
    if question.mode in MODES_WITHOUT_CDI and decision.row in (5, 6):
        warnings.append(
            f"mode {question.mode} was given, but this node needs cdi: in that mode "
            "nvidia-container-runtime ignores annotations, and the device plugin's pods get no "
            "GPU"
        )
    if question.mode is not None and not decision.hook:
        decision = replace(decision, mode=question.mode)
    if question.strategy is not None:
        if not decision.native and "cdi-cri" in question.strategy:
            warnings.append("device list strategy cdi-cri cannot work without native CDI")
        decision = replace(decision, strategy=question.strategy)
    if decision.row == 8 and decision.prefixes:
        warnings.append(
            f"annotation prefixes {', '.join(decision.prefixes)} were given: CRI-O copies a pod's "
            "annotations to its containers, so anyone who may create a pod can take any GPU "
            "without the scheduler"
        )
    reported = {e.switch for e in question.evidence if e.seen}
    if question.forced is True and decision.row == 3 and reported & {Switch.FALSE, Switch.ABSENT}:
        warnings.append("native CDI was forced, but the runtime does not report it as enabled")
    if question.forced is False and reported & {Switch.TRUE, Switch.NULL}:
        warnings.append(
            "native CDI was switched off by option, but the runtime reports it as enabled"
        )
    return replace(decision, warnings=tuple(warnings))


def _with_given_default(question: Question, decision: Decision) -> tuple[Decision, list[str]]:
    """The decision with the default runtime of --set-as-default, and warnings."""
    given = question.set_as_default
    if given is None or given == decision.is_default:
        return decision, []
    asked = f"set-as-default={str(given).lower()}"
    if not given and question.default_negotiable and decision.row in (5, 6):
        warning = (
            f"{asked} from the environment is overruled: without native CDI "
            "only the default runtime brings GPUs to pods without a runtime class"
        )
        return decision, [warning]
    if decision.hook:
        return decision, [f"{asked} has no meaning with an OCI hook; give --config-mode=config"]
    needed = str(decision.is_default).lower()
    effect = "" if given else ": GPU pods without a runtime class get no GPU"
    warning = f"{asked} was given, but this node needs {needed}{effect}"
    return replace(decision, is_default=given), [warning]
