"""A change keeps what running pods need, and is finished when they are gone."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.cli.cli_node import CliNode, Refusal, fails, refuses, shows
from tests.cli.daemon import running
from tests.cli.installing import SourceNode
from tests.cli.test_crio_started import packaged
from tests.conformance import checks
from tests.conformance.trees import touched
from tests.doubles.crio.crio_node import CrioNode
from tests.doubles.runtime.install import make_fake_containerd
from tests.tools import forked

OLD, CDI = "nvidia.cdi.k8s.io/", "cdi.k8s.io/"
PLUGIN = {f"{OLD}nvidia-device-plugin_0": "nvidia.com/gpu=0"}
OLD_POD = {"name": "train-0", "namespace": "ml", "annotations": PLUGIN}
VARIABLE_POD = {"name": "infer-0", "namespace": "ml", "env": ["NVIDIA_VISIBLE_DEVICES=GPU-0"]}
OTHERS: list[dict[str, Any]] = [
    {"name": "web", "namespace": "shop"},
    {"name": "done-0", "namespace": "ml", "annotations": PLUGIN, "ready": False},
    {"name": "native-0", "namespace": "ml", "annotations": {f"{CDI}x": "nvidia.com/gpu=0"}},
    {"name": "field-0", "namespace": "ml", "env": ["NVIDIA_VISIBLE_DEVICES=void"]},
    {"name": "kata-0", "namespace": "ml", "annotations": PLUGIN, "handler": "runc"},
]


def upgrade(node: CliNode, version: str) -> None:
    """Put another version in place, as a package manager does, and restart it."""
    make_fake_containerd(node.program.parent, version, sys.executable, server=forked.address())
    node.restart()


def passed(node: CliNode) -> list[str]:
    """The annotations that the running containerd passes on to our handler."""
    found: list[str] = node.answer().runtimes["nvidia"]["ContainerAnnotations"] or []
    return found


def said(node: CliNode) -> dict[str, Any]:
    """What the toolkit's config.toml says."""
    path = node.toolkit / ".config/nvidia-container-runtime/config.toml"
    return tomllib.loads(path.read_text())


def answered(node: CliNode) -> list[str]:
    """The annotation prefixes that nvidia-container-runtime answers."""
    prefixes: list[str] = said(node)["nvidia-container-runtime"]["modes"]["cdi"][
        "annotation-prefixes"
    ]
    return prefixes


def published(node: CliNode) -> tuple[str, str, str, str]:
    """Is ours the default, the strategy, the prefix, and native CDI, as the device plugin reads."""
    ready = node.ready()
    assert ready is not None
    found = dict(line.split("=", 1) for line in ready.decode().splitlines())
    names = ("TOOLKIT_RUNTIME_IS_DEFAULT", "DEVICE_LIST_STRATEGY", "CDI_ANNOTATION_PREFIX",
             "TOOLKIT_NATIVE_CDI")  # fmt: skip
    is_default, strategy, prefix, native = (found[name] for name in names)
    return is_default, strategy, prefix, native


def says(path: Path, line: str) -> bool:
    """Is this line in a file that comes and goes?"""
    try:
        return line in path.read_text().splitlines()
    except FileNotFoundError:
        return False


def applied(node: CliNode, *options: str) -> Any:
    """The outcome of an apply."""
    return shows(node.agent("apply", *options, "-o", "json"), "Outcome")


@pytest.mark.parametrize("pod", [OLD_POD, {**OLD_POD, "handler": "nvidia"}])
def test_upgrade_from_row_6_keeps_the_annotation_answered(pod: dict[str, Any], place: Path) -> None:
    """1.6 to 1.7: the kubelet gives a container that starts again its annotation of before."""
    with SourceNode(place, "1.6.20") as node:
        applied(node)
        assert (node.answer().default, passed(node)) == ("nvidia", [f"{OLD}*", f"{CDI}*"])
        assert published(node) == ("true", "cdi-annotations", OLD, "false")
        node.script(pods=[pod, *OTHERS])
        upgrade(node, "1.7.24")
        outcome = applied(node)
        (name,) = outcome["decision"]["keptForPods"]
        assert name.startswith("ml/train-0 (")
        assert outcome["decision"]["row"] == 4
        assert (node.answer().default, passed(node)) == ("nvidia", [f"{OLD}*"])
        assert node.answer().cdi is True
        assert answered(node) == [OLD]
        assert published(node) == ("true", "cdi-cri", CDI, "true")
        starts = node.supervisor.starts
        for command in ("plan", "apply", "status"):
            result = node.agent(command)
            checks.done(result)
            text = result.stdout + result.stderr
            assert "ml/train-0" in text
            assert "applies row 4" in text
            assert "shop/web" not in text
        assert node.supervisor.starts == starts
        node.script(pods=OTHERS)
        outcome = applied(node)
        assert outcome["decision"]["keptForPods"] == []
        assert (node.answer().default, passed(node)) == ("runc", [])
        assert answered(node) == [OLD]
        assert published(node) == ("false", "cdi-cri", CDI, "true")
        assert node.supervisor.starts == starts + 1


@pytest.mark.parametrize("version", ["1.7.24", "2.1.9"])
@pytest.mark.parametrize("gone", [True, False])
def test_forced_row_is_kept_only_while_pods_need_it(version: str, gone: bool, place: Path) -> None:
    """`--native-cdi=false` and back; without such pods nothing is kept."""
    with SourceNode(place, version) as node:
        applied(node, "--native-cdi=false")
        assert node.answer().default == "nvidia"
        node.script(pods=[*OTHERS, *([] if gone else [OLD_POD])])
        applied(node)
        default, passes = node.answer().default, passed(node)
        assert (default, passes) == (("runc", []) if gone else ("nvidia", [f"{OLD}*"]))
        assert published(node) == (str(not gone).lower(), "cdi-cri", CDI, "true")
        node.script(pods=OTHERS)
        applied(node, "--native-cdi=false")
        assert published(node) == ("true", "cdi-annotations", OLD, "false")


@pytest.mark.parametrize("version", ["1.6.20", "2.1.9"])
def test_switching_cdi_on_keeps_pods_that_ask_by_variable(version: str, place: Path) -> None:
    """From row 1: pods that ask by variable are still answered; what is published is for others."""
    with SourceNode(place, version) as node:
        applied(node, "--cdi-enabled=false")
        assert node.answer().default == "nvidia"
        key = "accept-nvidia-visible-devices-envvar-when-unprivileged"
        assert said(node)[key] is True
        node.script(pods=[*OTHERS, VARIABLE_POD])
        kept = applied(node)["decision"]["keptForPods"]
        assert kept == ["ml/infer-0 (default)"]
        assert (node.answer().default, said(node)[key]) == ("nvidia", True)
        native = str(version != "1.6.20").lower()
        assert published(node)[::3] == ("true", native)
        node.script(pods=OTHERS)
        applied(node)
        assert (node.answer().default, said(node)[key]) == (
            "nvidia" if version == "1.6.20" else "runc",
            False,
        )


def test_run_finishes_the_change_after_the_last_pod(place: Path) -> None:
    """At its next look at the whole node after the last pod is gone, with one restart."""
    with SourceNode(place, "1.6.20") as node:
        applied(node)
        node.script(pods=[OLD_POD])
        upgrade(node, "1.7.24")
        with running(node, "--interval=1") as daemon:
            ready = node.validations / "toolkit-ready"  # the last of the two that is put there
            daemon.until(lambda: says(ready, "TOOLKIT_NATIVE_CDI=true"))
            assert published(node) == ("true", "cdi-cri", CDI, "true")
            starts = node.supervisor.starts
            node.script()
            daemon.until(lambda: says(ready, "TOOLKIT_RUNTIME_IS_DEFAULT=false"))
            assert node.answer().default == "runc"
            assert node.supervisor.starts == starts + 1
            daemon.end()


def test_switching_cdi_off_keeps_annotations_answered(place: Path) -> None:
    """From row 6 to row 1: the annotation is answered as long as a pod has it."""
    with SourceNode(place, "1.6.20") as node:
        applied(node)
        node.script(pods=[OLD_POD])
        off = "--cdi-enabled=false"
        assert applied(node, off)["decision"]["keptForPods"] == ["ml/train-0 (default)"]
        assert passed(node) == [f"{OLD}*"]
        assert answered(node) == [OLD]
        node.script()
        applied(node, off)
        assert passed(node) == []


def test_ordered_default_waits_for_the_pods_that_need_the_old_one(place: Path) -> None:
    """It is carried out once no pod needs the default any more."""
    with SourceNode(place, "1.6.20") as node:
        applied(node)
        node.script(pods=[OLD_POD])
        outcome = applied(node, "--set-as-default=false")
        assert "ml/train-0" in str(outcome["warnings"])
        assert node.answer().default == "nvidia"
        node.script()
        applied(node, "--set-as-default=false")
        assert node.answer().default == "runc"


def test_revert_names_pods_of_the_default(place: Path) -> None:
    """Row 6: GPU pods have no handler of ours; others, dead ones too, do not matter."""
    with SourceNode(place, "1.6.20") as node:
        applied(node)
        node.script(pods=[*OTHERS, OLD_POD])
        refuses(node, Refusal(3, "ml/train-0 (default)"), commands=("revert", "revert"))
        result = node.agent("revert")
        for pod in (pod for pod in OTHERS if pod["name"] != "native-0"):  # row 6 answers that
            assert f"/{pod['name']} " not in result.stderr, result.stderr
        node.script(pods=OTHERS[:2])
        shows(node.agent("revert", "-o", "json"), "Reverted")
        assert node.answer().default == "runc"


def test_revert_names_pods_that_ask_by_variable(place: Path) -> None:
    """Row 1: each once, whatever else it uses."""
    with SourceNode(place, "2.1.9") as node:
        applied(node, "--cdi-enabled=false")
        both = {**VARIABLE_POD, "name": "both-0", "handler": "nvidia", "annotations": PLUGIN}
        node.script(pods=[*OTHERS, VARIABLE_POD, both])
        result = node.agent("revert")
        fails(result, 3, "ml/both-0 (nvidia)", "ml/infer-0 (default)")
        assert result.stderr.count("ml/both-0") == 1


def test_no_pod_is_asked_about_where_nothing_changes(place: Path) -> None:
    """Nor where what changes is no pod's matter."""
    with SourceNode(place, "2.1.9") as node:
        applied(node)
        log = node.directory / "calls"
        node.script(pods=[OLD_POD], log_calls=str(log))
        for command in ("plan", "apply", "status"):
            checks.done(node.agent(command))
        assert set(log.read_text().split()) == {"Version", "Status"}
        (node.toolkit / "nvidia-ctk").unlink()
        log.unlink()
        assert applied(node)["changed"] == [str(node.toolkit)]
        assert set(log.read_text().split()) == {"Version", "Status"}


def test_number_of_questions_does_not_grow_with_the_pods(place: Path) -> None:
    """Two lists for any number of pods; containers one by one only where variables count."""
    with SourceNode(place, "1.6.20") as node:
        applied(node)
        upgrade(node, "1.7.24")
        log = node.directory / "calls"
        many = [{"name": f"web-{n}", "namespace": "shop"} for n in range(300)]
        node.script(pods=[*many, OLD_POD], log_calls=str(log))
        checks.done(node.agent("plan"), 1)
        calls = log.read_text().split()
        assert calls.count("ListPodSandbox") <= 2
        assert calls.count("ListContainers") == 1
        assert not {"PodSandboxStatus", "ContainerStatus"} & set(calls)


@pytest.mark.parametrize("command", ["revert", "apply --cdi-enabled=false"])
def test_crio_handlers_are_in_no_list(command: str, place: Path) -> None:
    """Asked for pod by pod; a dead one does not count, and a pod is named once."""
    with CrioNode(place) as node:
        (node.toolkit / "nvidia-container-runtime-hook").touch(0o755)
        shows(node.agent("apply", "-o", "json"), "Outcome")
        pod, dead = node.run_pod("train", "nvidia"), node.run_pod("dead", "nvidia")
        node.run_pod("web")
        node.stop_pod(dead)
        before = node.tree()
        result = node.agent(command)
        fails(result, 3, "default/train (nvidia)")
        assert result.stderr.count("default/train") == 1
        assert "default/web" not in result.stderr
        assert "default/dead" not in result.stderr
        assert touched(before, node.tree()) == []
        node.remove_pod(pod)
        assert node.agent(command).returncode == 0


def test_forced_crio_row_keeps_the_default_for_running_pods(place: Path) -> None:
    """CRI-O passes every annotation on: there it is the default and config.toml that are kept."""
    made = CrioNode(place)
    packaged(made)  # with their paths: this machine may have a crun or a runc of its own, or none
    with made as node:
        forced = "--native-cdi=false"
        shows(node.agent("apply", forced, "-o", "json"), "Outcome")
        assert node.answer().default == "nvidia"
        foreign = {**OLD_POD, "name": "crun-0", "handler": "crun"}
        node.script(pods=[OLD_POD, foreign, *OTHERS])
        outcome = shows(node.agent("apply", "-o", "json"), "Outcome")
        assert outcome["decision"]["keptForPods"] == ["ml/train-0 (default)"]
        assert OLD in outcome["decision"]["annotationPrefixes"]
        assert node.answer().default == "nvidia"
        fails(node.agent("revert"), 3, "ml/train-0 (default)")
        fails(node.agent("apply", "--cdi-enabled=false"), 3, "ml/train-0 (default)")
        node.script(pods=[foreign, *OTHERS])
        outcome = shows(node.agent("apply", "-o", "json"), "Outcome")
        assert outcome["decision"]["keptForPods"] == []
        assert node.answer().default == "crun"
