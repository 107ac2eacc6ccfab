"""The manifests as kubectl makes them, and what must hold of every one of them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.options import OPTIONS
from tests.tools.host_tools import reason, tool
from tests.tools.runtimes import ROOT

OVERLAYS = ("containerd", "crio")
TARGETS = {
    **{name: ROOT / "deploy/overlays" / name for name in OVERLAYS},
    "device-plugin": ROOT / "tests/deploy/plugin",
}
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
def test_valid_for_each_kubernetes(name: str, version: str, tmp_path: Path) -> None:
    """Strictly: a field that does not exist would be dropped without a word."""
    path = tmp_path / "all.yaml"
    path.write_text(rendered(name), encoding="utf-8")
    words = [str(BIN / "kubernetes-validate"), "--strict", "-k", version, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_agent_on_each_gpu_node_and_no_other(name: str) -> None:
    """Its pods, and how they come and go."""
    spec = daemon_set(name)["spec"]
    pod = spec["template"]["spec"]
    assert spec["updateStrategy"]["rollingUpdate"]["maxSurge"] == 0
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert [t["key"] for t in pod["tolerations"]] == ["nvidia.com/gpu"]
    assert pod["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod
    # Two restarts of 120 s at most and two proofs of 60 s.
    assert pod["terminationGracePeriodSeconds"] > 2 * (120 + 60)
    (container,) = pod["containers"]
    assert container["readinessProbe"]["exec"]["command"][-1].endswith("/.toolkit-ctr-ready")
    assert "livenessProbe" not in container
    assert {"NVIDIA_VISIBLE_DEVICES": "void"}.items() <= environment(container).items()


def environment(container: Mapping[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container["env"]}


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_variables_are_ours(name: str) -> None:
    """One with a typing error would do nothing."""
    known = {variable for option in OPTIONS for variable in option.env}
    (container,) = daemon_set(name)["spec"]["template"]["spec"]["containers"]
    assert set(environment(container)) - {"NVIDIA_VISIBLE_DEVICES"} <= known


@needs_kubectl
@pytest.mark.parametrize("name", TARGETS)
def test_directories_only(name: str) -> None:
    """A file or a socket that is mounted cannot be replaced."""
    volumes = daemon_set(name)["spec"]["template"]["spec"]["volumes"]
    kinds = {v["hostPath"].get("type") for v in volumes if "hostPath" in v}
    assert kinds <= {"Directory", "DirectoryOrCreate"}


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_namespace_classes_and_nothing_else(name: str) -> None:
    """No rights in the cluster at all."""
    found = [(item["kind"], item["metadata"]["name"]) for item in objects(name)]
    assert sorted(found) == [
        ("DaemonSet", "toolkit-agent"),
        ("Namespace", "toolkit-agent"),
        ("NetworkPolicy", "deny-all"),
        ("RuntimeClass", "nvidia"),
        ("RuntimeClass", "nvidia-cdi"),
        ("RuntimeClass", "nvidia-legacy"),
    ]
    label = {"pod-security.kubernetes.io/enforce": "privileged"}
    (namespace,) = [item for item in objects(name) if item["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"] == label
    assert daemon_set(name)["metadata"]["namespace"] == "toolkit-agent"


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_no_network(name: str) -> None:
    """No pod of the namespace may send or be sent anything."""
    (policy,) = [item for item in objects(name) if item["kind"] == "NetworkPolicy"]
    assert policy["metadata"]["namespace"] == "toolkit-agent"
    assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@needs_kubectl
def test_device_plugin_starts_by_the_decision() -> None:
    """The scripts are where the command expects them; the plugin keeps its own parts."""
    pod = daemon_set("device-plugin")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == [
        "/bin/sh", "/toolkit-agent/entrypoint.sh", "nvidia-device-plugin",
    ]  # fmt: skip
    (scripts,) = [i for i in objects("device-plugin") if i["kind"] == "ConfigMap"]
    assert set(scripts["data"]) == {"decision.sh", "entrypoint.sh", "wait.sh"}
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert volumes["toolkit-entrypoint"]["configMap"]["name"] == scripts["metadata"]["name"]
    assert "kubelet-device-plugins-dir" in volumes
    assert environment(container)["FAIL_ON_INIT_ERROR"] == "false"
    assert pod["initContainers"][0]["args"] == ["wait"]


def test_containerfile() -> None:
    """hadolint finds nothing."""
    words = [str(BIN / "hadolint"), str(ROOT / "Containerfile")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


def test_images_by_digest() -> None:
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
