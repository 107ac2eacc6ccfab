"""The scripted CRI-O as a process answers like the real one, and has the faults of its script."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket as sockets
import struct
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent._cri import api_pb2, api_pb2_grpc
from tests.doubles.crio.crio_node import Answer, CrioNode
from tests.doubles.crio.generation import CAPTURE, VERSIONS, captured_status
from tests.tools.waiting import wait_until

NVIDIA = "[crio.runtime.runtimes.nvidia]\nruntime_path = '{}'\nruntime_type = 'oci'\n"
DEFAULT = "[crio.runtime]\ndefault_runtime = '{}'\n"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[CrioNode]:
    with CrioNode(tmp_path) as node:
        yield node


def nvidia(node: CrioNode) -> str:
    return NVIDIA.format(node.toolkit / "nvidia-container-runtime")


def until(node: CrioNode, holds: Callable[[Answer], bool]) -> Answer:
    """Ask until the answer is so."""
    wait_until(lambda: holds(node.ask()), node.ask)
    return node.ask()


def logged(node: CrioNode, text: str) -> None:
    """Wait until the daemon has said so."""
    read = node.supervisor.log.read_text
    wait_until(lambda: text in read(), read)


def test_double_answers_like_the_captured_daemon(tmp_path: Path) -> None:
    """Told the captured daemon's settings, it shows what that showed, over both ways."""
    node = CrioNode(tmp_path)
    captured = (CAPTURE / "http-config.toml").read_text().partition("\n---stderr")[0]
    settings: dict[str, Any] = tomllib.loads(captured)
    renamed = {f"/usr/bin/{name}": str(node.bin / name) for name in ("crun", "runc")}
    renamed |= {"/usr/local/bin/conmon": str(node.bin / "conmon")}
    renamed |= {"/srv/crio/crio.sock": str(node.socket), "/srv/crio/storage": str(tmp_path)}
    text = captured.replace('runtime_path = "/usr/bin/crun"\n', "")
    status = json.dumps(captured_status())
    for old, new in renamed.items():
        text, status, captured = (t.replace(old, new) for t in (text, status, captured))
    node.config.write_text(text)

    with node:
        answer = node.answer()
        code, kind, _ = node.get("/config")

    assert (code, kind) == (200, "application/toml")
    assert answer.config == tomllib.loads(captured)["crio"]
    expected, shown = json.loads(status), json.loads(json.dumps(answer.info))
    for config in (expected, shown):
        for handler in config["crio"]["Runtimes"].values():
            handler["DisallowedAnnotations"] = sorted(handler["DisallowedAnnotations"])
    assert shown == expected
    assert list(shown["crio"]) == list(expected["crio"])
    assert answer.handlers == {"", "crun", "runc"}
    assert settings["crio"]["runtime"]["default_runtime"] == answer.default


@pytest.mark.parametrize("version", VERSIONS)
def test_double_of_every_version_answers(version: str, tmp_path: Path) -> None:
    minor = int(version.split(".")[1])
    with CrioNode(tmp_path, version) as node:
        answer = node.answer()
        with node.channel() as channel:
            stub = api_pb2_grpc.RuntimeServiceStub(channel)
            name = stub.Version(api_pb2.VersionRequest(), timeout=5).runtime_name
            quiet = stub.Status(api_pb2.StatusRequest(), timeout=5)

    names = {"runc"} if minor < 31 else {"crun", "runc"}
    assert (name, answer.version, answer.ready) == ("cri-o", version, True)
    assert set(answer.runtimes) == names
    assert answer.handlers == ({*names, ""} if minor >= 30 else set())
    assert ("crio" in answer.info) is (minor >= 33)
    assert ("cdi_spec_dirs" in answer.config["runtime"]) is (minor >= 24)
    assert not quiet.info


def test_process_looks_like_crio_from_outside(node: CrioNode) -> None:
    process = Path(f"/proc/{node.supervisor.pid}")
    with sockets.socket(sockets.AF_UNIX) as client:
        client.connect(str(node.socket))
        size = struct.calcsize("3i")
        peer = client.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, size)

    assert (process / "comm").read_text() == "crio\n"
    arguments = (process / "cmdline").read_bytes().decode().split("\0")
    assert arguments[1:] == [*node.argv, ""]
    assert struct.unpack("3i", peer)[0] == node.supervisor.pid


def test_one_socket_serves_http_and_grpc(node: CrioNode) -> None:
    with node.channel() as channel:
        stub = api_pb2_grpc.RuntimeServiceStub(channel)
        for _ in range(3):
            assert stub.Version(api_pb2.VersionRequest(), timeout=5).runtime_name == "cri-o"
            code, kind, text = node.get("/info")
            assert (code, kind) == (200, "application/json")
            assert json.loads(text)["storage_root"] == f"{node.directory}/storage"
    assert node.get("/other")[0] == 404
    with sockets.socket(sockets.AF_UNIX) as client:
        client.connect(str(node.socket))
        connection = http.client.HTTPConnection("localhost")
        connection.sock = client
        for _ in range(2):  # the connection lives on
            connection.request("GET", "/config")
            answer = connection.getresponse()
            assert answer.getheader("Transfer-Encoding") == "chunked"
            assert "crio" in tomllib.loads(answer.read().decode())


def test_sigterm_ends_it_and_nothing_starts_it_again(tmp_path: Path) -> None:
    node = CrioNode(tmp_path)
    node.supervisor.delay = None
    with node:
        node.supervisor.send(signal.SIGTERM)
        assert node.supervisor.wait_until(lambda s: not s.running)

        assert "ended with 0\n" in node.supervisor.log.read_text()
        assert not node.socket.exists()
        assert node.supervisor.starts == 1


def test_restart_brings_the_new_handler(node: CrioNode) -> None:
    node.drop_in.write_text(nvidia(node) + DEFAULT.format("nvidia"))
    assert "nvidia" not in node.ask().runtimes

    answer = node.restart()

    assert answer.handlers == {"", "crun", "runc", "nvidia"}
    assert answer.default == "nvidia"
    shown = answer.info["crio"]["Runtimes"]["nvidia"]
    assert shown["RuntimePath"].endswith("/nvidia-container-runtime")
    node.run_pod("a", "nvidia")
    node.run_pod("b")


def test_status_lies_after_sighup(node: CrioNode) -> None:
    with pytest.raises(grpc.RpcError, match="failed to find runtime handler nvidia from runtime"):
        node.run_pod("a", "nvidia")
    node.drop_in.write_text(nvidia(node) + DEFAULT.format("nvidia"))
    node.supervisor.send(signal.SIGHUP)

    answer = until(node, lambda answer: answer.default == "nvidia")

    assert answer.handlers == {"", "crun", "runc", "nvidia"}
    assert answer.info["crio"]["DefaultRuntime"] == "nvidia"
    with pytest.raises(grpc.RpcError) as caught:
        node.run_pod("a", "nvidia")
    details = caught.value.details() or ""
    assert re.fullmatch(
        r"failed to find runtime handler nvidia from runtime list "
        r"map\[crun:0x[0-9a-f]+ runc:0x[0-9a-f]+\]",
        details,
    )
    node.run_pod("b")
    assert node.supervisor.starts == 1
    node.restart()
    node.run_pod("a", "nvidia")


def test_broken_reload_leaves_it_running(node: CrioNode) -> None:
    before = node.ask()
    node.drop_in.write_text("x = = 1")
    node.supervisor.send(signal.SIGHUP)
    logged(node, "Unable to reload configuration: update config from path: walk path: ")
    assert node.ask() == before

    node.drop_in.write_text(DEFAULT.format("nope"))
    node.supervisor.send(signal.SIGHUP)
    answer = until(node, lambda answer: answer.default == "nope")

    # Half of it is taken over: no handler is the default, and the paths are not looked up.
    assert answer.handlers == {"crun", "runc"}
    assert answer.runtimes["crun"]["runtime_path"] == ""
    node.run_pod("a")


def test_cdi_directories_are_reloaded(node: CrioNode) -> None:
    node.drop_in.write_text("[crio.runtime]\ncdi_spec_dirs = ['/other']\n")
    node.supervisor.send(signal.SIGHUP)

    until(node, lambda answer: answer.info["crio"]["CDISpecDirs"] == ["/other"])


@pytest.mark.parametrize("name", ["99-x.conf", ".x.tmp", "x.bak", "sub/x"])
def test_broken_file_of_any_name_ends_it_again_and_again(name: str, node: CrioNode) -> None:
    (node.drop_ins / name).parent.mkdir(exist_ok=True)
    (node.drop_ins / name).write_text("x = = 1")
    node.supervisor.send(signal.SIGTERM)

    assert node.supervisor.wait_until(lambda s: s.starts >= 3)
    log = node.supervisor.log.read_text()
    assert "ended with 1\n" in log
    assert f"unable to decode configuration {node.drop_ins / name}: toml: " in log


def test_missing_path_ends_it_only_for_the_default(node: CrioNode) -> None:
    node.drop_in.write_text(NVIDIA.format("/nowhere/nvidia"))
    assert node.restart().handlers == {"", "crun", "runc"}
    assert "is being ignored due to: invalid runtime_path" in node.supervisor.log.read_text()

    node.drop_in.write_text(NVIDIA.format("/nowhere/nvidia") + DEFAULT.format("nvidia"))
    starts = node.supervisor.starts
    node.supervisor.send(signal.SIGTERM)
    assert node.supervisor.wait_until(lambda s: s.starts >= starts + 3)


def test_pods_outlive_the_daemon_and_need_their_handler(node: CrioNode) -> None:
    node.drop_in.write_text(nvidia(node))
    node.restart()
    number, dead = node.run_pod("a", "nvidia"), node.run_pod("b", "nvidia")
    node.stop_pod(dead)
    node.drop_in.unlink()
    node.restart()

    with node.channel() as channel:
        stub = api_pb2_grpc.RuntimeServiceStub(channel)
        found = stub.ListPodSandbox(api_pb2.ListPodSandboxRequest(), timeout=5).items
    assert {(p.id, p.metadata.name, p.runtime_handler, p.state) for p in found} == {
        (number, "a", "", api_pb2.SANDBOX_READY),
        (dead, "b", "", api_pb2.SANDBOX_NOTREADY),
    }
    for pod in (number, dead):  # both observed on 1.37: the container cannot be deleted
        with pytest.raises(grpc.RpcError, match="failed to find runtime handler nvidia"):
            node.remove_pod(pod)
    node.stop_pod(dead)
    node.drop_in.write_text(nvidia(node))
    node.restart()
    node.remove_pod(number)
    node.remove_pod(dead)


def test_killed_daemon_leaves_a_socket_that_the_next_one_takes(node: CrioNode) -> None:
    node.supervisor.send(signal.SIGKILL)
    assert node.supervisor.wait_until(lambda s: s.starts == 2)
    node.answer()

    second = subprocess.run(
        node.argv, env=node.environment(), capture_output=True, text=True, check=False
    )
    assert second.returncode == 1
    assert "already existing connection on" in second.stderr


def test_scripted_faults_happen(node: CrioNode) -> None:
    node.drop_in.write_text(nvidia(node))
    node.restart()
    node.script(drop_handler=True, default="runc")
    answer = node.ask()
    assert answer.handlers == {"", "crun", "runc"}
    assert answer.info["crio"]["DefaultRuntime"] == "runc"
    node.script(http_status=500, no_verbose=True, runtime_ready=False)
    assert node.get("/config")[0] == 500
    node.script(pods=[{"name": "p", "handler": "nvidia"}], silent=True)
    with pytest.raises(TimeoutError):
        node.get("/config", timeout=0.3)
    node.script(die_when={"handler": "nvidia"})
    node.supervisor.send(signal.SIGTERM)
    assert node.supervisor.wait_until(lambda s: s.starts >= 4)
    assert "ended with 2\n" in node.supervisor.log.read_text()
    node.drop_in.unlink()
    assert "nvidia" not in node.answer().runtimes
    node.script(enable_cdi=True)
    node.supervisor.send(signal.SIGTERM)
    logged(node, "CRI-O has no enable_cdi")


def test_config_prints_what_is_on_disk(node: CrioNode) -> None:
    node.drop_in.write_text(nvidia(node) + DEFAULT.format("nvidia"))

    done = node.crio("config")

    assert done.returncode == 0
    runtime = tomllib.loads(done.stdout)["crio"]["runtime"]
    assert runtime["default_runtime"] == "nvidia"
    assert set(runtime["runtimes"]) >= {"nvidia", "runc"}
    assert '# log_level = "info"' in done.stdout
    assert "nvidia" not in node.ask().runtimes
    # Paths are the daemon's matter.
    node.drop_in.write_text(NVIDIA.format("/nowhere") + DEFAULT.format("nvidia"))
    assert node.crio("config").returncode == 0
    for text, reason in (("x = = 1", str(node.drop_in)), (DEFAULT.format("nope"), "nope")):
        node.drop_in.write_text(text)
        done = node.crio("config")
        assert (done.returncode, done.stdout) == (1, "")
        assert "level=fatal" in done.stderr
        assert reason in done.stderr


def test_other_commands_answer_like_crio(node: CrioNode) -> None:
    assert node.crio("--version").stdout.startswith("crio version 1.37.0\n")
    assert "Version:        1.37.0\n" in node.crio("version").stdout
    default = node.crio("config", "--default")
    handlers = tomllib.loads(default.stdout)["crio"]["runtime"]["runtimes"]
    # What the template has behind its handlers lands in the last one, whoever makes a file of it.
    assert handlers["crun"]["hostnetwork_disable_selinux"] is True
    assert node.crio("nonsense").returncode == 2
    node.config.unlink()
    done = node.crio("config")
    assert done.returncode == 1
    assert "update config from file: open " in done.stderr


def test_systemctl_of_the_node_restarts_the_daemon(node: CrioNode) -> None:
    def systemctl(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(node.host_bin / "systemctl"), *words],
            env=node.agent_environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    before = systemctl("show", "crio.service").stdout
    assert systemctl("restart", "crio.service").returncode == 0
    after = systemctl("show", "crio.service").stdout

    assert node.supervisor.starts == 2
    assert "ActiveState=active" in after
    assert before != after
    assert node.systemctl_log.read_text().splitlines()[1] == "restart crio.service"
    assert systemctl("reload", "crio.service").returncode == 1
