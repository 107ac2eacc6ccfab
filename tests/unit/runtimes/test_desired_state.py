"""A decision gives the desired configuration, and its distance from files and runtime."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest

from agent.cri.client import Answer
from agent.decide import Decision, Evidence, Question, Switch, decide
from agent.errors import Refused
from agent.runtimes import desired_state, registry
from agent.runtimes.containerd import handlers
from agent.runtimes.containerd.handlers import Features
from agent.runtimes.desired_state import Desired, Effective
from agent.toml.document import Data
from agent.toolkit.programs import Binary
from tests.unit.support.edit_request import edit_request

TOOLKIT = "/usr/local/nvidia/toolkit"
RUNTIME = f"{TOOLKIT}/nvidia-container-runtime"
BINARIES = (
    Binary("nvidia", RUNTIME),
    Binary("nvidia-cdi", RUNTIME + ".cdi"),
    Binary("nvidia-legacy", RUNTIME + ".legacy"),
)
RUNC: Data = {"runtime_type": "io.containerd.runc.v2", "options": {"SystemdCgroup": True}}
TYPE = "io.containerd.runc.v2"

ROW3 = decide(Question(version="2.1.9", evidence=(Evidence("cri-status", Switch.TRUE),)))
ROW4 = decide(Question(version="1.7.24", evidence=(Evidence("cri-status", Switch.FALSE),)))
ROW6 = decide(Question(version="1.6.20", evidence=(Evidence("cri-status", Switch.ABSENT, None),)))
unproven = registry.adapter("containerd").unproven


def cri(
    runtimes: Mapping[str, Data], default: str = "runc", switch: bool | None = None
) -> Effective:
    """Return effective settings."""
    return Effective(default, runtimes, switch, {})


def derive_desired(
    settings: Effective, decision: Decision = ROW3, name: str = "nvidia",
    remembered: str | None = None,
    binaries: tuple[Binary, ...] = BINARIES, features: Features | None = None,
) -> Desired:  # fmt: skip
    """Return the wish."""
    request = edit_request(decision, binaries, name, remembered)
    return handlers.derive_desired(settings, request, features or Features())


def handler(name: str, key: str = "BinaryName") -> Data:
    """Return a handler that runs some binary."""
    return {"runtime_type": TYPE, "options": {key: name}}


def test_every_binary_gets_its_handler_with_the_options_of_the_default() -> None:
    """SystemdCgroup of another value than the kubelet's makes pods fail."""
    found = derive_desired(cri({"runc": RUNC}))
    assert {name: table["options"] for name, table in found.handlers.items()} == {
        item.handler: {"BinaryName": item.path, "SystemdCgroup": True} for item in BINARIES
    }
    assert {table["runtime_type"] for table in found.handlers.values()} == {TYPE}


def test_all_keys_of_the_base_are_inherited() -> None:
    """Whatever an admin set for pods holds for GPU pods."""
    base: Data = {
        "runtime_type": TYPE, "snapshotter": "devmapper",
        "privileged_without_host_devices": True, "pod_annotations": ["a/*"],
        "options": {"Root": "/run/x", "BinaryName": "/usr/bin/site-runc"},
    }  # fmt: skip
    table = derive_desired(cri({"site": base}, "site")).handlers["nvidia"]
    assert table == {**base, "options": {"BinaryName": RUNTIME, "Root": "/run/x"}}
    assert base["options"]["BinaryName"] == "/usr/bin/site-runc"


@pytest.mark.parametrize(
    ("runtimes", "default", "remembered", "base"),
    [
        ({"runc": "r", "site": "s"}, "site", None, "s"),
        ({"runc": "r", "site": "s", "nvidia": "n"}, "nvidia", "site", "s"),
        ({"runc": "r", "crun": "c", "nvidia": "n"}, "nvidia", None, "r"),
        ({"crun": "c", "nvidia": "n"}, "nvidia", None, "c"),
        ({"runc": "r", "nvidia": "n"}, "nvidia", "gone", "r"),
        ({"runc": "r", "crun": "c"}, "crun", None, "c"),
    ],
)
def test_base_is_the_default_the_remembered_runc_or_crun(
    runtimes: Mapping[str, str], default: str, remembered: str | None, base: str
) -> None:
    """In that order, never one of ours, and the same one each time."""
    tables = {name: {"runtime_type": TYPE, "options": {"Root": r}} for name, r in runtimes.items()}
    tables["nvidia"] = handler(RUNTIME)
    found = derive_desired(cri(tables, default), remembered=remembered)
    assert found.handlers["nvidia"]["options"]["Root"] == base


def test_handler_without_anything_to_inherit_has_the_type_of_the_option() -> None:
    """containerd does not load a handler without runtime_type."""
    found = derive_desired(cri({"kata": {"runtime_type": "k"}}, "kata-gone"), ROW6)
    assert found.handlers["nvidia"] == {"runtime_type": TYPE, "options": {"BinaryName": RUNTIME},
        "container_annotations": ["nvidia.cdi.k8s.io/*", "cdi.k8s.io/*"]}  # fmt: skip


@pytest.mark.parametrize(
    ("table", "ours"),
    [
        (handler("/old/nvidia-container-runtime"), True),
        (handler("/old/nvidia-container-runtime.real", "binaryName"), True),
        (handler("/old/nvidia-container-runtime.cdi", "BINARYNAME"), True),
        (handler("/old/nvidia-container-runtime", "Runtime"), True),
        (handler("/usr/bin/runc"), False),
        (handler("/nvidia-container-runtime/bin/runc"), False),
        (handler("/old/nvidia-container-runtime", "Root"), False),
        ({}, False),
    ],
)
def test_ours_is_what_runs_our_binary_whatever_its_name(table: Data, ours: bool) -> None:
    """A handler "gpu" with our binary must not become the base of ours: it would call itself."""
    assert desired_state.is_ours("gpu", table) is ours


@pytest.mark.parametrize("name", ["nvidia", "nvidia-cdi", "nvidia-legacy"])
def test_ours_is_what_has_our_name_whatever_it_runs(name: str) -> None:
    """An earlier tool put something there."""
    assert desired_state.is_ours(name, handler("/usr/bin/something"))


@pytest.mark.parametrize(
    ("decision", "annotations"),
    [(ROW3, None), (ROW4, None), (ROW6, ["nvidia.cdi.k8s.io/*", "cdi.k8s.io/*"])],
)
def test_annotations_are_passed_on_where_the_handler_needs_them(
    decision: Decision, annotations: list[str] | None
) -> None:
    """1.x passes no container annotation on unless told to; native rows need none."""
    found = derive_desired(cri({"runc": RUNC}), decision)
    assert found.handlers["nvidia"].get("container_annotations") == annotations


def test_annotations_of_the_base_are_kept_and_not_doubled() -> None:
    """The admin's come after ours."""
    base = {**RUNC, "container_annotations": ["site/*", "cdi.k8s.io/*"]}
    found = derive_desired(cri({"runc": base}), ROW6).handlers["nvidia"]["container_annotations"]
    assert found == ["nvidia.cdi.k8s.io/*", "cdi.k8s.io/*", "site/*"]


def test_annotations_of_an_earlier_decision_are_taken_back() -> None:
    """A node that was upgraded to native CDI would inject twice."""
    old = {**handler(RUNTIME), "container_annotations": ["nvidia.cdi.k8s.io/*", "cdi.k8s.io/*"]}
    settings = cri({"runc": RUNC, "nvidia": old})
    found = derive_desired(settings, ROW3)
    assert found.handlers["nvidia"]["container_annotations"] == []
    path = ("containerd", "runtimes", "nvidia", "container_annotations")
    assert handlers.differences(found, settings)[path] == []


def test_binary_is_written_in_every_spelling_that_is_there() -> None:
    """A pod runs `binaryName` where Status shows `BinaryName`."""
    stale = {"runtime_type": TYPE, "options": {"binaryName": "/old/nvidia-container-runtime",
             "BinaryName": "/older", "Runtime": "/old/nvidia-container-runtime"}}  # fmt: skip
    found = derive_desired(cri({"runc": RUNC, "nvidia": stale}))
    options = found.handlers["nvidia"]["options"]
    assert options == {
        "BinaryName": RUNTIME, "binaryName": RUNTIME, "Runtime": RUNTIME, "SystemdCgroup": True,
    }  # fmt: skip


def test_binary_of_the_base_is_not_inherited_in_any_spelling() -> None:
    """Ours would run the base's binary instead."""
    base = handler("/usr/bin/site-runc", "binaryName")
    found = derive_desired(cri({"runc": base}))
    assert found.handlers["nvidia"]["options"] == {"BinaryName": RUNTIME}


@pytest.mark.parametrize(
    ("decision", "default", "remembered", "desired"),
    [
        (ROW6, "runc", None, "nvidia"),
        (ROW6, "nvidia", "site", "nvidia"),
        (ROW3, "runc", None, None),
        (ROW3, "site", None, None),
        (ROW3, "nvidia", "site", "site"),
        (ROW3, "nvidia", None, "runc"),
        (ROW3, "gpu", None, "runc"),
        (ROW3, "nvidia", "nvidia", "runc"),
    ],
)
def test_default_becomes_ours_or_goes_back(
    decision: Decision, default: str, remembered: str | None, desired: str | None
) -> None:
    """None leaves it as it is: an admin's default that is not ours is not our business."""
    runtimes = {"runc": RUNC, "site": RUNC, "nvidia": handler(RUNTIME), "gpu": handler(RUNTIME)}
    found = derive_desired(cri(runtimes, default), decision, remembered=remembered)
    assert found.default == desired


def test_default_has_the_name_that_was_asked_for() -> None:
    """--runtime-name=gpu makes gpu the default, where one is wanted."""
    found = derive_desired(cri({"runc": RUNC}), ROW6, "gpu", binaries=(Binary("gpu", RUNTIME),))
    assert (found.default, set(found.handlers)) == ("gpu", {"gpu"})


def test_default_without_a_table_is_refused() -> None:
    """It was broken before us; a restart would show it."""
    with pytest.raises(Refused, match=r"^cannot use the configuration: .*gone"):
        derive_desired(cri({"runc": RUNC}, "gone"))


def test_switch_is_wanted_in_row_4_only() -> None:
    """Nothing else writes enable_cdi."""
    settings = cri({"runc": RUNC}, switch=False)
    assert [derive_desired(settings, row).enable_cdi for row in (ROW3, ROW4, ROW6)] == [
        False,
        True,
        False,
    ]


def test_gaps_are_the_keys_that_differ() -> None:
    """And nothing that is right already."""
    desired = derive_desired(cri({"runc": RUNC}), ROW4, binaries=BINARIES[:1])
    base = ("containerd", "runtimes", "nvidia")
    assert handlers.differences(desired, cri({"runc": RUNC}, switch=False)) == {
        (*base, "runtime_type"): TYPE,
        (*base, "options", "BinaryName"): RUNTIME,
        (*base, "options", "SystemdCgroup"): True,
        ("enable_cdi",): True,
    }
    wrong = {"runtime_type": TYPE, "options": {"BinaryName": "/old", "SystemdCgroup": True}}
    assert handlers.differences(desired, cri({"runc": RUNC, "nvidia": wrong}, switch=True)) == {
        (*base, "options", "BinaryName"): RUNTIME
    }
    right = cri({"runc": RUNC, **desired.handlers}, switch=True)
    assert handlers.differences(desired, right) == {}


def test_default_is_a_gap_until_the_handler_is_desired() -> None:
    """It is written once the handler is wanted there."""
    desired = derive_desired(cri({"runc": RUNC}), ROW6)
    found = handlers.differences(desired, cri({"runc": RUNC, **desired.handlers}))
    assert found == {("containerd", "default_runtime_name"): "nvidia"}


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("", None, True), ([], None, True), (0, None, True), (False, None, True), ({}, [], True),
        (None, False, True), ("a", "a", True), ("a", "b", False), (True, None, False),
        ([1], [1], True), ([1], None, False), (0, "", True), (True, False, False),
    ],
)  # fmt: skip
def test_missing_is_the_zero_value(one: Any, other: Any, equal: bool) -> None:
    """As in Go: a key that is not there and one that is empty are one thing."""
    assert desired_state.same(one, other) is equal


def test_wish_survives_the_journal() -> None:
    """A recovered transaction proves what the interrupted one wanted."""
    desired = dataclasses.replace(derive_desired(cri({"runc": RUNC}), ROW4), absent=("nvidia",))
    assert Desired.from_json(json.loads(json.dumps(desired.to_json()))) == desired


WISH = derive_desired(cri({"runc": RUNC}), ROW4, binaries=BINARIES[:1])


def answer(
    options: Data | None = None, *, handlers: tuple[str, ...] = (), default: str = "runc",
    **more: Any,
) -> Answer:  # fmt: skip
    """Return what a runtime shows that has our handler, with these options."""
    options = {"BinaryName": RUNTIME, "SystemdCgroup": True} if options is None else options
    running = {"runtimeType": TYPE, "runtimePath": "", "options": options}
    config = {
        "containerd": {"defaultRuntimeName": default, "runtimes": {"nvidia": running, "runc": {}}},
        "enableCDI": True,
        **more,
    }
    return Answer("containerd", "2.1.9", True, config, handlers)


def test_runtime_that_shows_all_that_is_wanted_is_proven() -> None:
    """With and without a list of handlers, which 1.x does not send."""
    assert unproven(WISH, answer()) == []
    assert unproven(WISH, answer(handlers=("", "nvidia", "runc"))) == []


@pytest.mark.parametrize(
    ("shown", "problem"),
    [
        (answer({"BinaryName": "/old", "SystemdCgroup": True}), "option BinaryName"),
        (answer({"BinaryName": RUNTIME}), "option SystemdCgroup"),
        (
            answer({"BinaryName": RUNTIME, "SystemdCgroup": True, "binaryName": "/old"}),
            "binaryName",
        ),
        (answer(handlers=("", "runc")), "handler nvidia is not listed"),
        (answer(enableCDI=False), "enableCDI is not on"),
        (answer(containerd={"runtimes": {}}), "handler nvidia is missing"),
    ],
)
def test_runtime_that_lacks_something_is_not_proven(shown: Answer, problem: str) -> None:
    """The sentence says which; it goes into the error."""
    assert any(problem in text for text in unproven(WISH, shown))


def test_default_and_absence_are_proven() -> None:
    """After an apply in row 6, and after a revert."""
    row6 = Desired({}, default="nvidia")
    assert unproven(row6, answer(default="nvidia")) == []
    assert unproven(row6, answer()) == ["the default runtime is runc, not nvidia"]
    gone = Desired({}, absent=("nvidia", "nvidia-cdi"))
    assert unproven(gone, answer()) == ["handler nvidia is still there"]


def test_list_of_handlers_is_what_is_left_without_verbose_information() -> None:
    """A runtime that shows no configuration is believed by its list."""
    bare = Answer("containerd", "2.1.9", True, None, ("", "nvidia", "runc"))
    assert unproven(WISH, bare) == []
    none = Answer("containerd", "2.1.9", True, None, ("", "runc"))
    assert unproven(WISH, none) == ["handler nvidia is not listed"]


@pytest.mark.parametrize(
    ("name", "table", "nvidia"),
    [
        ("runc", {"runtimeType": TYPE, "options": {"binaryName": RUNTIME}}, True),
        ("x", {"runtimeType": TYPE, "runtimePath": RUNTIME, "options": None}, True),
        ("x", {"runtimeType": "io.containerd.runtime.v1.linux", "runtimeEngine": RUNTIME}, True),
        ("nvidia", {"runtimeType": TYPE, "options": {}}, True),
        ("nvidia", {"runtimeType": "io.containerd.runsc.v1"}, False),
        ("runc", {"runtimeType": TYPE, "options": {"BinaryName": ""}}, False),
    ],
)
def test_default_that_is_shown_is_nvidias_by_what_it_calls(
    name: str, table: Data, nvidia: bool
) -> None:
    """Where nothing may be changed, that is what is published."""
    config = {"containerd": {"defaultRuntimeName": name, "runtimes": {name: table}}}
    shown = Answer("containerd", "2.1.9", True, config, ())
    assert registry.shows_nvidia(shown) is nvidia
    assert registry.shown_handler_names(shown) == (name, (name,))


@pytest.mark.parametrize("config", [None, {}, {"containerd": None}, {"containerd": {}}])
def test_default_that_is_not_shown_is_nobodys(config: Data | None) -> None:
    """Nor is one without a table."""
    assert registry.shows_nvidia(Answer("containerd", "2.1.9", True, config, ("x",))) is False
