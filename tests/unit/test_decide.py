"""The decision: every row and boundary against its golden, and what holds for any question.

`golden/decisions.json` was reviewed line by line against the table of decisions. To regenerate it
after a change of that table, run

    python -m tests.unit.test_decide

and review the difference: a line that you did not mean to change is a regression.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.decide import Decision, Evidence, PodNeeds, Question, Switch, decide

GOLDEN = Path(__file__).with_name("golden") / "decisions.json"

DIRS = ("/etc/cdi", "/var/run/cdi")
NVIDIA, CDI = "nvidia.cdi.k8s.io/", "cdi.k8s.io/"
ROWS = range(1, 10)


def seen(
    switch: str, dirs: tuple[str, ...] | None = DIRS, source: str = "cri-status"
) -> tuple[Evidence, ...]:
    """Return what one source says."""
    return (Evidence(source, Switch(switch), dirs),)


NOTHING = (Evidence("cri-status"),)
ON = seen("true")
OFF = seen("false")
OLD = seen("absent", None)
FUTURE = seen("absent")
CRIO = (Evidence("cri-status", Switch.UNSEEN, ("/etc/cdi", "/var/run/cdi")),)

BY_ANNOTATION = PodNeeds(("ml/train-0 (default)",), default=True, prefixes=(NVIDIA,))
BY_VARIABLE = PodNeeds(("ml/infer-0 (default)",), default=True, variables=True)

# Name: (row, question). Defaults: containerd, CDI wanted, enable_cdi may be written, no override.
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    # Row 1 and 2: CDI is not wanted.
    "cdi off, containerd 2.1": (1, {"cdi": False, "version": "2.1.9", "evidence": ON}),
    "cdi off, containerd 1.6": (1, {"cdi": False, "version": "1.6.20~ds1", "evidence": OLD}),
    "cdi off, containerd unseen": (1, {"cdi": False, "version": "1.7.2", "evidence": NOTHING}),
    "cdi off, forced": (1, {"cdi": False, "version": "2.1.9", "evidence": ON, "forced": True}),
    "cdi off, not default": (
        1,
        {"cdi": False, "version": "2.1.9", "evidence": ON, "set_as_default": False},
    ),
    "cdi off, negotiable false": (
        1,
        {
            "cdi": False, "version": "2.1.9", "evidence": ON, "set_as_default": False,
            "default_negotiable": True,
        },
    ),
    "cdi off, cri-o": (2, {"cdi": False, "runtime": "cri-o", "version": "1.33.0"}),
    "cdi off, cri-o, hook asked for": (
        2,
        {"cdi": False, "runtime": "cri-o", "version": "1.33.0", "crio_mode": "hook"},
    ),
    "cdi off, cri-o, config mode": (
        1,
        {"cdi": False, "runtime": "cri-o", "version": "1.33.0", "crio_mode": "config"},
    ),
    "cdi off, cri-o, mode given": (
        2,
        {"cdi": False, "runtime": "cri-o", "version": "1.33.0", "mode": "legacy"},
    ),
    "cdi off, cri-o, default asked for": (
        2,
        {"cdi": False, "runtime": "cri-o", "version": "1.33.0", "set_as_default": True},
    ),
    # Row 3: on.
    "2.1, on": (3, {"version": "2.1.9+unknown", "evidence": ON}),
    "2.0.0, on": (3, {"version": "2.0.0", "evidence": ON}),
    "2.3, null": (3, {"version": "v2.3.4", "evidence": seen("null")}),
    "1.7.2, on": (3, {"version": "1.7.2", "evidence": ON}),
    "1.7.1, on": (3, {"version": "1.7.1", "evidence": ON}),
    "1.7.0, on": (3, {"version": "1.7.0", "evidence": ON}),
    "on, dirs unseen": (3, {"version": "2.1.9", "evidence": seen("true", None)}),
    "on, dirs absent": (3, {"version": "2.1.9", "evidence": seen("true", None)}),
    "on, other dirs": (3, {"version": "2.1.9", "evidence": seen("true", ("/run/cdi",))}),
    "on, may not enable": (3, {"version": "2.1.9", "evidence": ON, "may_enable": False}),
    "on, unparsable version": (3, {"version": "main", "evidence": ON}),
    "2.1, nothing seen": (3, {"version": "2.1.9", "evidence": NOTHING}),
    "2.0.0, nothing seen": (3, {"version": "2.0.0"}),
    "dump says on": (
        3,
        {"version": "1.7.24", "evidence": NOTHING + seen("true", DIRS, "config-dump")},
    ),
    "status before dump": (
        3,
        {"version": "2.1.9", "evidence": ON + seen("false", DIRS, "config-dump")},
    ),
    # Row 4 and 5: off.
    "1.7.24, off": (4, {"version": "1.7.24~ds1", "evidence": OFF}),
    "1.7.2, off": (4, {"version": "1.7.2", "evidence": OFF}),
    "1.7.1, off": (4, {"version": "1.7.1", "evidence": OFF}),
    "1.7.0, off": (4, {"version": "1.7.0", "evidence": OFF}),
    "2.1, off": (4, {"version": "2.1.9", "evidence": OFF}),
    "off, dirs absent": (4, {"version": "2.1.9", "evidence": seen("false", None)}),
    "off, dirs unseen": (4, {"version": "2.1.9", "evidence": seen("false", None)}),
    "on by our own hand": (4, {"version": "1.7.24", "evidence": ON, "enabled_by_agent": True}),
    "on by our own hand, may not any more": (
        3,
        {"version": "1.7.24", "evidence": ON, "enabled_by_agent": True, "may_enable": False},
    ),
    "1.7.24, nothing seen": (4, {"version": "1.7.24", "evidence": NOTHING}),
    "1.7.0, nothing seen": (4, {"version": "1.7.0"}),
    "1.7.24, off, may not": (5, {"version": "1.7.24", "evidence": OFF, "may_enable": False}),
    "2.1, off, may not": (5, {"version": "2.1.9", "evidence": OFF, "may_enable": False}),
    "1.7.24, nothing seen, may not": (5, {"version": "1.7.24", "may_enable": False}),
    "dump says off, may not": (
        5,
        {
            "version": "1.7.24", "evidence": NOTHING + seen("false", DIRS, "config-dump"),
            "may_enable": False,
        },
    ),
    # Row 6 and 7: no such key.
    "1.6": (6, {"version": "1.6.20~ds1", "evidence": OLD}),
    "1.6, may not": (6, {"version": "1.6.20~ds1", "evidence": OLD, "may_enable": False}),
    "both absent beats the version": (6, {"version": "2.1.9", "evidence": OLD}),
    "1.6, nothing seen": (6, {"version": "1.6.36", "evidence": NOTHING}),
    "unparsable version, nothing seen": (6, {"version": "main", "evidence": NOTHING}),
    "2.4, key gone": (7, {"version": "2.4.0", "evidence": FUTURE}),
    "2.4, key gone, may not": (7, {"version": "2.4.0", "evidence": FUTURE, "may_enable": False}),
    # Row 8: CRI-O.
    "cri-o 1.37": (8, {"runtime": "cri-o", "version": "1.37.0", "evidence": CRIO}),
    "cri-o 1.37, prefixes given": (
        8,
        {
            "runtime": "cri-o", "version": "1.37.0", "evidence": CRIO,
            "prefixes": ("example.com/",),
        },
    ),
    "cri-o 1.33": (8, {"runtime": "cri-o", "version": "1.33.0", "evidence": CRIO}),
    "cri-o 1.28, nothing seen": (
        8,
        {"runtime": "cri-o", "version": "1.28.0", "evidence": NOTHING},
    ),
    "cri-o 1.27, nothing seen": (
        8,
        {"runtime": "cri-o", "version": "1.27.9", "evidence": NOTHING},
    ),
    "cri-o 1.24, nothing seen": (
        8,
        {"runtime": "cri-o", "version": "1.24.0", "evidence": NOTHING},
    ),
    "cri-o 1.23": (6, {"runtime": "cri-o", "version": "1.23.5", "evidence": NOTHING}),
    "cri-o 1.23, dirs seen": (8, {"runtime": "cri-o", "version": "1.23.5", "evidence": CRIO}),
    "cri-o, dirs by dump": (
        8,
        {
            "runtime": "cri-o", "version": "1.28.0",
            "evidence": (*NOTHING, Evidence("config-dump", Switch.UNSEEN, ("/run/cdi",))),
        },
    ),
    # Row 9: nothing to decide for.
    "no answer": (9, {"runtime": None}),
    "no answer, cdi off": (9, {"runtime": None, "cdi": False}),
    "docker": (9, {"runtime": "docker", "version": "28.0.0"}),
    "no answer, everything asked for": (
        9,
        {
            "runtime": None, "forced": True, "set_as_default": True, "mode": "legacy",
            "strategy": ("envvar",), "prefixes": ("example.com/",),
        },
    ),
    # The kubelet's part of the CRI field.
    "kubelet 1.27": (3, {"version": "2.1.9", "evidence": ON, "kubelet": (1, 27)}),
    "kubelet 1.28": (3, {"version": "2.1.9", "evidence": ON, "kubelet": (1, 28)}),
    "kubelet 1.27, cri-o": (
        8,
        {"runtime": "cri-o", "version": "1.33.0", "evidence": CRIO, "kubelet": (1, 27)},
    ),
    # Forced.
    "forced on, on": (3, {"version": "2.1.9", "evidence": ON, "forced": True}),
    "forced on, off": (4, {"version": "1.7.24", "evidence": OFF, "forced": True}),
    "forced on, off, may not": (
        3,
        {"version": "1.7.24", "evidence": OFF, "forced": True, "may_enable": False},
    ),
    "forced on, 1.6": (3, {"version": "1.6.20", "evidence": OLD, "forced": True}),
    "forced on, cri-o 1.23": (
        8,
        {"runtime": "cri-o", "version": "1.23.0", "evidence": NOTHING, "forced": True},
    ),
    "forced off, off": (5, {"version": "1.7.24", "evidence": OFF, "forced": False}),
    "forced off, 1.6": (6, {"version": "1.6.20", "evidence": OLD, "forced": False}),
    "forced off, cri-o": (
        6,
        {"runtime": "cri-o", "version": "1.33.0", "evidence": CRIO, "forced": False},
    ),
    # Overrides.
    "default asked for, native": (
        3,
        {"version": "2.1.9", "evidence": ON, "set_as_default": True},
    ),
    "default asked for, as the row": (
        6,
        {"version": "1.6.20", "evidence": OLD, "set_as_default": True},
    ),
    "default refused, as the row": (
        3,
        {"version": "2.1.9", "evidence": ON, "set_as_default": False},
    ),
    "default refused, 1.6": (6, {"version": "1.6.20", "evidence": OLD, "set_as_default": False}),
    "default refused, negotiable, 1.6": (
        6,
        {
            "version": "1.6.20", "evidence": OLD, "set_as_default": False,
            "default_negotiable": True,
        },
    ),
    "default refused, negotiable, off": (
        5,
        {
            "version": "1.7.24", "evidence": OFF, "may_enable": False, "set_as_default": False,
            "default_negotiable": True,
        },
    ),
    "default asked for, negotiable": (
        3,
        {"version": "2.1.9", "evidence": ON, "set_as_default": True, "default_negotiable": True},
    ),
    "mode legacy": (3, {"version": "2.1.9", "evidence": ON, "mode": "legacy"}),
    "mode jit-cdi": (6, {"version": "1.6.20", "evidence": OLD, "mode": "jit-cdi"}),
    "strategy envvar": (3, {"version": "2.1.9", "evidence": ON, "strategy": ("envvar",)}),
    "strategy of two": (
        3,
        {"version": "1.7.0", "evidence": ON, "strategy": ("cdi-annotations", "cdi-cri")},
    ),
    "strategy cdi-cri without native": (
        6,
        {"version": "1.6.20", "evidence": OLD, "strategy": ("cdi-cri",)},
    ),
    "prefixes given, native": (
        3,
        {"version": "2.1.9", "evidence": ON, "prefixes": ("example.com/",)},
    ),
    # Pods of another row still run.
    "1.7.24 after 1.6, pods by annotation": (
        4,
        {"version": "1.7.24", "evidence": OFF, "needs": BY_ANNOTATION},
    ),
    "2.1 after row 5, pods by annotation": (
        3,
        {"version": "2.1.9", "evidence": ON, "needs": BY_ANNOTATION},
    ),
    "2.1 after row 1, pods by variable": (
        3,
        {"version": "2.1.9", "evidence": ON, "needs": BY_VARIABLE},
    ),
    "1.6 after row 1, pods by variable": (
        6,
        {
            "version": "1.6.20",
            "evidence": OLD,
            "needs": PodNeeds(("a/b (default)",), variables=True),
        },
    ),
    "cdi off after row 6, pods by annotation": (
        1,
        {
            "cdi": False,
            "version": "1.6.20",
            "evidence": OLD,
            "needs": PodNeeds(("a/b (default)",), prefixes=(NVIDIA,)),
        },
    ),
    "cri-o after row 6, pods by annotation": (
        8,
        {"runtime": "cri-o", "version": "1.30.14", "evidence": CRIO, "needs": BY_ANNOTATION},
    ),
    "default refused, pods by annotation": (
        3,
        {"version": "2.1.9", "evidence": ON, "set_as_default": False, "needs": BY_ANNOTATION},
    ),
    "hook, pods by annotation": (
        2,
        {"cdi": False, "runtime": "cri-o", "version": "1.33.0", "needs": BY_ANNOTATION},
    ),
    "nothing answers, pods by annotation": (9, {"runtime": None, "needs": BY_ANNOTATION}),
    "2.1, a prefix that it answers itself": (
        3,
        {
            "version": "2.1.9",
            "evidence": ON,
            "needs": PodNeeds(("a/b (default)",), default=True, prefixes=(CDI, NVIDIA)),
        },
    ),
}  # fmt: skip


def as_json(decision: Decision) -> dict[str, Any]:
    """Return a decision as the golden holds it: all but its words."""
    fields = dataclasses.asdict(decision)
    del fields["rule"], fields["evidence"]
    fields["warnings"] = [re.split("[:;]", warning)[0] for warning in decision.warnings]
    return json.loads(json.dumps(fields))  # type: ignore[no-any-return]


def golden() -> dict[str, dict[str, Any]]:
    """Return the reviewed decisions by the name of their case."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CASES)
def test_decision_is_the_reviewed_one(name: str) -> None:
    """One line of the golden per row and boundary; the row is said here as well."""
    row, question = CASES[name]
    decision = decide(Question(**question))
    assert decision.row == row
    assert as_json(decision) == golden()[name]


def test_golden_has_a_case_for_every_row_and_no_other() -> None:
    """A case that is taken out of the list must not live on in the file."""
    assert set(golden()) == set(CASES)
    assert {row for row, _ in CASES.values()} == set(ROWS)


# The table itself, by row: mode, default runtime, enable_cdi written, strategies that may follow,
# CDI_ANNOTATION_PREFIX, native.
TABLE: dict[int, tuple[str, bool, bool, set[str], str | None, bool | None]] = {
    1: ("auto", True, False, {"envvar"}, None, False),
    2: ("hook", False, False, {"envvar"}, None, False),
    3: ("cdi", False, False, {"cdi-cri", "cdi-annotations"}, CDI, True),
    4: ("cdi", False, True, {"cdi-cri", "cdi-annotations"}, CDI, True),
    5: ("cdi", True, False, {"cdi-annotations"}, NVIDIA, False),
    6: ("cdi", True, False, {"cdi-annotations"}, NVIDIA, False),
    7: ("cdi", False, False, {"cdi-cri", "cdi-annotations"}, CDI, True),
    8: ("cdi", False, False, {"cdi-cri", "cdi-annotations"}, CDI, True),
    9: ("", False, False, set(), None, None),
}

directories = st.none() | st.lists(st.text(max_size=9)).map(tuple)
evidence = st.builds(
    Evidence, st.sampled_from(["cri-status", "config-dump"]), st.sampled_from(Switch), directories
)
versions = st.text(max_size=9) | st.builds(
    "{}{}.{}.{}{}".format,
    st.sampled_from(["", "v"]),
    st.integers(0, 3),
    st.integers(0, 40),
    st.integers(0, 30),
    st.sampled_from(["", "~ds1", "+unknown", "-k3s1"]),
)
maybe = st.none() | st.booleans()
plain = st.builds(
    Question,
    cdi=st.booleans(),
    runtime=st.sampled_from(["containerd", "containerd", "cri-o", "cri-o", "docker", "", None]),
    version=versions,
    evidence=st.lists(evidence, max_size=2).map(tuple),
    may_enable=st.booleans(),
    enabled_by_agent=st.booleans(),
    forced=maybe,
    kubelet=st.none() | st.tuples(st.just(1), st.integers(20, 36)),
    crio_mode=st.none() | st.sampled_from(["hook", "config"]),
)
overrides = st.fixed_dictionaries(
    {
        "set_as_default": maybe,
        "default_negotiable": st.booleans(),
        "mode": st.none() | st.sampled_from(["auto", "cdi", "legacy", "csv", "jit-cdi"]),
        "strategy": st.none()
        | st.lists(st.sampled_from(["envvar", "cdi-cri", "cdi-annotations"]), min_size=1).map(
            tuple
        ),
    }
)


@given(plain)
def test_any_question_has_the_answer_of_its_row(question: Question) -> None:
    """Total, and nothing but the table: without an override every column is that of the row."""
    decision = decide(question)
    mode, default, enable, strategies, prefix, native = TABLE[decision.row]
    assert (decision.mode, decision.is_default, decision.enable_cdi) == (mode, default, enable)
    assert (decision.annotation_prefix, decision.native) == (prefix, native)
    assert set(decision.strategy) <= strategies
    assert len(decision.strategy) == (0 if decision.row == 9 else 1)
    assert decision.cri_field == ("cdi-cri" in decision.strategy)
    assert decide(question) == decision


@given(plain)
def test_nothing_is_injected_twice(question: Question) -> None:
    """Where the runtime itself answers cdi.k8s.io/, the nvidia runtime must not."""
    decision = decide(question)
    if not question.cdi or decision.row == 9:
        assert decision.prefixes == decision.pass_prefixes == ()
    elif decision.row == 8:
        # CRI-O gives pods' annotations to containers: anybody could take a GPU by one.
        assert decision.prefixes == decision.pass_prefixes == ()
    elif decision.native:
        assert (decision.prefixes, decision.pass_prefixes) == ((NVIDIA,), ())
    else:
        seen = next((item.switch for item in question.evidence if item.seen), Switch.UNSEEN)
        answers = decision.row == 5 and seen in (Switch.TRUE, Switch.NULL)
        wanted = (NVIDIA,) if answers else (NVIDIA, CDI)  # denied, and yet there
        assert decision.prefixes == decision.pass_prefixes == wanted


needs = st.builds(
    PodNeeds,
    pods=st.lists(st.sampled_from(["ml/a (default)", "ml/b (nvidia)"]), min_size=1).map(tuple),
    default=st.booleans(),
    prefixes=st.lists(st.sampled_from([NVIDIA, CDI]), unique=True).map(tuple),
    variables=st.booleans(),
)


@given(plain, needs)
def test_running_pods_keep_what_they_have_and_others_get_the_row(
    question: Question, kept: PodNeeds
) -> None:
    """What is published stays the row's; what NVIDIA's runtime does besides is said with names."""
    row = decide(question)
    decision = decide(dataclasses.replace(question, needs=kept))
    same = {
        name: getattr(row, name)
        for name in ("row", "native", "source", "reason", "mode", "enable_cdi", "strategy",
                     "annotation_prefix", "cri_field", "spec_dirs")
    }  # fmt: skip
    assert {name: getattr(decision, name) for name in same} == same
    if decision.row in (2, 9):
        assert (decision.is_default, decision.prefixes, decision.kept_for) == (
            row.is_default, row.prefixes, ()
        )  # fmt: skip
        return
    assert decision.is_default is (row.is_default or kept.default)
    assert decision.variables is kept.variables
    assert {*row.prefixes, *kept.prefixes} >= set(decision.prefixes) >= set(row.prefixes)
    assert NVIDIA in decision.pass_prefixes or NVIDIA not in kept.prefixes
    assert not (decision.native and CDI in decision.prefixes), "it would be injected twice"
    assert all(pod in decision.warnings[-1] for pod in kept.pods)


@given(plain)
def test_row_belongs_to_its_runtime(question: Question) -> None:
    """No containerd gets a row of CRI-O or the other way round, and 9 is for all others."""
    rows = {"containerd": {1, 3, 4, 5, 6, 7}, "cri-o": {1, 2, 6, 8}}.get(
        question.runtime or "", {9}
    )
    row = decide(question).row
    assert row in rows
    assert row == 9 or (row in (1, 2)) == (not question.cdi)


@given(plain, st.booleans())
def test_forced_answer_is_the_answer(question: Question, forced: bool) -> None:
    """`--native-cdi` is obeyed wherever there is CDI and a runtime at all."""
    decision = decide(dataclasses.replace(question, forced=forced))
    if question.cdi and decision.row != 9:
        assert (decision.native, decision.source) == (forced, "forced")


@given(plain)
def test_switch_is_written_only_where_it_may_be_and_is_not_on_by_others(question: Question) -> None:
    """`enable_cdi` is never written against orders, nor where it already says so."""
    decision = decide(question)
    if decision.enable_cdi:
        assert question.may_enable
        used = next((e.switch for e in question.evidence if e.seen), Switch.UNSEEN)
        assert used in (Switch.FALSE, Switch.UNSEEN) or question.enabled_by_agent


@settings(max_examples=500)
@given(plain, overrides)
def test_override_is_obeyed_or_explained(question: Question, asked: dict[str, Any]) -> None:
    """What was asked for comes out, or a warning says that it does not and why."""
    row = decide(question)
    decision = decide(dataclasses.replace(question, **asked))
    assert decision.row == row.row
    if row.row == 9:
        assert decision == row
        return
    default = asked["set_as_default"]
    wants_other = default is not None and default != row.is_default
    assert any("set-as-default" in text for text in decision.warnings) == wants_other
    overruled = default is False and asked["default_negotiable"] and row.row in (5, 6)
    if wants_other and not overruled and row.row != 2:
        assert decision.is_default is default
    else:
        assert decision.is_default is row.is_default
    assert decision.strategy == (asked["strategy"] or row.strategy)
    if row.row != 2:
        assert decision.mode == (asked["mode"] or row.mode)
    deaf = asked["mode"] in ("legacy", "csv", "jit-cdi") and row.row in (5, 6)
    assert any("ignores annotations" in text for text in decision.warnings) == deaf


@given(plain)
def test_decision_says_what_was_seen(question: Question) -> None:
    """Every source is named with its answer, and exactly one of those that answer is used."""
    decision = decide(question)
    assert decision.rule
    assert decision.source in {"cri-status", "config-dump", "version", "forced"}
    for item in question.evidence:
        words = f"{item.source}: enableCDI {item.switch.value}"
        assert any(text.startswith(words) for text in decision.evidence)
    sources = tuple(f"{item.source}: " for item in question.evidence)
    told = [text for text in decision.evidence if text.startswith(sources)]
    used = [text for text in told if text.endswith("(used)")]
    answering = [item for item in question.evidence if item.seen]
    assert bool(used) == bool(answering)


def test_evidence_is_in_words_that_a_person_understands() -> None:
    """The golden leaves words out; this is how they read."""
    decision = decide(Question(version="1.7.24~ds1", evidence=(*NOTHING, *OFF), forced=True))
    assert decision.evidence == (
        "CDI is wanted",
        "the CRI names the runtime containerd 1.7.24~ds1",
        "cri-status: enableCDI unseen, cdiSpecDirs unseen",
        "cri-status: enableCDI false, cdiSpecDirs /etc/cdi, /var/run/cdi (used)",
        "--native-cdi=true was given",
    )


if __name__ == "__main__":
    lines = [
        f"  {json.dumps(name)}: {json.dumps(as_json(decide(Question(**question))))}"
        for name, (_, question) in CASES.items()
    ]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
