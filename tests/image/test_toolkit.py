"""Pods with the toolkit that was installed: who gets devices, how often, and what happens while it
is replaced."""

from __future__ import annotations

import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import grpc
import pytest

from tests.conformance import checks
from tests.conformance.trees import contents, snapshot
from tests.doubles.toolkit import modules
from tests.doubles.toolkit.source import make_sources
from tests.doubles.toolkit.toolkit_node import Made, ToolkitNode
from tests.sampling import sampled_params
from tests.tools.driver import NODES
from tests.tools.lending import Lending
from tests.tools.pods import Pods
from tests.tools.runtimes import Runtime

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(modules.reason_against()), reason=modules.reason_against()),
]

_ALL = "management.nvidia.com/gpu=all"
_VISIBLE = {"NVIDIA_VISIBLE_DEVICES": "all"}
# What the device plugin describes, and what the kubelet then asks for where the plugin is told to
# use annotations with the prefix cdi.k8s.io/ and the field of the CRI, on all nodes of a cluster.
_GPU = "k8s.device-plugin.nvidia.com/gpu=GPU-8a1c0b7e"
_ANNOTATION = {"cdi.k8s.io/nvidia-device-plugin_4e9e8a0c-6b0f-4b52-a1d5-0a3c1c2f7f10": _GPU}


def _plugins_spec(node: ToolkitNode) -> dict[str, object]:
    hook = {
        "hookName": "createContainer",
        "path": str(node.toolkit / "nvidia-cdi-hook"),
        "args": ["nvidia-cdi-hook", "update-ldcache"],
    }
    device = {"path": "/dev/nvidia0", "hostPath": str(node.directory / "driver/dev/nvidia0")}
    return {
        "cdiVersion": "0.5.0",
        "kind": _GPU.partition("=")[0],
        "containerEdits": {"env": ["NVIDIA_VISIBLE_DEVICES=void"], "hooks": [hook]},
        "devices": [
            {"name": _GPU.partition("=")[2], "containerEdits": {"deviceNodes": [device]}},
        ],
    }


def _has_one_gpu(made: Made) -> None:
    """The device of the plugin is there, once."""
    assert made.devices == ["/dev/nvidia0"]
    assert made.has_device("nvidia0")
    assert made.environment.count("NVIDIA_VISIBLE_DEVICES=void") == 1
    assert made.hooks == ["nvidia-cdi-hook update-ldcache"]


def _has_all(made: Made) -> None:
    """The management device is there, once."""
    assert sorted(made.devices) == sorted(f"/dev/{name}" for name in NODES)
    assert all(map(made.has_device, NODES))
    assert made.environment.count("NVIDIA_VISIBLE_DEVICES=void") == 1
    assert len(made.hooks) == len(set(made.hooks)) == 3


def _has_nothing(made: Made) -> None:
    assert (made.devices, made.hooks) == ([], [])
    assert not made.has_device("nvidia0")


@contextmanager
def applied(runtime: Runtime) -> Iterator[ToolkitNode]:
    """A node that was made right."""
    with ToolkitNode(runtime) as node:
        checks.done(node.agent("apply"))
        yield node


def look(node: ToolkitNode) -> object:
    """What a test puts back."""
    places = (node.etc, node.cdi_directory, node.toolkit, node.modules)
    return [contents(snapshot(place)) for place in places], dict(node.variables)


@pytest.fixture
def node(generation: str, runtime: Runtime, shared: Lending[ToolkitNode]) -> Iterator[ToolkitNode]:
    """The one of the test's generation; its toolkit has noted nothing yet."""
    with shared.lend(generation, lambda: applied(runtime), look) as found:
        found.forget_calls()
        yield found


@pytest.mark.parametrize("generation", ["1.6"])
def test_nvidia_as_default_answers_both_annotation_prefixes(
    generation: str, node: ToolkitNode
) -> None:
    """With nvidia as default, both prefixes are answered; who asks for nothing gets nothing."""
    with Pods(node) as pods:
        assert node.status().default == "nvidia"
        for prefix in ("nvidia.cdi.k8s.io", "cdi.k8s.io"):
            made = node.start(pods.create(annotations={f"{prefix}/x": _ALL}))
            _has_all(made)
            assert made.chosen == [_ALL]
        made = node.start(pods.create())
        _has_nothing(made)
        assert made.chosen == []
        call = node.calls()[-1]
        assert call["low_level"] == str(node.runtime.runc)
        own = node.toolkit / ".config/nvidia-container-runtime/config.toml"
        assert Path(call["config"]) == own
        unknown = pods.create(annotations={"cdi.k8s.io/x": "management.nvidia.com/gpu=77"})
        with pytest.raises(grpc.RpcError, match=r"unresolvable CDI devices management.*=77"):
            unknown.start()


@pytest.mark.parametrize("generation", ["1.6"])
def test_device_plugin_works_without_native_cdi(generation: str, node: ToolkitNode) -> None:
    """A plugin that was set up for all nodes of a cluster works here too."""
    with Pods(node) as pods:
        file = node.describe("k8s.device-plugin.nvidia.com-gpu.json", _plugins_spec(node))
        for handler in ("", "nvidia", "nvidia-cdi"):
            asked = pods.create(annotations=_ANNOTATION, cdi_devices=[_GPU], handler=handler)
            made = node.start(asked)
            _has_one_gpu(made)
            assert made.chosen == [_GPU]
        file.unlink()


@pytest.mark.parametrize("generation", sampled_params(["1.7", "2.1"], 1, __name__))
def test_device_plugin_works_with_native_cdi(generation: str, node: ToolkitNode) -> None:
    """The runtime puts the devices in, and the handler's program does not do it again."""
    with Pods(node) as pods:
        assert node.status().default == "runc"
        file = node.describe("k8s.device-plugin.nvidia.com-gpu.json", _plugins_spec(node))
        for handler, annotations, field in (
            ("nvidia", _ANNOTATION, [_GPU]),
            ("nvidia", _ANNOTATION, []),
            ("nvidia", {}, [_GPU]),
            ("nvidia-cdi", _ANNOTATION, [_GPU]),
            ("", _ANNOTATION, [_GPU]),
        ):
            asked = pods.create(annotations=annotations, cdi_devices=field, handler=handler)
            made = node.start(asked)
            _has_one_gpu(made)
            assert made.chosen == ([] if handler else None)
        file.unlink()


@pytest.mark.parametrize("generation", sampled_params(["1.6", "1.7", "2.1"], 1, __name__, long=2))
def test_only_privileged_containers_get_devices_by_variable(
    generation: str, node: ToolkitNode
) -> None:
    """Only a privileged container gets devices past the scheduler, unless it was asked for."""
    accept = {"ACCEPT_NVIDIA_VISIBLE_DEVICES_ENVVAR_WHEN_UNPRIVILEGED": "true"}
    with Pods(node) as pods:
        made = node.start(pods.create(env=_VISIBLE, handler="nvidia"))
        _has_nothing(made)
        assert made.chosen == []
        assert "NVIDIA_VISIBLE_DEVICES=all" in made.environment
        privileged = pods.create(env=_VISIBLE, handler="nvidia", privileged=True)
        assert node.start(privileged).chosen == [_ALL]
        starts = node.supervisor.starts
        node.variables.update(accept)
        checks.done(node.agent("apply"))
        assert node.supervisor.starts == starts, "the toolkit alone reads it"
        made = node.start(pods.create(env=_VISIBLE, handler="nvidia"))
        _has_all(made)
        assert made.chosen == [_ALL]
        node.variables.clear()
        kept = node.agent("apply")
        checks.done(kept)
        assert "kept for running pods" in kept.stdout + kept.stderr
        made = node.start(pods.create(env=_VISIBLE, handler="nvidia"))
        assert made.chosen == [_ALL], "the pod of before still needs it"
    checks.done(node.agent("apply"))


@pytest.mark.parametrize("generation", sampled_params(["1.6", "2.1"], 1, __name__))
def test_legacy_handler_stays_in_legacy_mode(generation: str, node: ToolkitNode) -> None:
    """It is in its own mode whatever the row is, and the hook that it puts in is there."""
    with Pods(node) as pods:
        made = node.start(pods.create(env=_VISIBLE, handler="nvidia-legacy", privileged=True))
        assert made.mode == "legacy"
        (hook,) = made.spec["hooks"]["prestart"]
        assert Path(hook["path"]) == node.toolkit / "nvidia-container-runtime-hook"
        assert "nvidia-container-runtime-hook" in [call["program"] for call in node.calls()]


@pytest.mark.parametrize("generation", ["2.1"])
def test_other_programs_find_what_they_need(generation: str, node: ToolkitNode) -> None:
    """Those that a person or another program calls find what they need."""
    cli = node.inside([str(node.toolkit / "nvidia-container-cli"), "--version"])
    assert cli.stdout == "cli-version: 1.18.0\n", cli.stderr
    file = node.toolkit / ".config/nvidia-container-runtime/config.toml"
    ctk = node.inside([str(node.toolkit / "nvidia-ctk"), "config", f"--config-file={file}"])
    assert tomllib.loads(ctk.stdout)["nvidia-container-runtime"]["mode"] == "cdi"
    for name in ("nvidia-container-toolkit", "nvidia-container-runtime-hook"):
        assert node.inside([str(node.toolkit / name), "prestart"]).returncode == 0
    assert {call["config"] for call in node.calls() if "config" in call} <= {str(file)}


@pytest.mark.parametrize("generation", sampled_params(["1.6", "2.1"], 1, __name__))
def test_toolkit_of_the_host_is_used_with_our_configuration(
    generation: str, runtime: Runtime
) -> None:
    """Packages that are installed on the node are used as they are, with our own configuration."""
    with ToolkitNode(runtime, on_host=True) as node, Pods(node) as pods:
        own = node.inside(["sha256sum", "/usr/bin/nvidia-container-runtime"])
        checks.done(node.agent("apply"))
        made = node.start(pods.create(env=_VISIBLE, handler="nvidia", privileged=True))
        assert (made.mode, made.chosen) == ("cdi", [_ALL])
        call = next(call for call in node.calls() if "mode" in call)
        assert Path(call["config"]).is_relative_to(node.toolkit)
        _has_nothing(node.start(pods.create(env=_VISIBLE, handler="nvidia")))
        assert node.inside(["ls", "/etc/nvidia-container-runtime"]).returncode != 0
        assert node.inside(["sha256sum", "/usr/bin/nvidia-container-runtime"]).stdout == own.stdout


@pytest.mark.parametrize("generation", sampled_params(["1.6", "2.1"], 1, __name__))
def test_pods_start_while_no_driver_is_loaded(generation: str, node: ToolkitNode) -> None:
    """Pods start all the same, through the low-level runtime, until it is there."""
    asked = {"handler": "nvidia", "annotations": {"nvidia.cdi.k8s.io/x": _ALL}}
    with Pods(node) as pods:
        node.load_driver(loaded=False)
        before = len(node.calls())
        made = node.start(pods.create(**asked))  # type: ignore[arg-type]
        _has_nothing(made)
        assert len(node.calls()) == before
        node.load_driver()
        if generation == "1.6":
            _has_all(node.start(pods.create(**asked)))  # type: ignore[arg-type]


class _Loops:
    """Start pods, and the toolkit's programs, one after the other, from entering to leaving; none
    may fail."""

    def __init__(self, node: ToolkitNode, pods: Pods) -> None:
        self.started = 0
        self.errors: list[str] = []
        self._node, self._pods = node, pods
        self._ending = threading.Event()
        work = (self._one_pod, self._programs)
        self._threads = [threading.Thread(target=self._repeat, args=[what]) for what in work]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        assert self.errors == []

    def wait(self) -> None:
        """Wait for one more pod."""
        before = self.started
        while self.started == before and not self.errors:
            time.sleep(0.02)
        assert self.errors == []

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._ending.is_set() and not self.errors:
            try:
                work()
            except Exception as error:  # noqa: BLE001 # told in the test's own thread
                self.errors.append(repr(error))

    def _one_pod(self) -> None:
        made = self._pods.create(annotations={"cdi.k8s.io/x": _ALL})
        assert self._node.start(made).chosen == [_ALL]
        made.remove()
        self.started += 1

    def _programs(self) -> None:
        for name in ("nvidia-container-runtime", "nvidia-ctk", "nvidia-container-cli"):
            self._node.inside([str(self._node.toolkit / name), "--version"]).check_returncode()
        self._ending.wait(0.1)  # else this alone keeps a processor busy


def _upgrade(runtime: Runtime, times: int) -> None:
    with applied(runtime) as node, Pods(node) as pods:
        kept = node.start(pods.create(annotations={"cdi.k8s.io/x": _ALL}))
        starts = node.supervisor.starts
        with _Loops(node, pods) as loops:
            for number in range(times):
                make_sources(node.source, f"1.19.{number}")
                checks.done(node.agent("apply"))
                loops.wait()
        last = f"1.19.{times - 1}"
        assert {call["version"] for call in node.calls()} >= {"1.18.0", last}
        low = {call["low_level"] for call in node.calls() if "low_level" in call}
        assert low == {str(runtime.runc)}, "never one of ours, whoever is the default"
        assert node.calls()[-1]["version"] == last
        assert node.supervisor.starts == starts, "nothing of the runtime's was changed"
        assert sorted(path.name for path in node.toolkit.parent.iterdir()) == ["toolkit"]
        assert len(list(node.toolkit.glob("libnvidia-container.so.*"))) == 2
        assert kept.has_device("nvidia0"), "it runs on"


@pytest.mark.parametrize("generation", ["1.6"])
def test_pods_find_a_whole_toolkit_during_an_upgrade(generation: str, runtime: Runtime) -> None:
    """However the toolkit is replaced, a pod finds one that is whole."""
    _upgrade(runtime, 8)


@pytest.mark.long
@pytest.mark.parametrize("generation", ["1.6"])
def test_pods_find_a_whole_toolkit_during_many_upgrades(generation: str, runtime: Runtime) -> None:
    """The same, fifty times."""
    _upgrade(runtime, 50)
