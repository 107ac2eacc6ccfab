"""Pods that depend on what would change are found with few questions."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from agent.cri import client
from agent.cri.client import Answer, Container, Sandbox
from agent.decide import Decision, Evidence, PodNeeds, Question, Switch, decide
from agent.host.paths import HostPath, HostRoot
from agent.plan import pod_guard
from agent.plan.context import Context
from agent.runtimes.base import Endpoint, Runtime
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.containerd.adapter import ContainerdNode
from agent.runtimes.containerd.generations import generation
from tests.unit.support import made_node

OLD = "nvidia.cdi.k8s.io/"
NVIDIA = "/usr/local/nvidia/toolkit/nvidia-container-runtime"
NOW = 1_800_000_000.0


@dataclass
class ToolkitConfig:
    """A runtime's answers about pods, and how often it was asked."""

    pods: list[Sandbox] = field(default_factory=list)
    found: list[Container] = field(default_factory=list)
    env: dict[str, list[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def add(self, name: str, key: str = "", **given: Any) -> None:
        """Add a pod with one container that has an annotation of this name, if any."""
        pod = Sandbox(name, name, "ml", "", True)
        self.pods.append(replace(pod, **given))
        self.found.append(Container(f"{name}-0", name, "main", 0, {key: "x"} if key else {}))

    def sandboxes(self) -> list[Sandbox]:
        self.asked.append("pods")
        return self.pods

    def containers(self) -> list[Container]:
        self.asked.append("containers")
        return self.found

    def container_info(self, number: str) -> dict[str, Any]:
        self.asked.append(number)
        return {"runtimeSpec": {"process": {"env": self.env.get(number, [])}}}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> ToolkitConfig:
    """Pods that a test adds to."""
    found = ToolkitConfig()

    @contextmanager
    def questions(*_: object) -> Iterator[ToolkitConfig]:
        yield found

    monkeypatch.setattr(client, "pod_questions", questions)
    return found


@pytest.fixture
def ctx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A machine that runs for a day, with a toolkit that answers row 1, 5 or 6."""
    made = made_node.Node(tmp_path, monkeypatch).context()
    config = tmp_path / "nvidia/toolkit/.config/nvidia-container-runtime/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        "accept-nvidia-visible-devices-envvar-when-unprivileged = true\n"
        f'[nvidia-container-runtime.modes.cdi]\nannotation-prefixes = ["{OLD}", "cdi.k8s.io/"]\n'
    )
    settings = replace(made.settings, toolkit_install_dir=str(tmp_path / "nvidia"))
    return replace(made, settings=settings, wall=lambda: NOW, uptime=lambda: 86400.0)


def node(
    default: str = "nvidia", passed: tuple[str, ...] = (f"{OLD}*", "cdi.k8s.io/*")
) -> ContainerdNode:
    """A containerd 1.7 with our handler in its file."""
    ours = {"options": {"BinaryName": NVIDIA}, "container_annotations": list(passed)}
    tables = {"runc": {"runtime_type": "io.containerd.runc.v2"}, "nvidia": ours}
    section = {"containerd": {"default_runtime_name": default, "runtimes": tables}}
    path = HostPath("/none/config.toml", "/none/config.toml")
    data = {"version": 2, "plugins": {"io.containerd.grpc.v1.cri": section}}
    socket = HostPath("/none/c.sock", "/none/c.sock")
    runtime = Runtime(Endpoint("containerd", socket), None, Answer("containerd", "1.7.24", True,
                                                                  None, ()))  # fmt: skip
    files = (ConfigFile(path.host, path, None, data),)
    return ContainerdNode(HostRoot("/"), runtime, files, None, path, generation((1, 7, 24)))


def decision(**given: Any) -> Decision:
    """A native row, unless something else is asked for."""
    seen = (Evidence("cri-status", Switch.TRUE, ("/etc/cdi",)),)
    return decide(Question(version="1.7.24", evidence=seen, **given))


def needs(ctx: Context, *args: Any, **given: Any) -> PodNeeds | None:
    """What running pods would lose by a native row."""
    booted = pod_guard.recent_boot(ctx.wall(), ctx.uptime())
    return pod_guard.pod_needs(ctx.settings, node(*args), decision(**given), booted)


def test_annotations_of_our_handlers_count(ctx: Context, answers: ToolkitConfig) -> None:
    """The old prefix counts; what containerd answers itself, and handlers of others, do not."""
    answers.add("old", f"{OLD}plugin")
    answers.add("handler", f"{OLD}plugin", handler="nvidia")
    answers.add("native", "cdi.k8s.io/x")
    answers.add("kata", f"{OLD}plugin", handler="kata")
    answers.add("dead", f"{OLD}plugin", ready=False)
    ctx = replace(ctx, settings=replace(ctx.settings, accept_envvar=False))
    found = needs(ctx)
    pods = ("ml/handler (nvidia)", "ml/old (default)")
    assert found == PodNeeds(pods, default=True, prefixes=(OLD,), variables=False)
    assert answers.asked == ["pods", "containers"]


def test_each_uncounted_container_is_asked_for_variables(
    ctx: Context, answers: ToolkitConfig
) -> None:
    """Each container is asked about, but those of pods that count already."""
    answers.add("old", f"{OLD}plugin")
    answers.add("web")
    answers.add("infer")
    answers.env["infer-0"] = ["NVIDIA_VISIBLE_DEVICES=0"]
    found = needs(ctx)
    pods = ("ml/infer (default)", "ml/old (default)")
    assert found == PodNeeds(pods, default=True, prefixes=(OLD,), variables=True)
    assert answers.asked == ["pods", "containers", "web-0", "infer-0"]


def test_only_the_newest_container_of_a_name_counts(ctx: Context, answers: ToolkitConfig) -> None:
    """Those before it are dead and do not start again."""
    answers.add("train")
    answers.found = [
        Container("new", "train", "main", 2, {}),
        Container("older", "train", "main", 1, {f"{OLD}x": ""}),
        Container("side", "train", "side", 0, {}),
    ]
    assert needs(ctx) is None
    assert sorted(answers.asked[2:]) == ["new", "side"]


def test_search_ends_once_a_message_is_full(ctx: Context, answers: ToolkitConfig) -> None:
    """Where there are more than a message shows, the rest is not asked about."""
    for number in range(300):
        answers.add(f"p{number:03}")
        answers.env[f"p{number:03}-0"] = ["NVIDIA_VISIBLE_DEVICES=all"]
    found = needs(ctx)
    assert found is not None
    assert len(answers.asked) == 2 + len(found.pods) < 30


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"forced": False}, 0),  # nvidia stays the default and answers all that it did
        ({"set_as_default": True}, 2),  # the prefix is no longer passed on
        ({}, 2),
    ],
)
def test_pods_are_asked_about_only_where_something_goes(
    given: dict[str, Any], asked: int, ctx: Context, answers: ToolkitConfig
) -> None:
    """Nothing is asked where every way to a GPU stays."""
    answers.add("old", f"{OLD}plugin")
    ctx = replace(ctx, settings=replace(ctx.settings, accept_envvar=True))
    passed = (f"{OLD}*",) if "forced" in given else (f"{OLD}*", "cdi.k8s.io/*")
    found = needs(ctx, "nvidia", passed, **given)
    assert len(answers.asked) == asked
    assert (found is None) is (asked == 0)


def test_right_node_asks_about_no_pod(ctx: Context, answers: ToolkitConfig) -> None:
    """Neither the default nor a prefix is ours to take."""
    answers.add("old", f"{OLD}plugin")
    ctx = replace(ctx, settings=replace(ctx.settings, accept_envvar=True))
    assert needs(ctx, "runc", ()) is None
    assert answers.asked == []


@pytest.mark.parametrize(
    ("uptime", "created", "counts"),
    [
        (60.0, NOW - 3600, True),
        (60.0, NOW - 30, False),  # it died after the boot
        (3600.0, NOW - 7200, False),  # the kubelet has had its time
        (60.0, 0.0, False),
    ],
)
def test_pods_that_come_back_after_a_boot_count(
    uptime: float, created: float, counts: bool, ctx: Context, answers: ToolkitConfig
) -> None:
    """An upgrade with a reboot: the kubelet makes them anew, with their annotations of before."""
    answers.add("old", f"{OLD}plugin", ready=False, created=created)
    assert (needs(replace(ctx, uptime=lambda: uptime)) is not None) is counts


def test_low_level_program_of_running_pods_stays_first(
    ctx: Context, answers: ToolkitConfig
) -> None:
    """Another one does not find running pods; it comes once none of ours is left."""
    config = Path(ctx.settings.toolkit_install_dir, "toolkit/.config/nvidia-container-runtime")
    programs = Path(ctx.settings.toolkit_install_dir)
    for name in ("crun", "runc"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    crun, runc = str(programs / "crun"), str(programs / "runc")
    (config / "config.toml").write_text(f'[nvidia-container-runtime]\nruntimes = ["{crun}"]\n')
    answers.add("web", handler="runc")
    kept = functools.partial(pod_guard.kept_low_level, ctx.settings)
    assert kept(node(), (crun, runc)) == ((crun, runc), None)
    assert answers.asked == []
    assert kept(node("runc"), (runc,)) == ((runc,), None)
    answers.add("train", handler="nvidia")
    called, warning = kept(node("runc"), (runc,))
    assert called == (crun, runc)
    assert warning is not None
    assert "ml/train (nvidia)" in warning
    assert "ml/web" not in warning


@pytest.mark.parametrize(
    ("pod", "label"),
    [
        ("gpu-operator/nvidia-device-plugin-daemonset-x1", "gpu.deploy.device-plugin=false"),
        ("nvidia/nvidia-dcgm-exporter-x1", "gpu.deploy.dcgm-exporter=false"),
        ("gpu-operator/gpu-feature-discovery-x1", "gpu.deploy.gpu-feature-discovery=false"),
        ("ml/train-0", None),
        ("ml/nvidia-dcgmx-0", None),
    ],
)
def test_pods_of_the_operator_are_told_from_others(pod: str, label: str | None) -> None:
    """The message names the label that keeps the operator from creating them again."""
    text = pod_guard._refusal("revert", ("ml/a (nvidia)", f"{pod} (nvidia)"), "handlers").message
    assert pod in text
    assert ("gpu-operator creates its pods again" in text) is (label is not None)
    assert label is None or label in text
