"""Pods are read as real runtimes described them; the doubles describe them alike."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent._cri import api_pb2
from agent.cri import client
from agent.runtimes import registry
from agent.runtimes.crio.adapter import pod_state
from agent.runtimes.desired_state import Effective
from tests.doubles.containerd.generation import CAPTURES, generation_of
from tests.doubles.containerd.service import Runtime, Service
from tests.doubles.crio.generation import generation_of as crio_generation
from tests.doubles.crio.script import CrioScript
from tests.doubles.crio.service import Service as CrioService
from tests.doubles.crio.state import Daemon
from tests.doubles.runtime.base import BaseService, container_of, number_of
from tests.doubles.runtime.script import Pod, Script

CONTAINERD = ("1.6.20", "1.7.24", "2.1.9", "2.3.4")
CRIO = {"1.30.14": "1.30.14", "1.37": "1.37.0"}
NVIDIA = "/usr/local/nvidia/toolkit/nvidia-container-runtime"
NAMES = {"nvidia": "gpu-pod", "default": "plain-pod"}
RUNTIMES = [*(f"containerd-{v}" for v in CONTAINERD), *(f"cri-o-{v}" for v in CRIO)]


def captured(runtime: str, *, stopped: bool = False) -> Any:
    """What that runtime told of a pod with the handler nvidia and one with the default."""
    found = json.loads((CAPTURES / runtime / "with-pods.json").read_text())
    return found["stopped"] if stopped else found


class Context:
    """Of a call that nobody waits for."""

    def is_active(self) -> bool:
        return True

    def abort(self, code: object, details: str) -> None:
        raise AssertionError(f"{code}: {details}")


def service(runtime: str, made: tuple[Pod, ...], place: Path) -> BaseService:
    """The double of a runtime that has these pods."""
    kind, _, version = runtime.rpartition("-")
    ended = threading.Event()
    if kind == "containerd":
        script: Callable[[], Script] = lambda: Script(pods=made)  # noqa: E731
        return Service(Runtime(generation_of(version), version, {}, script), ended)
    number = CRIO[version]
    generation = crio_generation(number)
    daemon = Daemon(generation, {**generation.defaults(), "root": str(place)})
    return CrioService(number, daemon, lambda: CrioScript(pods=made), ended)


def answers(runtime: str, place: Path, *, stopped: bool) -> dict[str, Any]:
    """What the double tells of the same pods."""
    annotations = {
        item["metadata"]["name"]: annotations_of(runtime, pod)
        for pod in NAMES.values()
        for item in [{"metadata": {"name": pod}}]
    }
    made = tuple(
        Pod(name, handler="nvidia" if kind == "nvidia" else "", ready=not stopped,
            binary=NVIDIA if kind == "nvidia" or runtime == "containerd-1.6.20" else "",
            annotations=annotations[name])
        for kind, name in NAMES.items()
    )  # fmt: skip
    double, context = service(runtime, made, place), Context()
    call = {name: getattr(double, name) for name in (
        "ListPodSandbox", "ListContainers", "PodSandboxStatus", "ContainerStatus")}  # fmt: skip

    def info(method: str, **request: Any) -> Any:
        message = getattr(api_pb2, f"{method}Request")(verbose=True, **request)
        return json.loads(call[method](message, context).info["info"])

    listed = call["ListPodSandbox"](api_pb2.ListPodSandboxRequest(), context).items
    containers = call["ListContainers"](api_pb2.ListContainersRequest(), context).containers
    by_kind = dict(zip(NAMES, made, strict=True))
    return {
        "list-pod-sandbox": {
            p.metadata.name: (api_pb2.PodSandboxState.Name(p.state), p.runtime_handler)
            for p in listed
        },
        "list-containers": [api_pb2.ContainerState.Name(c.state) for c in containers],
        "annotations": sorted(key for c in containers for key in c.annotations if "cdi" in key),
        "pod-sandbox-status": {
            kind: info("PodSandboxStatus", pod_sandbox_id=number_of(pod))
            for kind, pod in by_kind.items()
        },
        "container-status": {
            kind: info("ContainerStatus", container_id=container_of(pod))
            for kind, pod in by_kind.items()
        },
    }


def annotations_of(runtime: str, pod: str) -> Mapping[str, str]:
    """The annotations of the container of a captured pod that a device plugin gave it."""
    data = captured(runtime)
    ids = {p["id"]: p["metadata"]["name"] for p in data["list-pod-sandbox"]}
    (found,) = (c for c in data["list-containers"] if ids[c["pod_sandbox_id"]] == pod)
    return {key: value for key, value in found["annotations"].items() if "cdi" in key}


def told(info: Mapping[str, Any]) -> dict[str, Any]:
    """What somebody may want to know of verbose answers, in either form."""
    spec = info.get("runtimeSpec") or {}
    metadata = (info.get("sandboxMetadata") or {}).get("Metadata") or {}
    return {
        "keys": {"runtimeHandler", "sandboxMetadata", "runtimeOptions", "sandboxID", "privileged"}
        & info.keys(),
        "handler": (info.get("runtimeHandler"), metadata.get("RuntimeHandler")),
        "crio": spec.get("annotations", {}).get("io.kubernetes.cri-o.RuntimeHandler"),
        "options": info.get("runtimeOptions"),
        "status": info.get("processStatus"),
        "pid": bool(info.get("pid")),
        "plugin": [key for key in spec.get("annotations", {}) if key.startswith("nvidia.cdi")],
        "env": "env" in spec.get("process", {}),
    }


OF_CONTAINERD, OF_CRIO = (registry.adapter(kind) for kind in ("containerd", "crio"))
NOTHING = Effective("", {}, None, {})


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_doubles_describe_pods_as_real_runtimes_do(
    runtime: str, stopped: bool, tmp_path: Path
) -> None:
    """Lists, states, handlers, programs, annotations, while pods run and after they were stopped.

    `runtimeSpec` was left out of what was captured of stopped pods.
    """
    real, double = captured(runtime, stopped=stopped), answers(runtime, tmp_path, stopped=stopped)
    assert double["list-pod-sandbox"] == {
        p["metadata"]["name"]: (p["state"], p["runtime_handler"]) for p in real["list-pod-sandbox"]
    }
    assert double["list-containers"] == [c["state"] for c in real["list-containers"]]
    assert double["annotations"] == sorted(
        key for c in real["list-containers"] for key in c["annotations"] if "cdi" in key
    )
    for call in ("pod-sandbox-status", "container-status"):
        for kind in NAMES:
            shown, expected = told(double[call][kind]), told(real[call][kind])
            if stopped:
                for key in ("crio", "plugin", "env"):
                    shown[key] = expected[key] = None
            if call == "pod-sandbox-status":
                shown["env"] = expected["env"] = None
            assert shown == expected, (call, kind)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_handlers_and_programs_are_read(runtime: str) -> None:
    """CRI-O says the handler only here, the default unresolved; containerd the program."""
    data = captured(runtime)
    of_pod, of_container = data["pod-sandbox-status"], data["container-status"]
    if runtime.startswith("cri-o"):
        assert OF_CRIO.pod_handler(of_pod["nvidia"]) == "nvidia"
        assert OF_CRIO.pod_handler(of_pod["default"]) == ""
        assert OF_CRIO.pod_programs(of_pod["nvidia"], NOTHING, "") == ()
        assert {client.monitored_pod(tuple(line)) for line in data["monitors"]} == {
            ("default", "gpu-pod"), ("default", "plain-pod")
        }  # fmt: skip
    else:
        assert OF_CONTAINERD.pod_programs(of_pod["nvidia"], NOTHING, "") == (NVIDIA,)
        assert OF_CONTAINERD.pod_programs(of_container["nvidia"], NOTHING, "") == (NVIDIA,)
        listed = {p["metadata"]["name"]: p["runtime_handler"] for p in data["list-pod-sandbox"]}
        assert listed == {"gpu-pod": "nvidia", "plain-pod": ""}
    # Both got their device by CDI, or none: no variable asks for one.
    assert not client.asks_by_variable(of_container["nvidia"])
    assert not client.asks_by_variable(of_container["default"])


@pytest.mark.parametrize(
    ("env", "asks"),
    [
        (["NVIDIA_VISIBLE_DEVICES=all"], True),
        (["NVIDIA_VISIBLE_DEVICES=none", "NVIDIA_VISIBLE_DEVICES=GPU-1"], True),
        (["NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_VISIBLE_DEVICES="], False),
        (["NVIDIA_VISIBLE_DEVICES=none"], False),
        (["NVIDIA_VISIBLE_DEVICES=void", "NVIDIA_VISIBLE_DEVICES=all"], False),
        (["NVIDIA_DRIVER_CAPABILITIES=all"], False),
        (None, False),
        ([None, 3], False),
    ],
)
def test_variables_decide_whether_a_pod_asks_for_gpus(env: object, asks: bool) -> None:
    """CRI-O 1.30 has CDI's own "void" before what the image says."""
    assert client.asks_by_variable({"runtimeSpec": {"process": {"env": env}}}) is asks


@pytest.mark.parametrize("info", [{}, {"runtimeSpec": []}, {"runtimeOptions": 3}, {"info": "x"}])
def test_answers_of_another_form_are_ignored(info: Mapping[str, Any]) -> None:
    """Nothing is said then."""
    assert (OF_CRIO.pod_handler(info), OF_CONTAINERD.pod_programs(info, NOTHING, "")) == ("", ())
    assert client.asks_by_variable(info) is False


@pytest.mark.parametrize(
    "words",
    [("conmon",), ("conmon", "-n"), ("conmon", "-n", "ctr"), ("conmon", "-n", "k8s_a_b_c_d"),
     ("conmon", "-n", "x_a_b_c_d_0")],
)  # fmt: skip
def test_monitors_of_podman_are_ignored(words: tuple[str, ...]) -> None:
    """Podman's watch no pod of Kubernetes."""
    assert client.monitored_pod(words) is None


CRUN = {"runtime_path": "/usr/libexec/crio/crun", "runtime_root": "/run/crun"}
OURS = {"runtime_path": NVIDIA, "runtime_root": "/run/crun", "runtime_type": "oci"}


@pytest.mark.parametrize(
    ("table", "below", "same"),
    [
        (OURS, "crun", True),
        (OURS, "/usr/bin/crun", True),
        (OURS, "/usr/bin/runc", False),
        ({**OURS, "runtime_root": ""}, "crun", False),
        ({**OURS, "runtime_root": "/run/runc"}, "crun", False),
        ({**OURS, "runtime_type": "vm"}, "crun", False),
        ({"runtime_root": "/run/crun", "inherit_default_runtime": True}, "runc", True),
        ({"runtime_path": "/usr/bin/runc", "runtime_root": "/run/crun"}, "crun", False),
    ],
)
def test_state_directory_decides_whether_crio_finds_a_pod(
    table: dict[str, Any], below: str, same: bool
) -> None:
    """Observed: with another state directory a running pod is shown as ended."""
    tables = {"crun": CRUN, "other": table}
    states = [pod_state(Effective("crun", tables, None, {}), name, below) for name in tables]
    assert (states[0] == states[1]) is same
    assert pod_state(Effective("runc", {"runc": {}}, None, {}), "runc", None) == (
        "runc",
        "/run/runc",
        "oci",
    )
