"""The decision: is CDI native on this node, and what follows from it.

Invariant: `decide` is pure and total. It answers every question with one row of the table in
DESIGN section 3, and says what was asked, what was seen, where, and which rule decided.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from agent.cri.versions import Version, parse_version

NVIDIA_PREFIX = "nvidia.cdi.k8s.io/"
CDI_PREFIX = "cdi.k8s.io/"


class Switch(enum.Enum):
    """What was seen of `enableCDI`. UNSEEN: the place to look at was not shown to us."""

    ABSENT = "absent"
    FALSE = "false"
    TRUE = "true"
    NULL = "null"
    UNSEEN = "unseen"


class Unseen(enum.Enum):
    """Stands for spec directories that we could not look at, other than none being there."""

    UNSEEN = "unseen"


SpecDirs = tuple[str, ...] | None | Unseen


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one source says: `source` is cri-status or config-dump; `spec_dirs` None is absent."""

    source: str
    switch: Switch = Switch.UNSEEN
    spec_dirs: SpecDirs = Unseen.UNSEEN

    @property
    def seen(self) -> bool:
        return self.switch is not Switch.UNSEEN or self.spec_dirs is not Unseen.UNSEEN


@dataclass(frozen=True, slots=True)
class PodNeeds:
    """What running pods lose with the row that they were created under, and so keep until they are
    gone: `default` nvidia as the default runtime, `prefixes` of their annotations, `variables`
    that ask for GPUs. `pods` are their names."""

    pods: tuple[str, ...]
    default: bool = False
    prefixes: tuple[str, ...] = ()
    variables: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """All that the decision depends on.

    `runtime` is the name that the CRI gave, None where nothing answered. `evidence` is ordered
    best first. `enabled_by_agent`: `enable_cdi = true` is there because we once wrote it.
    `set_as_default`, `mode`, `strategy`, `prefixes` are overrides, None where nobody asked;
    `default_negotiable` says that a false `set_as_default` is a wish and not an order.
    `needs` is None where no running pod needs anything that the row would take.
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


@dataclass(frozen=True, slots=True)
class Decision:
    """One row, with everything that other parts derive from it.

    `native` is None where it is unknown (row 9). `enable_cdi`: write `enable_cdi = true`.
    `prefixes`: what the nvidia runtime itself answers; `pass_prefixes`: those that containerd has
    to pass on to the handlers. `evidence` is what was seen, in words. `kept_for` are pods for
    whose sake `is_default`, `prefixes` and `variables` (an unprivileged container may ask by
    environment variable, though CDI is on) are not yet the row's own.
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
        """An OCI hook instead of handlers (CRI-O with CDI off)."""
        return self.mode == "hook"


_RULES = {
    1: "CDI is not wanted: the nvidia runtime is the default and works by environment variable",
    2: "CDI is not wanted on CRI-O: an OCI hook injects, no handler is needed",
    3: "containerd injects CDI devices itself (enableCDI is on)",
    4: "containerd can inject CDI devices itself once enable_cdi is switched on, and it may be",
    5: "containerd has CDI switched off and it may not be switched on: the nvidia runtime injects",
    6: "the runtime knows no CDI: the nvidia runtime injects",
    7: "containerd has CDI spec directories and no switch any more: it injects CDI devices itself",
    8: "CRI-O injects CDI devices itself",
    9: "the runtime does not answer, or is neither containerd nor CRI-O",
}

DEFAULT_DIRS = ("/etc/cdi", "/var/run/cdi")


def decide(question: Question) -> Decision:
    """The row that holds for this question; any question has one."""
    version = parse_version(question.version)
    seen = next((e for e in question.evidence if e.seen), Evidence("version"))
    row, source = _row(question, version, seen)
    decision = _fill(question, version, seen, row, source)
    return _keep(question, _override(question, decision))


def _row(q: Question, version: Version | None, seen: Evidence) -> tuple[int, str]:
    if q.runtime not in ("containerd", "cri-o"):
        return 9, "version"
    if not q.cdi:
        hook = q.runtime == "cri-o" and q.crio_mode != "config"
        return (2 if hook else 1), seen.source
    if q.forced is not None:
        return _forced_row(q, seen), "forced"
    if q.runtime == "cri-o":
        if isinstance(seen.spec_dirs, tuple):
            return 8, seen.source
        return (8 if version is not None and version >= (1, 24, 0) else 6), "version"
    return _containerd_row(q, version, seen)


def _forced_row(q: Question, seen: Evidence) -> int:
    if q.runtime == "cri-o":
        return 8 if q.forced else 6
    if q.forced:
        return 4 if _can_switch_on(q, seen.switch) else 3
    return 6 if seen.switch in (Switch.ABSENT, Switch.UNSEEN) else 5


def _containerd_row(q: Question, version: Version | None, seen: Evidence) -> tuple[int, str]:
    match seen.switch:
        case Switch.TRUE | Switch.NULL:
            return (4 if _can_switch_on(q, seen.switch) else 3), seen.source
        case Switch.FALSE:
            return (4 if q.may_enable else 5), seen.source
        case Switch.ABSENT | Switch.UNSEEN if isinstance(seen.spec_dirs, tuple):
            return 7, seen.source
        case Switch.ABSENT:
            return 6, seen.source
    # The version alone is the weakest evidence; without one, row 6 works on every containerd.
    if version is None or version < (1, 7, 0):
        return 6, "version"
    if version >= (2, 0, 0):
        return 3, "version"
    return (4 if q.may_enable else 5), "version"


def _can_switch_on(q: Question, switch: Switch) -> bool:
    """Row 4 stays row 4 once our edit is in force: the switch is on because we keep it on."""
    if not q.may_enable:
        return False
    return switch is Switch.FALSE or (switch is Switch.TRUE and q.enabled_by_agent)


def _fill(q: Question, version: Version | None, seen: Evidence, row: int, source: str) -> Decision:
    native = None if row == 9 else row in (3, 4, 7, 8)
    field = bool(native) and _cri_field(q, version)
    strategy: tuple[str, ...] = ("cdi-cri",) if field else ("cdi-annotations",)
    if not q.cdi or row == 9:
        strategy = ("envvar",) if row != 9 else ()
    prefixes: tuple[str, ...] = ()
    if q.cdi and row != 9:
        prefixes = (NVIDIA_PREFIX,) if native else (NVIDIA_PREFIX, CDI_PREFIX)
    if row == 8:
        prefixes = ()  # CRI-O gives a pod's annotations to its containers: anybody may write them
    if row == 5 and seen.switch in (Switch.TRUE, Switch.NULL):
        prefixes = (NVIDIA_PREFIX,)  # forced: containerd goes on answering cdi.k8s.io/ itself
    if q.prefixes is not None and row != 9:
        prefixes = q.prefixes
    modes = {1: "auto", 2: "hook", 9: ""}
    reasons = {1: "not-requested", 2: "not-requested", 4: "enabled-by-agent", 5: "disabled",
               6: "unsupported", 9: "unknown"}  # fmt: skip
    dirs = seen.spec_dirs if isinstance(seen.spec_dirs, tuple) else DEFAULT_DIRS
    return Decision(
        row=row,
        rule=_RULES[row],
        native=native,
        source=source,
        reason=reasons.get(row, "enabled"),
        mode=modes.get(row, "cdi"),
        is_default=row in (1, 5, 6),
        enable_cdi=row == 4,
        strategy=strategy,
        annotation_prefix=(CDI_PREFIX if native else NVIDIA_PREFIX) if native is not None and q.cdi
        else None,
        cri_field=field,
        prefixes=prefixes,
        pass_prefixes=prefixes if row in (5, 6) or q.prefixes else (),
        spec_dirs=() if row == 9 else dirs,
        evidence=_words(q, seen),
        warnings=(),
    )  # fmt: skip


def _keep(q: Question, decision: Decision) -> Decision:
    """What running pods still need, beside what the row wants. What is published is the row's: it
    is for pods to come. An OCI hook leaves no handler that could be kept."""
    needs = q.needs
    if needs is None or decision.row == 9 or decision.hook:
        return decision
    # What a native runtime answers itself would be injected twice.
    kept = tuple(p for p in needs.prefixes if not (decision.native and p == CDI_PREFIX))
    prefixes = tuple(dict.fromkeys((*decision.prefixes, *kept)))
    passed = tuple(dict.fromkeys((*decision.pass_prefixes, *kept)))
    keeps_default = needs.default and not decision.is_default
    what = [
        *(["nvidia as the default runtime"] if keeps_default else []),
        *(f"annotations {prefix}" for prefix in kept),
        *(["NVIDIA_VISIBLE_DEVICES in unprivileged containers"] if needs.variables else []),
    ]
    shown = ", ".join(needs.pods[:20]) + (" and others" if len(needs.pods) > 20 else "")
    warning = (
        f"kept for running pods: {', '.join(what)}; otherwise a container of these pods that "
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


def _cri_field(q: Question, version: Version | None) -> bool:
    """Does the CRI field arrive: containerd ignores it before 1.7.2, CRI-O before 1.28, and a
    kubelet before 1.28 drops it."""
    if q.kubelet is not None and q.kubelet < (1, 28):
        return False
    since = (1, 7, 2) if q.runtime == "containerd" else (1, 28, 0)
    return version is None or version >= since


def _words(q: Question, seen: Evidence) -> tuple[str, ...]:
    words = [
        f"CDI {'is' if q.cdi else 'is not'} wanted",
        f"the CRI names the runtime {q.runtime or 'nothing'} {q.version}".rstrip(),
    ]
    for item in q.evidence:
        dirs = item.spec_dirs
        shown = ", ".join(dirs) if isinstance(dirs, tuple) else "absent"
        shown = "unseen" if dirs is Unseen.UNSEEN else shown
        used = " (used)" if item is seen else ""
        words.append(f"{item.source}: enableCDI {item.switch.value}, cdiSpecDirs {shown}{used}")
    if q.forced is not None:
        words.append(f"--native-cdi={str(q.forced).lower()} was given")
    if q.enabled_by_agent:
        words.append("enable_cdi was switched on by this agent")
    if q.needs is not None:
        words.append(f"{len(q.needs.pods)} running pods need what another row gave them")
    return tuple(words)


def _override(q: Question, decision: Decision) -> Decision:
    """Explicit wishes: obeyed, with a warning where they contradict the row."""
    warnings = []
    if decision.row == 9:
        return decision
    if q.set_as_default is not None and q.set_as_default != decision.is_default:
        asked = str(q.set_as_default).lower()
        if not q.set_as_default and q.default_negotiable and decision.row in (5, 6):
            warnings.append(
                f"set-as-default={asked} from the environment is overruled: without native CDI "
                "only the default runtime brings GPUs to pods without a runtime class"
            )
        elif decision.hook:
            warnings.append(
                f"set-as-default={asked} has no meaning with an OCI hook; give --config-mode=config"
            )
        else:
            warnings.append(
                f"set-as-default={asked} was given, but this node needs "
                f"{str(decision.is_default).lower()}"
                + ("" if q.set_as_default else ": GPU pods without a runtime class get no GPU")
            )
            decision = replace(decision, is_default=q.set_as_default)
    if q.mode in ("legacy", "csv", "jit-cdi") and decision.row in (5, 6):
        warnings.append(
            f"mode {q.mode} was given, but this node needs cdi: in that mode "
            "nvidia-container-runtime ignores annotations, and the device plugin's pods get no "
            "GPU"
        )
    if q.mode is not None and not decision.hook:
        decision = replace(decision, mode=q.mode)
    if q.strategy is not None:
        if not decision.native and "cdi-cri" in q.strategy:
            warnings.append("device list strategy cdi-cri cannot work without native CDI")
        decision = replace(decision, strategy=q.strategy)
    if decision.row == 8 and decision.prefixes:
        warnings.append(
            f"annotation prefixes {', '.join(decision.prefixes)} were given: CRI-O copies a pod's "
            "annotations to its containers, so anyone who may create a pod can take any GPU "
            "without the scheduler"
        )
    reported = {e.switch for e in q.evidence if e.seen}
    if q.forced is True and decision.row == 3 and reported & {Switch.FALSE, Switch.ABSENT}:
        warnings.append("native CDI was forced, but the runtime does not report it as enabled")
    if q.forced is False and reported & {Switch.TRUE, Switch.NULL}:
        warnings.append(
            "native CDI was switched off by option, but the runtime reports it as enabled"
        )
    return replace(decision, warnings=tuple(warnings))
