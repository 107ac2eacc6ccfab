"""Under gpu-operator, on real containerds: what its DaemonSet and its validator ask of us."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conformance import statusfile
from tests.conformance.effective import binaries, passed_on
from tests.conformance.shapes import BINARIES, OURS
from tests.conformance.trees import touched
from tests.operator import environment as operator
from tests.operator.operator_nodes import PROGRAMS, K3sNode, OperatorNode
from tests.operator.pod import Pod
from tests.sampling import sampled_params
from tests.tools.runtimes import ROOT, Runtime

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

# What a user adds in toolkit.env: no systemd runs the runtime of these nodes.
USER = {"RUNTIME_RESTART_MODE": "signal"}
OFF = {**operator.ALWAYS, **operator.CONTAINERD, **USER}
ON = {**OFF, **operator.CDI}
NRI = {**operator.ALWAYS, **operator.CDI, **operator.NRI, **operator.NRI_CONTAINERD}

# No name that only the pod knows may be in what the host reads.
POD_NAMES = re.compile(r"/runtime/|/driver-root|/host/|/tmp/")


def right(node: OperatorNode, pod: Pod, starts: int = 1) -> Mapping[str, str]:
    """Wait until it is published; the runtime was restarted so often, and is as it should be."""
    before = node.supervisor.starts
    pod.until(lambda: bool(node.places.twin()))
    assert node.supervisor.starts == before + starts - 1, pod.said()
    answer = node.answer()
    for name in OURS:
        assert binaries(answer.runtimes[name]) == {f"{PROGRAMS}/{BINARIES[name]}"}
    return node.places.twin()


def written(node: OperatorNode) -> dict[str, str]:
    """Every file that the host reads of what we wrote, by its name on the host."""
    places = "/etc/containerd /run/cdi /run/nvidia/validations /var/lib/rancher"
    look = f"find $(ls -d {places} 2>&-) -type f ! -name driver-ready"
    names = node.output("sh", "-c", look).splitlines()
    return {name: node.output("cat", name) for name in names}


@pytest.mark.parametrize("generation", sampled_params(["1.7", "2.1"], 1, __name__))
def test_pod_waits_for_the_driver_and_makes_the_node_right(
    generation: str, runtime: Runtime
) -> None:
    """It waits for the driver, makes the node right under the host's own names, and stays."""
    with OperatorNode(runtime) as node, Pod(node, ON, operator.CONTAINERD_MOUNTS) as pod:
        places, starts = node.places, node.supervisor.starts
        pod.until(lambda: "no driver yet" in pod.said())
        assert not places.pid_file.exists()
        # The machine's own may be seen below the node's layer, and is not to be used.
        usual = "{ ls -lA --time-style=full-iso /var/lib/toolkit-agent; ls /var/lib; }"
        library = node.output("sh", "-c", f"{usual} 2>&1")
        places.validated(operator.DRIVER_CONTAINER)
        values = right(node, pod, 2)
        assert node.supervisor.starts == starts + 1

        assert places.pid_file.read_text() == f"{pod.process.pid}\n"
        assert places.pid_file.stat().st_mode & 0o777 == 0o600
        assert b"supervisor.py" in Path(f"/proc/{pod.process.pid}/cmdline").read_bytes()
        assert (values["TOOLKIT_NATIVE_CDI"], values["DEVICE_LIST_STRATEGY"]) == ("true", "cdi-cri")
        assert values["TOOLKIT_CRI_SOCKET"] == "/run/containerd/containerd.sock"
        assert values["NVIDIA_CDI_HOOK_PATH"] == f"{PROGRAMS}/nvidia-cdi-hook"
        assert not places.ready.exists()  # it is the validator's
        files = written(node)
        assert {n: m[0] for n, t in files.items() if (m := POD_NAMES.search(t))} == {}
        imports = "/etc/containerd/conf.d/99-nvidia*.toml"
        root = files["/etc/containerd/config.toml"]
        assert (f'imports = ["{imports}"]' in root) == (generation == "2.1")
        assert ("/etc/containerd/conf.d/99-nvidia.toml" in files) == (generation == "2.1")
        assert node.answer().cdi is True
        spec = places.spec.read_text("utf-8")
        assert 'hostPath: "/run/nvidia/driver/dev/nvidiactl"' in spec
        state = node.output("ls", "-A", "/usr/local/nvidia", "/usr/local/nvidia/.toolkit-agent")
        assert {".toolkit-agent", "memory.json", "originals"} <= set(state.split())
        assert node.output("sh", "-c", f"{usual} 2>&1") == library


@pytest.mark.parametrize("generation", sampled_params(["1.7", "2.1"], 1, __name__))
def test_barrier_of_the_validator_is_refilled_and_never_made(
    generation: str, runtime: Runtime
) -> None:
    """The barrier is refilled and put back, never made; a pod that comes again changes nothing."""
    with OperatorNode(runtime) as node, Pod(node, ON, operator.CONTAINERD_MOUNTS) as pod:
        places = node.places
        places.validated(operator.DRIVER_CONTAINER)
        right(node, pod, 2)
        pod.rest()  # who is still at it would find the barrier without being woken
        places.validate_toolkit()
        pod.until(places.refilled)
        assert places.twin_path.read_bytes() == places.ready.read_bytes()

        # Somebody writes the configuration anew and restarts: the barrier goes, and comes back with
        # the proof. Meanwhile we are stopped, so that it is never right before.
        pod.rest()
        original = (node.shape.directory / "config.toml").read_bytes()
        starts, moment = node.supervisor.starts, places.ready.stat().st_mtime_ns
        pod.process.send_signal(signal.SIGSTOP)
        (node.etc / "containerd/config.toml").write_bytes(original)
        node.restart()
        pod.process.send_signal(signal.SIGCONT)
        pod.until(lambda: node.supervisor.starts == starts + 2)
        pod.until(lambda: places.refilled() and places.ready.stat().st_mtime_ns > moment)
        right(node, pod)
        pod.rest()

        tree, twin, starts = node.tree(), places.twin_path.stat(), node.supervisor.starts
        assert pod.stop() == 0, pod.said()
        assert not places.pid_file.exists()
        assert touched(tree, node.tree()) == []
        assert places.twin_path.stat() == twin
        # What the validator does when it ends; a shell's star stands for no leading dot.
        node.output("sh", "-c", "rm -f /run/nvidia/validations/*-ready")

        pod.start()
        places.validated(operator.DRIVER_CONTAINER)
        pod.rest()
        assert places.pid_file.read_text() == f"{pod.process.pid}\n"
        assert touched(tree, node.tree()) == []
        assert places.twin_path.stat() == twin
        assert not places.ready.exists()
        assert node.supervisor.starts == starts
        assert pod.stop() == 0, pod.said()

        # By hand on the node, which has none of the pod's names and finds the state all the same.
        python = (sys.executable, "-m", "agent", "revert", "--restart-mode=signal")
        node.output("env", f"--chdir={ROOT}", *python)
        assert (node.etc / "containerd/config.toml").read_bytes() == original
        assert not set(OURS) & set(node.answer().runtimes)
        assert not places.spec.exists()


@pytest.mark.parametrize("generation", ["2.1"])
def test_second_pod_exits_with_7_and_touches_nothing(generation: str, runtime: Runtime) -> None:
    """A second one ends with 7 and touches nothing; what a killed one left is taken over."""
    with OperatorNode(runtime) as node, Pod(node, ON, operator.CONTAINERD_MOUNTS) as pod:
        path = node.places.pid_file
        node.places.validated(operator.DRIVER_CONTAINER)
        right(node, pod, 2)
        before = path.stat()
        # With a state directory of its own, so that there is no other lock to find.
        pod.env["AGENT_STATE_DIR"] = "/run/nvidia/toolkit/state"
        second = pod.run("second")
        assert second.wait(60) == 7, pod.said()
        assert "cannot start: another toolkit holds /run/nvidia/toolkit/toolkit.pid" in pod.said()
        assert (path.stat(), path.read_text()) == (before, f"{pod.process.pid}\n")
        del pod.env["AGENT_STATE_DIR"]

        pod.process.send_signal(signal.SIGKILL)
        pod.process.wait()
        assert path.read_text() == f"{pod.process.pid}\n"
        pod.start()
        pod.until(lambda: path.read_text() == f"{pod.process.pid}\n")
        assert pod.stop() == 0, pod.said()

        path.symlink_to("/etc/containerd/config.toml")
        text = (node.etc / "containerd/config.toml").read_bytes()
        pod.start()
        assert pod.process.wait(60) == 3
        assert "cannot use the pid file /run/nvidia/toolkit/toolkit.pid: it is no" in pod.said()
        assert (node.etc / "containerd/config.toml").read_bytes() == text
        assert path.is_symlink()


@pytest.mark.parametrize("generation", ["2.1"])
def test_one_run_with_cdi_off_makes_nvidia_the_default(generation: str, runtime: Runtime) -> None:
    """nvidia becomes the default, no spec is written, and it ends by itself."""
    env = {**OFF, "NO_DAEMON": "true"}
    with OperatorNode(runtime) as node, Pod(node, env, operator.CONTAINERD_MOUNTS) as pod:
        node.places.validated(operator.DRIVER_CONTAINER)
        assert pod.process.wait(60) == 0, pod.said()
        assert node.answer().default == "nvidia"
        assert node.places.twin()["DEVICE_LIST_STRATEGY"] == "envvar"
        assert not node.places.spec.exists()
        assert not node.places.pid_file.exists()


@pytest.mark.parametrize("generation", ["1.6"])
def test_runtime_without_cdi_gets_nvidia_as_default(generation: str, runtime: Runtime) -> None:
    """nvidia is the default, although the operator sends that it is not to be, and answers the
    annotations that the operator's device plugin sends to all nodes alike."""
    with OperatorNode(runtime) as node, Pod(node, ON, operator.CONTAINERD_MOUNTS) as pod:
        node.places.validated(operator.DRIVER_CONTAINER)
        values = right(node, pod, 2)
        assert values["TOOLKIT_NATIVE_CDI"] == "false"
        answer = node.answer()
        assert answer.default == "nvidia"
        for name in OURS:
            assert "cdi.k8s.io/*" in passed_on(answer.runtimes[name])
        assert "set-as-default=false from the environment is overruled" in pod.said()


@pytest.mark.parametrize("generation", ["2.1"])
def test_nri_plugin_leaves_the_configuration_alone(generation: str, runtime: Runtime) -> None:
    """No configuration and no socket is mounted: all but these, and a word about the plugin."""
    with OperatorNode(runtime) as node, Pod(node, NRI, operator.NRI_MOUNTS) as pod:
        tree, starts = node.tree(), node.supervisor.starts
        node.places.validated(operator.DRIVER_CONTAINER)
        pod.until(lambda: bool(node.places.twin()))
        assert touched(tree, node.tree()) == []
        assert node.supervisor.starts == starts
        assert node.places.spec.exists()
        assert node.places.twin()["TOOLKIT_NATIVE_CDI"] == "true"
        assert node.places.twin()["TOOLKIT_CRI_SOCKET"] == "/run/containerd/containerd.sock"
        told = [json.loads(line)["text"] for line in pod.said().splitlines() if "NRI" in line]
        assert "there is no NRI plugin" in told[0]
        assert any(text.startswith("NRI_SOCKET is accepted, but has no effect") for text in told)
        assert len(told) == len(set(told))
        assert pod.stop() == 0, pod.said()


@pytest.mark.parametrize("generation", ["2.1"])
def test_drop_in_of_k3s_goes_where_the_operator_has_it(generation: str, runtime: Runtime) -> None:
    """Its own files and socket; the drop-in goes where the operator has it, which the admin's
    template imports. What k3s renders is not edited."""
    env = {**operator.ALWAYS, **operator.CDI, **operator.K3S, **USER}
    with K3sNode(runtime) as node, Pod(node, env, operator.K3S_MOUNTS) as pod:
        node.places.validated(operator.DRIVER_CONTAINER)
        values = right(node, pod, 2)
        assert values["TOOLKIT_CRI_SOCKET"] == "/run/k3s/containerd/containerd.sock"
        files = written(node)
        root = files["/var/lib/rancher/k3s/agent/etc/containerd/config.toml"]
        assert root.startswith(node.IMPORTS)  # as the template has it
        assert root.count("nvidia") == 1
        assert "nvidia" not in files["/etc/containerd/config.toml"]
        assert PROGRAMS in files["/etc/containerd/conf.d/99-nvidia.toml"]
        assert {n: m[0] for n, t in files.items() if (m := POD_NAMES.search(t))} == {}
        assert "CONTAINERD_SET_AS_DEFAULT=true is ignored" in pod.said()
        assert node.answer().default == "runc"
        error = node.places.validations / statusfile.ERROR
        assert not error.exists()


@pytest.mark.parametrize("generation", sampled_params(["1.7", "2.1"], 1, "k3s"))
def test_configuration_that_k3s_renders_is_not_edited(generation: str, runtime: Runtime) -> None:
    """What k3s writes anew is not edited: it would be gone with its next start."""
    env = {**operator.ALWAYS, **operator.CDI, **operator.K3S, **USER}
    with K3sNode(runtime, "# nobody's") as node, Pod(node, env, operator.K3S_MOUNTS) as pod:
        before = written(node)
        node.places.validated(operator.DRIVER_CONTAINER)
        error = node.places.validations / statusfile.ERROR
        pod.until(error.exists)
        text = error.read_text("ascii").replace("-v3", "")
        assert "k3s_writes_it_anew_at_each_start" in text
        assert "/var/lib/rancher/k3s/agent/etc/containerd/config.toml.tmpl" in text
        told = {f"/run/nvidia/validations/{statusfile.ERROR}"}
        assert written(node).items() - before.items() == {
            item for item in written(node).items() if item[0] in told
        }
        assert node.supervisor.starts == 1
        assert node.places.twin() == {}
