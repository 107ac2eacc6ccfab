"""The manifests as kubectl makes them, and what must hold of every one of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.daemon.supervisor import Readiness
from agent.options.table import OPTIONS
from agent.transaction import quiet_moment
from tests.tools.host_tools import reason, tool
from tests.tools.runtimes import ROOT
from tests.tools.shells import SHELLS, start

OVERLAYS = ("containerd", "crio", "mixed")
TARGETS = {
    **{name: ROOT / "deploy/overlays" / name for name in OVERLAYS},
    "device-plugin": ROOT / "tests/deploy/plugin",
    "runtimeclasses": ROOT / "deploy/runtimeclasses",
    "first": ROOT / "tests/deploy/first",
    "revert": ROOT / "tests/deploy/revert",
}
CHART = ROOT / "tests/deploy/plugin/chart.yaml"
BIN = Path(sys.executable).parent

KUBECTL = tool("kubectl")

needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason=reason("kubectl"))


@cache
def rendered(name: str) -> str:
    """What is applied."""
    words = [str(KUBECTL), "kustomize", str(TARGETS[name])]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def objects(name: str) -> list[Mapping[str, Any]]:
    return list(yaml.safe_load_all(rendered(name)))


def daemon_set(name: str) -> Mapping[str, Any]:
    (found,) = [item for item in objects(name) if item["kind"] == "DaemonSet"]
    return found


@needs_kubectl
@pytest.mark.parametrize("version", ["1.28", "1.31", "1.34", "1.36"])
@pytest.mark.parametrize("name", TARGETS)
def test_manifests_are_valid_for_each_kubernetes(name: str, version: str, tmp_path: Path) -> None:
    """Strictly: a field that does not exist would be dropped without a word."""
    path = tmp_path / "all.yaml"
    path.write_text(rendered(name), encoding="utf-8")
    words = [str(BIN / "kubernetes-validate"), "--strict", "-k", version, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_agent_runs_on_each_gpu_node_and_no_other(name: str) -> None:
    """Its pods, and how they come and go."""
    spec = daemon_set(name)["spec"]
    pod = spec["template"]["spec"]
    assert spec["updateStrategy"]["rollingUpdate"]["maxSurge"] == 0
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    required = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    labels = [term["matchExpressions"] for term in required["nodeSelectorTerms"]]
    prefix = "feature.node.kubernetes.io/pci-"
    assert labels == [
        [{"key": key, "operator": "In", "values": ["true"]}]
        for key in (
            "nvidia.com/gpu.present", f"{prefix}10de.present",
            f"{prefix}0302_10de.present", f"{prefix}0300_10de.present",
        )
    ]  # fmt: skip
    assert pod["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod
    # Two restarts of 120 s at most and two proofs of 60 s, and a wait for a quiet moment.
    assert pod["terminationGracePeriodSeconds"] > 2 * (120 + 60) + quiet_moment.LIMIT
    (container,) = pod["containers"]
    assert "livenessProbe" not in container
    assert {"NVIDIA_VISIBLE_DEVICES": "void"}.items() <= environment(container).items()


def environment(container: Mapping[str, Any]) -> dict[str, str]:
    return {item["name"]: item.get("value", "") for item in container["env"]}


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_rollout_stops_at_the_first_node_that_fails(name: str) -> None:
    """One node at a time, which counts when it was seen ready twice; the file that says so is in
    the pod's own memory, so that no other pod can have left it."""
    spec = daemon_set(name)["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    probe = container["readinessProbe"]
    assert spec["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    assert probe["failureThreshold"] == 1
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert spec["minReadySeconds"] >= 2 * probe["periodSeconds"]
    directory = Path(environment(container)["AGENT_READY_FILE"]).parent
    (volume,) = [m["name"] for m in container["volumeMounts"] if m["mountPath"] == str(directory)]
    volumes = {item["name"]: item for item in spec["template"]["spec"]["volumes"]}
    assert volumes[volume]["emptyDir"]["medium"] == "Memory"
    (node,) = [item for item in container["env"] if item["name"] == "NODE_NAME"]
    assert node["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    assert environment(container)["AGENT_RESTART_SPREAD"] == "5m"


@needs_kubectl
def test_first_overlay_takes_one_node() -> None:
    """As deploy/README.md has it: one label more."""
    pod = daemon_set("first")["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"example.com/toolkit-agent": "first"}
    assert pod["affinity"] == daemon_set("containerd")["spec"]["template"]["spec"]["affinity"]
    text = (TARGETS["first"] / "kustomization.yaml").read_text("utf-8").replace("../../../", "")
    shown = (ROOT / "deploy/README.md").read_text("utf-8")
    assert "".join(f"    {line}\n" for line in text.splitlines()) in shown


@needs_kubectl
@pytest.mark.parametrize("shell", SHELLS)
def test_probe_says_why(shell: tuple[str, ...], tmp_path: Path) -> None:
    """Before the agent has said anything, while it is not ready, and when it is."""
    (container,) = daemon_set("containerd")["spec"]["template"]["spec"]["containers"]
    command = container["readinessProbe"]["exec"]["command"]
    assert command[:2] == ["sh", "-c"]
    script = command[2].replace("/run/toolkit-agent", str(tmp_path))

    def probe() -> tuple[int, str, str]:
        words = [*start(shell), "-c", script]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
        return done.returncode, done.stdout, done.stderr

    assert probe() == (1, "the agent has not started yet\n", "")
    readiness = Readiness(str(tmp_path / "ready"))
    readiness.update(3, b"cannot read it")
    assert probe() == (1, "cannot read it\n", "")
    readiness.update(0, b"")
    assert probe() == (0, "", "")
    readiness.update(137, b"")
    assert probe() == (1, "cannot converge: exit code 137; see the log\n", "")


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_variables_are_ours(name: str) -> None:
    """One with a typing error would do nothing."""
    known = {variable for option in OPTIONS for variable in option.env}
    (container,) = daemon_set(name)["spec"]["template"]["spec"]["containers"]
    assert set(environment(container)) - {"NVIDIA_VISIBLE_DEVICES"} <= known


@needs_kubectl
@pytest.mark.parametrize("name", [*OVERLAYS, "device-plugin"])
def test_only_directories_are_mounted(name: str) -> None:
    """A file or a socket that is mounted cannot be replaced."""
    volumes = daemon_set(name)["spec"]["template"]["spec"]["volumes"]
    kinds = {v["hostPath"].get("type") for v in volumes if "hostPath" in v}
    assert kinds <= {"Directory", "DirectoryOrCreate"}


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_agent_has_a_namespace_and_no_rights(name: str) -> None:
    """No rights in the cluster at all, and nothing that pods need once the agent is deleted."""
    found = [(item["kind"], item["metadata"]["name"]) for item in objects(name)]
    assert sorted(found) == [
        ("DaemonSet", "toolkit-agent"),
        ("Namespace", "toolkit-agent"),
        ("NetworkPolicy", "deny-all"),
        ("ResourceQuota", "system-node-critical"),
    ]
    label = {"pod-security.kubernetes.io/enforce": "privileged"}
    (namespace,) = [item for item in objects(name) if item["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"] == label
    assert daemon_set(name)["metadata"]["namespace"] == "toolkit-agent"


@needs_kubectl
def test_runtime_classes_stay_when_an_overlay_goes() -> None:
    """They stay when an overlay is deleted."""
    found = {item["metadata"]["name"]: item["handler"] for item in objects("runtimeclasses")}
    assert found == {name: name for name in ("nvidia", "nvidia-cdi", "nvidia-legacy")}
    assert {item["kind"] for item in objects("runtimeclasses")} == {"RuntimeClass"}


def containers(name: str) -> Iterator[Mapping[str, Any]]:
    for item in objects(name):
        pod = item.get("spec", {}).get("template", {}).get("spec", {})
        yield from pod.get("initContainers", [])
        yield from pod.get("containers", [])


@needs_kubectl
@pytest.mark.parametrize("name", [*OVERLAYS, "device-plugin"])
def test_images_have_a_registry(name: str, tmp_path: Path) -> None:
    """CRI-O pulls nothing by a short name; and one file says where the agent's image is."""
    images = [container["image"] for container in containers(name)]
    assert images
    assert all(re.match(r"(localhost|[\w-]+\.[\w.-]+)(:\d+)?/", image) for image in images)

    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    shutil.copytree(ROOT / "tests/deploy/plugin", tmp_path / "tests/deploy/plugin")
    one_place = tmp_path / "deploy/image/kustomization.yaml"
    text = one_place.read_text("utf-8")
    assert text.count("newName: localhost/toolkit-agent") == 1
    text = text.replace("newName: localhost/", "newName: registry.example:5000/gpu/")
    one_place.write_text(text, "utf-8")
    target = tmp_path / TARGETS[name].relative_to(ROOT)
    words = [str(KUBECTL), "kustomize", str(target)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "localhost/" not in re.sub(r"(?m)^ *#.*", "", done)
    assert "image: registry.example:5000/gpu/toolkit-agent:" in done


@needs_kubectl
def test_mixed_overlay_creates_only_our_directories() -> None:
    """What is not there on a node of the other kind stays not there."""
    volumes = daemon_set("mixed")["spec"]["template"]["spec"]["volumes"]
    paths = [volume["hostPath"] for volume in volumes if "hostPath" in volume]
    made = {path["path"] for path in paths if path["type"] == "DirectoryOrCreate"}
    assert made == {"/etc/cdi", "/usr/local/nvidia", "/var/lib/toolkit-agent"}
    (container,) = containers("mixed")
    assert environment(container)["RUNTIME"] == "auto"


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_network_policy_refuses_all_traffic(name: str) -> None:
    """No pod of the namespace may send or be sent anything."""
    (policy,) = [item for item in objects(name) if item["kind"] == "NetworkPolicy"]
    assert policy["metadata"]["namespace"] == "toolkit-agent"
    assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def plugin(found: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The pod of the device plugin among what the component was added to."""
    pods = [item["spec"]["template"]["spec"] for item in found if item["kind"] == "DaemonSet"]
    found_pods = [pod for pod in pods if "initContainers" in pod]
    assert len(found_pods) == 1
    pod: Mapping[str, Any] = found_pods[0]
    return pod


def check_plugin(found: list[Mapping[str, Any]], namespace: str) -> Mapping[str, Any]:
    """Its container starts by the decision, on nodes that have an agent."""
    pod = plugin(found)
    container: Mapping[str, Any] = next(
        one for one in pod["containers"] if one["name"] == "nvidia-device-plugin-ctr"
    )
    assert container["command"] == [
        "/bin/sh", "/toolkit-agent/entrypoint.sh", "nvidia-device-plugin",
    ]  # fmt: skip
    (scripts,) = [item for item in found if item["kind"] == "ConfigMap"]
    assert scripts["metadata"]["namespace"] == namespace
    assert set(scripts["data"]) == {"decision.sh", "entrypoint.sh", "wait.sh"}
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert volumes["toolkit-entrypoint"]["configMap"]["name"] == scripts["metadata"]["name"]
    assert "kubelet-device-plugins-dir" in volumes
    # The decision and the driver are found below the host's /, however they come and go.
    assert volumes["host"]["hostPath"]["path"] == "/"
    init = pod["initContainers"][0]
    for one in (init, container):
        (mount,) = [m for m in one["volumeMounts"] if m["name"] == "host"]
        assert (mount["mountPath"], mount["readOnly"]) == ("/host", True)
        assert mount["mountPropagation"] == "HostToContainer"
    assert init["args"] == ["wait"]
    agent = daemon_set("containerd")["spec"]["template"]["spec"]
    assert pod["affinity"] == agent["affinity"]
    return container


@needs_kubectl
def test_device_plugin_starts_by_the_decision() -> None:
    """The scripts are where the command expects them; the plugin keeps its own parts."""
    container = check_plugin(objects("device-plugin"), "kube-system")
    assert environment(container)["FAIL_ON_INIT_ERROR"] == "false"


@needs_kubectl
def test_plugin_of_the_chart_is_changed_and_nothing_else() -> None:
    """As Helm's post-renderer: in the release's namespace, and no pods but the plugin's."""
    script = ROOT / "deploy/device-plugin/post-render"
    with CHART.open("rb") as file:
        done = subprocess.run(
            [script], env={"PATH": f"{Path(str(KUBECTL)).parent}:{os.defpath}"}, stdin=file,
            capture_output=True, check=True, timeout=60,
        )  # fmt: skip
    found = list(yaml.safe_load_all(done.stdout))
    container = check_plugin(found, "plugins")
    assert environment(container)["CONFIG_FILE"] == "/config/config.yaml"
    assert len([item for item in found if item["kind"] == "DaemonSet"]) == 2
    before = list(yaml.safe_load_all(CHART.read_text("utf-8")))
    (kept,) = [item for item in before if item["metadata"]["name"].endswith("-control-daemon")]
    assert kept in found


def test_containerfile_passes_hadolint() -> None:
    """hadolint finds nothing."""
    words = [str(BIN / "hadolint"), str(ROOT / "Containerfile")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


def test_images_are_named_by_digest() -> None:
    """A tag can be moved by whoever owns it."""
    text = (ROOT / "Containerfile").read_text(encoding="ascii")
    defaults = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", text, re.MULTILINE))
    assert set(defaults) == {"BASE_IMAGE", "TOOLKIT_IMAGE"}
    assert all(re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", name) for name in defaults.values())
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {
        f"${{{name}}}" for name in defaults
    }


def test_installs_are_of_these_files() -> None:
    """Nothing is installed but what a hash names, and nothing of it is built."""
    for path in (ROOT / "Containerfile", ROOT / "deploy/lock"):
        text = path.read_text(encoding="ascii").replace("\\\n", " ")
        installs = re.findall(r"pip\b[^&|\n]*\binstall\b[^&|\n]*", text)
        assert installs
        for words in installs:
            if "--no-index" not in words:  # the wheel of our own
                assert "--require-hashes" in words
                assert "--only-binary :all:" in words


@pytest.mark.parametrize(
    "name", ["requirements.lock", "requirements-build.lock", "requirements-lock.lock"]
)
def test_locks_are_of_these_dependencies(name: str) -> None:
    """Each has hashes, and no word of where it was downloaded."""
    text = (ROOT / "deploy" / name).read_text(encoding="ascii")
    pinned = {line.partition("==")[0] for line in text.splitlines() if "==" in line}
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    wanted = project["project"]["dependencies"]
    if name == "requirements-build.lock":
        wanted = project["build-system"]["requires"]
    if name == "requirements-lock.lock":
        wanted = ["uv"]
    assert {item.split(">")[0] for item in wanted} <= pinned
    assert text.count("--hash=sha256:") >= len(pinned)
    assert "://" not in text


@needs_kubectl
@pytest.mark.parametrize("code", [0, 3])
def test_revert_pod_is_ready_once_it_succeeded(code: int, tmp_path: Path) -> None:
    """The pod is ready once the revert succeeded; a refusal ends it with its code, and the rollout
    stops there. Everything else is as the overlay has it."""
    (container,) = daemon_set("revert")["spec"]["template"]["spec"]["containers"]
    (usual,) = daemon_set("mixed")["spec"]["template"]["spec"]["containers"]
    command = container.pop("command")
    assert not container.pop("args")
    del usual["args"]
    assert container == usual
    ready = tmp_path / "ready"
    for name, script in {
        "toolkit-agent": f'test "$*" = revert && exit {code}',
        "sleep": "",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
        (tmp_path / name).chmod(0o755)
    script = command[2].replace("/run/toolkit-agent/ready", str(ready))
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run([*command[:2], script], env=env, check=False, timeout=10)
    assert (done.returncode, ready.exists()) == (code, code == 0)
