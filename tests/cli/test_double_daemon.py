"""The scripted containerd as a process answers like the real one, with the faults of its script."""

from __future__ import annotations

import json
import signal
import socket as sockets
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent._cri import api_pb2
from tests.doubles.containerd.double_node import DoubleNode
from tests.doubles.containerd.generation import CAPTURES, CRI_RUNTIME, generation_of
from tests.doubles.containerd.sample import SECTIONS, handler
from tests.doubles.runtime.supervisor import Supervisor
from tests.tools.mounts import private_mounts
from tests.tools.runtimes import load as real_runtimes

V3 = SECTIONS[3]
NVIDIA = handler("nvidia", V3)
SERVER = Path(__file__).parents[1] / "doubles/containerd/server.py"


@pytest.fixture
def node(tmp_path: Path) -> DoubleNode:
    return DoubleNode(tmp_path, "2.1.9")


@pytest.mark.parametrize("version", ["1.6.20", "1.7.24", "2.1.9"])
def test_double_answers_like_the_captured_daemon(version: str, tmp_path: Path) -> None:
    node = DoubleNode(tmp_path, version)
    with node.run():
        node.wait(grpc.StatusCode.OK)
        answer = node.status()
        without = node.status(verbose=False)

    captured = (CAPTURES / f"containerd-{version}" / "status-info-config.json").read_text()
    private = captured.replace("/var/lib/containerd", f"{tmp_path}/root")
    private = private.replace("/run/containerd/containerd.sock", str(node.socket))
    private = private.replace("/run/containerd", f"{tmp_path}/state")
    assert json.loads(private) == json.loads(answer.info["config"])
    assert {c.type: c.status for c in answer.status.conditions}["RuntimeReady"]
    assert json.loads(answer.info["golang"]) == generation_of(version).golang
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(answer.info["lastCNILoadStatus"])
    assert not without.info
    handlers = [handler.name for handler in answer.runtime_handlers]
    assert handlers == ([] if version.startswith("1") else ["", "runc"])


def test_process_looks_like_containerd_from_outside(node: DoubleNode) -> None:
    with node.run() as supervisor:
        node.wait(grpc.StatusCode.OK)
        process = Path(f"/proc/{supervisor.pid}")
        name = (process / "comm").read_text().strip()
        arguments = (process / "cmdline").read_bytes().decode().split("\0")
        with sockets.socket(sockets.AF_UNIX) as client:
            client.connect(str(node.socket))
            size = struct.calcsize("3i")
            peer = client.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, size)

        assert name == "containerd"
        assert arguments[1:4] == [str(node.program), "-c", str(node.config)]
        assert struct.unpack("3i", peer)[0] == supervisor.pid


@pytest.mark.parametrize(
    ("number", "code", "socket_stays"), [(signal.SIGTERM, 0, False), (signal.SIGHUP, -1, True)]
)
def test_signals_end_the_daemon(
    number: signal.Signals, code: int, socket_stays: bool, node: DoubleNode
) -> None:
    with node.run(delay=None) as supervisor:
        node.wait(grpc.StatusCode.OK)
        supervisor.send(number)
        assert supervisor.wait_until(lambda s: not s.running)

        assert f"ended with {code}\n" in supervisor.log.read_text()
        assert node.socket.exists() is socket_stays


def test_restart_loads_the_new_configuration(node: DoubleNode) -> None:
    with node.run() as supervisor:
        node.wait(grpc.StatusCode.OK)
        node.write(NVIDIA + f"[{V3}.containerd]\ndefault_runtime_name = 'nvidia'\n")
        assert "nvidia" not in node.shown()["containerd"]["runtimes"]
        old = supervisor.pid
        supervisor.send(signal.SIGTERM)
        assert supervisor.wait_until(lambda s: s.starts == 2)
        node.wait(grpc.StatusCode.OK)
        containerd = node.shown()["containerd"]

        assert containerd["runtimes"]["nvidia"]["options"] == {"BinaryName": "/opt/nvidia"}
        assert containerd["defaultRuntimeName"] == "nvidia"
        assert [start.pid for start in supervisor.history] == [old, supervisor.pid]
        assert old != supervisor.pid


def test_default_without_a_table_leaves_a_daemon_without_cri(node: DoubleNode) -> None:
    node.write(f"[{V3}.containerd]\ndefault_runtime_name = 'nvidia'\n")
    with node.run() as supervisor:
        assert node.wait() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.RpcError, match="unknown service"):
            node.status()
        assert supervisor.running


def test_broken_file_ends_the_daemon_again_and_again(node: DoubleNode) -> None:
    node.config.write_text("version = = 3")
    with node.run() as supervisor:
        assert supervisor.wait_until(lambda s: s.starts >= 3)
        assert node.code() is grpc.StatusCode.UNAVAILABLE

    log = supervisor.log.read_text()
    assert "ended with 1\n" in log
    assert f"containerd: failed to unmarshal TOML: {node.config}" in log


def test_script_changes_answers_while_the_daemon_runs(node: DoubleNode) -> None:
    node.write(NVIDIA)
    with node.run() as supervisor:
        node.wait(grpc.StatusCode.OK)
        assert node.shown()["enableCDI"] is True
        node.script(enable_cdi=False, drop_handler=True, default="x", runtime_ready=False)
        answer = node.status()
        config = json.loads(answer.info["config"])

        assert config["enableCDI"] is False
        assert list(config["containerd"]["runtimes"]) == ["runc"]
        assert config["containerd"]["defaultRuntimeName"] == "x"
        assert [handler.name for handler in answer.runtime_handlers] == ["", "runc"]
        assert not answer.status.conditions[0].status
        assert "nvidia" in node.dump()["plugins"][CRI_RUNTIME]["containerd"]["runtimes"]

        node.script(no_verbose=True, version_name="9.9", runtime_name="docker")
        with node.stub() as stub:
            who = stub.Version(api_pb2.VersionRequest(), timeout=5)
        assert not node.status().info
        assert (who.runtime_name, who.runtime_version) == ("docker", "9.9")

        node.script(unimplemented=True)
        assert node.code() is grpc.StatusCode.UNIMPLEMENTED
        node.script(silent=True)
        assert node.code(timeout=0.3) is grpc.StatusCode.DEADLINE_EXCEEDED
        node.script()
        assert node.code() is grpc.StatusCode.OK
        assert supervisor.starts == 1


def test_script_delays_and_breaks_a_start(node: DoubleNode) -> None:
    node.script(delay_start_s=0.5, crash_after_s=2.0, fail_first=2, fail_code="UNKNOWN")
    began = time.monotonic()
    with node.run(delay=None) as supervisor:
        codes = [node.wait(grpc.StatusCode.UNKNOWN), node.code(), node.code()]
        answered = time.monotonic() - began
        assert supervisor.wait_until(lambda s: not s.running)

    assert answered > 0.5
    assert codes == [grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNKNOWN, grpc.StatusCode.OK]
    assert "ended with 2\n" in supervisor.log.read_text()


@pytest.mark.parametrize(
    ("condition", "dies"),
    [
        ({"handler": "nvidia"}, True),
        ({"handler": "other"}, False),
        ({"default": "nvidia"}, False),
        ({"handler": "nvidia", "enable_cdi": True}, True),
        ({"enable_cdi": False}, False),
    ],
)
def test_daemon_dies_of_a_scripted_configuration(
    condition: dict[str, Any], dies: bool, node: DoubleNode
) -> None:
    node.write(NVIDIA)
    node.script(die_when=condition)
    with node.run(delay=None) as supervisor:
        if dies:
            assert supervisor.wait_until(lambda s: not s.running)
        else:
            assert node.wait() is grpc.StatusCode.OK


def test_misspelt_fault_is_an_error(node: DoubleNode) -> None:
    node.script(silend=True)
    with node.run(delay=None) as supervisor:
        assert supervisor.wait_until(lambda s: not s.running)

    assert "silend" in supervisor.log.read_text()


def test_daemon_lists_the_pods_of_the_script(node: DoubleNode) -> None:
    node.script(
        pods=[
            {"name": "a", "namespace": "n", "handler": "nvidia"},
            {"name": "b", "ready": False},
        ]
    )
    ready = api_pb2.PodSandboxStateValue(state=api_pb2.SANDBOX_READY)
    only_ready = api_pb2.ListPodSandboxRequest(filter=api_pb2.PodSandboxFilter(state=ready))
    with node.run():
        node.wait(grpc.StatusCode.OK)
        with node.stub() as stub:
            everything = stub.ListPodSandbox(api_pb2.ListPodSandboxRequest(), timeout=5).items
            some = stub.ListPodSandbox(only_ready, timeout=5).items

    found = [(p.metadata.namespace, p.metadata.name, p.runtime_handler) for p in everything]
    assert found == [("n", "a", "nvidia"), ("default", "b", "")]
    assert [p.metadata.name for p in some] == ["a"]


def test_directory_of_a_node_holds_the_usual_places(tmp_path: Path) -> None:
    """Without `-c` the usual file and socket are used, below the directory."""
    directory = tmp_path / "etc/containerd/conf.d"
    directory.mkdir(parents=True)
    (tmp_path / "etc/containerd/config.toml").write_text(
        "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n"
    )
    (directory / "a.toml").write_text("version = 3\n" + NVIDIA)
    argv = [sys.executable, str(SERVER), "--node", str(tmp_path), "--version", "2.1.9"]
    dump = subprocess.run([*argv, "config", "dump"], capture_output=True, check=True, cwd=tmp_path)
    assert b"/opt/nvidia" in dump.stdout
    node = DoubleNode(tmp_path, "2.1.9", program=SERVER)
    node.socket = tmp_path / "run/containerd/containerd.sock"
    with Supervisor(argv, None, tmp_path):
        node.wait(grpc.StatusCode.OK)
        shown = node.shown()

    assert "nvidia" in shown["containerd"]["runtimes"]
    assert shown["containerdEndpoint"] == "/run/containerd/containerd.sock"


def test_command_line_installs_an_executable(tmp_path: Path) -> None:
    argv = [sys.executable, str(SERVER), "--version", "1.7.24", "--install", str(tmp_path / "a b")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    program = done.stdout.strip()
    assert program == str(tmp_path / "a b/containerd")

    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert "1.7.24~ds1" in told.stdout
    told = subprocess.run(
        [program, "config", "default"], capture_output=True, text=True, check=True
    )
    assert told.stdout == generation_of("1.7.24").default_text()


HANDLERS = handler("runc", "SECTION") + handler("nvidia", "SECTION") + "[SECTION.containerd]\n"
RUNC = "[SECTION.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n"
OLD_SHIM = RUNC.replace("runc.v2", "runtime.v1.linux")
DEPRECATED = "runtime_type = 'io.containerd.runc.v2'\n"
REAL_TEXTS = {
    "nothing": "",
    "handlers": HANDLERS,
    "default": f"{HANDLERS}default_runtime_name = 'nvidia'\n",
    "cdi off": "[SECTION]\nenable_cdi = false\ncdi_spec_dirs = ['/x']\n",
    "cdi on": "[SECTION]\nenable_cdi = true\n",
    "dead": "[SECTION.containerd]\ndefault_runtime_name = 'nvidia'\n",
    "no type": "[SECTION.containerd.runtimes.runc]\nruntime_type = ''\n",
    "no sandboxer": "[SECTION.containerd.runtimes.runc]\nsandboxer = ''\nsandbox_mode = ''\n",
    "strange": f"{RUNC}typo = true\n"
    "[SECTION.containerd.runtimes.runc.options]\nversion = 2\nTypeUrl = 'x'\n",
    "old shim": f"{OLD_SHIM}runtime_engine = '/x'\nruntime_root = '/y'\n",
    "old cgroup": f"[SECTION]\nsystemd_cgroup = true\n{OLD_SHIM}",
    "engine of the old shim": f"{RUNC}runtime_engine = '/x'\n",
    "root of the old shim": f"{RUNC}runtime_root = '/x'\n",
    "cgroup of the old shim": "[SECTION]\nsystemd_cgroup = true\n",
    "deprecated default": f"{HANDLERS}[SECTION.containerd.default_runtime]\n{DEPRECATED}",
    "untrusted": f"[SECTION.containerd.untrusted_workload_runtime]\n{DEPRECATED}",
}


@pytest.mark.real
@pytest.mark.parametrize("generation", ["1.6", "1.7", "2.1"])
@pytest.mark.parametrize("text", REAL_TEXTS.values(), ids=REAL_TEXTS)
def test_double_does_the_same_as_the_real_one(generation: str, text: str, tmp_path: Path) -> None:
    runtime = real_runtimes().find(generation)
    assert runtime is not None
    text = text.replace("SECTION", SECTIONS[3 if generation == "2.1" else 2])
    found = []
    for program in (runtime.executable, None):
        node = DoubleNode(tmp_path, runtime.version, program)
        node.write(text)
        with private_mounts(tmp_path / ("real" if program else "double")) as mounts:
            node.argv = [*mounts.prefix, *node.argv]
            with node.run():
                code = node.wait()
                shown = _decisive(node.shown()) if code is grpc.StatusCode.OK else None
            dumped = node.dump()["plugins"][generation_of(runtime.version).cri]["containerd"]
        found.append((code, shown, dumped["default_runtime_name"], dumped["runtimes"]["runc"]))

    assert found[0] == found[1]


def _decisive(config: dict[str, Any]) -> Any:
    """Give what does not depend on a distribution's choices."""
    containerd = config["containerd"]
    keys = ("runtimeType", "options", "sandboxer", "sandboxMode", "runtimeEngine", "runtimeRoot")
    handlers = containerd["runtimes"].items()
    return (
        {name: [shown.get(key) for key in keys] for name, shown in handlers},
        containerd["defaultRuntimeName"],
        config.get("enableCDI"),
        config.get("cdiSpecDirs"),
    )
