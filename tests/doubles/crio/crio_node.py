"""A private node with a scripted CRI-O, for black box tests of the command line.

    with CrioNode(tmp_path) as node:
        node.agent("apply")
        node.answer()

Every path of the runtime and of the program under test is below `tmp_path`. `crio.conf` names all
of the daemon's private places; its handlers are `crun` and `runc`, found in a private PATH.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket as sockets
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import grpc
import pytest

from agent._cri import api_pb2, api_pb2_grpc
from tests.conformance import statusfile
from tests.conformance.program import AgentNode
from tests.conformance.shapes import BINARIES, HOOK
from tests.doubles.crio.generation import generation_of
from tests.doubles.runtime.install import make_program, start_program
from tests.doubles.runtime.supervisor import Supervisor
from tests.tools import forked

NOTHING: Mapping[str, str] = MappingProxyType({})
_OPTIONS = (("grpc.default_authority", "localhost"),)
_BUSES = ("/run/dbus/system_bus_socket", "/run/systemd/private")
_CALL = "from tests.doubles.crio.command import crio\n\nsys.exit(crio({version!r}, sys.argv[1:]))"


def _hide_systemd() -> list[str]:
    """What keeps the program under test from the machine's own systemd, where there is one."""
    if not any(os.path.exists(path) for path in _BUSES):
        return []
    if os.geteuid() != 0:
        pytest.skip("this machine's systemd could be reached: run tests/run as root")
    hidden = 'mount -t tmpfs tmpfs /run && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", hidden, "sh"]


@dataclass(frozen=True)
class Answer:
    """What the daemon answers: Version, Status(verbose) and `GET /config`.

    `handlers` and `info` are empty in versions that do not have them; `config` is the effective
    configuration, without the outermost table.
    """

    version: str
    ready: bool
    handlers: frozenset[str]
    info: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def runtimes(self) -> Mapping[str, Mapping[str, Any]]:
        """The handlers that are shown, by name."""
        runtimes: Mapping[str, Mapping[str, Any]] = self.config["runtime"]["runtimes"]
        return runtimes

    @property
    def default(self) -> str:
        """The name of the default runtime."""
        return str(self.config["runtime"]["default_runtime"])


class CrioNode(AgentNode):
    """A node on which a scripted CRI-O of that version runs, from entering to leaving.

    The main file is `etc/crio/crio.conf`, the drop-ins are in `etc/crio/crio.conf.d`, where
    `drop_in` is to be written. `text` is what the main file has besides the private places.
    """

    def __init__(
        self, directory: Path, version: str = "1.37.0", text: str = "", *,
        flags: Sequence[str] | None = None, variables: Mapping[str, str] = NOTHING,
    ) -> None:  # fmt: skip
        """`flags` are those of the daemon, where they are not to name the two places; `variables`
        are more of its environment. In both `@ETC@` stands for the directory of the files."""
        self.directory = directory
        self.version = version
        self.etc = directory / "etc/crio"
        self.config = self.etc / "crio.conf"
        self.drop_ins = self.etc / "crio.conf.d"
        self.drop_in = self.drop_ins / "99-nvidia.conf"
        self.hooks = directory / "hooks.d"
        self.cdi = directory / "cdi"
        self.bin = directory / "usr-bin"
        self.socket = directory / "crio.sock"
        self.toolkit = directory / "nvidia/toolkit"
        self.validations = directory / "validations"
        self.state = directory / "agent-state"
        for path in (self.drop_ins, self.hooks, self.cdi, self.bin, self.toolkit, self.validations):
            path.mkdir(parents=True)
        for name in ("crun", "runc", "conmon"):
            (self.bin / name).write_text("#!/bin/sh\nexit 0\n", encoding="ascii")
            (self.bin / name).chmod(0o755)
        for name in (*BINARIES.values(), HOOK):
            (self.toolkit / name).touch(0o755)
        self.host_bin = directory / "host-bin"
        self.host_bin.mkdir()
        self.systemctl_log = directory / "systemctl.log"
        make_program(
            self.host_bin / "systemctl", sys.executable, self._systemctl(), server=forked.address()
        )
        call = _CALL.format(version=version)
        self.program = make_program(
            directory / "bin/crio", sys.executable, call, server=forked.address()
        )
        places = ["-c", str(self.config), "-d", str(self.drop_ins)]
        given = (
            places if flags is None else [word.replace("@ETC@", str(self.etc)) for word in flags]
        )
        self.argv = [str(self.program), *given]
        self.variables = {k: v.replace("@ETC@", str(self.etc)) for k, v in variables.items()}
        self.write(text)
        self.supervisor = self.run()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(self.supervisor)
            self.answer()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, text: str = "") -> None:
        """Write the main file: this, and the private places of a daemon."""
        places: dict[str, dict[str, Any]] = {
            "crio": {
                "root": f"{self.directory}/storage",
                "runroot": f"{self.directory}/runroot",
                "log_dir": f"{self.directory}/log-pods",
                "version_file": f"{self.directory}/version",
                "clean_shutdown_file": f"{self.directory}/clean.shutdown",
            },
            "crio.api": {"listen": str(self.socket)},
            "crio.image": {"pause_image": "localhost/pause:1"},
            "crio.runtime": {
                "conmon": str(self.bin / "conmon"),
                "hooks_dir": [str(self.hooks)],
                "namespaces_dir": f"{self.directory}/ns",
                "container_exits_dir": f"{self.directory}/exits",
                "container_attach_socket_dir": f"{self.directory}/attach",
            },
        }
        if generation_of(self.version).has_cdi:
            places["crio.runtime"]["cdi_spec_dirs"] = [str(self.cdi)]
        tables = [
            f"[{name}]\n"
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
            for name, table in places.items()
        ]
        head = "\n".join(tables)
        self.config.write_text(f"{head}\n[crio.runtime.runtimes.runc]\n{text}", encoding="utf-8")

    def script(self, **faults: Any) -> None:
        """Tell the runtime how to misbehave from now on (see `script.CrioScript`)."""
        script = self.program.with_name("double.json")
        script.with_suffix(".new").write_text(json.dumps(faults))
        script.with_suffix(".new").replace(script)  # it may be read at any moment

    def _systemctl(self) -> str:
        words = f"{str(self.socket)!r}, {str(self.systemctl_log)!r}, sys.argv[1:]"
        return (
            f"from tests.doubles.systemd.systemctl import systemctl\n\nsys.exit(systemctl({words}))"
        )

    def environment(self) -> dict[str, str]:
        """All that the runtime gets: its handlers are found in the private directory first."""
        return {"PATH": f"{self.bin}:{os.defpath}", **self.variables}

    def run(self, delay: float | None = 0.05) -> Supervisor:
        """Give the supervisor of the daemon, to be entered."""
        return Supervisor(self.argv, self.environment(), self.directory, delay, start_program)

    def crio(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the daemon's own executable, as in `crio -c ... -d ... config`."""
        return subprocess.run(
            [*self.argv, *words],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def own_options(self) -> Mapping[str, object]:
        """Options that every command is told on this kind of node, by name."""
        return {
            "runtime": "crio",
            "config": self.config,
            "drop-in-config": self.drop_in,
            "restart-mode": "systemd",
        }

    def agent_prefix(self) -> list[str]:
        """What is put before it: it restarts the runtime by a `systemctl` of the node's own."""
        return _hide_systemd()

    def agent_environment(self) -> dict[str, str]:
        """All that the program under test gets."""
        return {**super().agent_environment(), "PATH": f"{self.host_bin}:{os.defpath}"}

    def channel(self) -> grpc.Channel:
        """Give a fresh channel, to be entered."""
        return grpc.insecure_channel(f"unix:{self.socket}", options=_OPTIONS)

    def get(self, path: str, timeout: float = 5.0) -> tuple[int, str, bytes]:
        """Ask over HTTP on the same socket: the status, the type and the text."""
        with sockets.socket(sockets.AF_UNIX) as client:
            client.settimeout(timeout)
            client.connect(str(self.socket))
            connection = http.client.HTTPConnection("localhost")
            connection.sock = client
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.getheader("Content-Type", ""), answer.read()

    def ask(self) -> Answer:
        """What the daemon answers now; a grpc.RpcError or an OSError where it does not."""
        with self.channel() as channel:
            stub = api_pb2_grpc.RuntimeServiceStub(channel)
            version = stub.Version(api_pb2.VersionRequest(), timeout=5)
            status = stub.Status(api_pb2.StatusRequest(verbose=True), timeout=5)
        conditions = {c.type: c.status for c in status.status.conditions}
        return Answer(
            version=version.runtime_version,
            ready=conditions.get("RuntimeReady", False),
            handlers=frozenset(handler.name for handler in status.runtime_handlers),
            info=json.loads(status.info["config"]) if "config" in status.info else {},
            config=tomllib.loads(self.get("/config")[2].decode())["crio"],
        )

    def answer(self, timeout: float = 10.0) -> Answer:
        """What the daemon answers once it does."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self.ask()
            except (grpc.RpcError, OSError) as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.socket}: {error}") from error
            time.sleep(0.05)

    def settled(self) -> Answer:
        """The answer of a daemon that may just have been told to end."""
        time.sleep(0.2)
        return self.answer()

    def restart(self) -> Answer:
        """Restart the daemon, as somebody else would."""
        starts = self.supervisor.starts
        self.supervisor.send(signal.SIGTERM)
        assert self.supervisor.wait_until(lambda s: s.starts > starts)
        return self.answer()

    def run_pod(
        self, name: str, handler: str = "", *, namespace: str = "default",
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> str:  # fmt: skip
        """Run a pod and give its id; a grpc.RpcError where the daemon has no such handler."""
        metadata = api_pb2.PodSandboxMetadata(name=name, namespace=namespace)
        config = api_pb2.PodSandboxConfig(metadata=metadata, labels=labels)
        request = api_pb2.RunPodSandboxRequest(config=config, runtime_handler=handler)
        with self.channel() as channel:
            service = api_pb2_grpc.RuntimeServiceStub(channel)
            return str(service.RunPodSandbox(request, timeout=5).pod_sandbox_id)

    def stop_pod(self, number: str) -> None:
        """Stop a pod; a grpc.RpcError where its handler is gone."""
        request = api_pb2.StopPodSandboxRequest(pod_sandbox_id=number)
        with self.channel() as channel:
            api_pb2_grpc.RuntimeServiceStub(channel).StopPodSandbox(request, timeout=5)

    def remove_pod(self, number: str) -> None:
        """Stop and remove a pod; a grpc.RpcError where its handler is gone."""
        request = api_pb2.RemovePodSandboxRequest(pod_sandbox_id=number)
        with self.channel() as channel:
            api_pb2_grpc.RuntimeServiceStub(channel).RemovePodSandbox(request, timeout=5)

    def ready(self) -> bytes | None:
        """The bytes of `toolkit-ready`, None where it is not there."""
        ready = self.validations / statusfile.READY
        return ready.read_bytes() if ready.exists() else None
