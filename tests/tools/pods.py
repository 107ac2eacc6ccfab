"""Run pods on a private node, as a kubelet would.

    with PodNode(runtime, cdi=True) as node, Pods(node) as pods:
        spec = pods.create(cdi_devices=["vendor.example/gpu=0"]).spec

The messages are compiled when they are first needed and live in a descriptor pool of their own: the
default one has the program's messages, some of which have the same names.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import Message
from grpc_tools import protoc

from tests.conformance.private_node import PrivateNode
from tests.conformance.shapes import Shape
from tests.tools import pause_image
from tests.tools.runtimes import Runtime
from tests.tools.waiting import wait_until

_PROTO = Path(__file__).with_name("cri_pod.proto")
# Strict servers reset a stream whose authority is the escaped path of a socket.
_OPTIONS = (("grpc.default_authority", "localhost"),)


# What runtimes copy into each pod; the smallest systems lack it. The node's /etc takes the writes.
_MAKE_FILES = 'for name in hosts hostname; do [ -e "/etc/$name" ] || : >"/etc/$name"; done'


class PodNode(PrivateNode):
    """A private node, with the default paths inside, whose runtime can run pods on this machine.

    `cdi` is whether the runtime has CDI switched on where it is off by default; `files` is the
    configuration (in data/pods), where it is not the usual one. A node that is left has no process
    any more, in whatever state its runtime is.
    """

    def __init__(self, runtime: Runtime, *, cdi: bool = False, files: str = "") -> None:
        # Of 2.x the newest form; 1.6 does not know CDI and reads what 1.7 does.
        version = 2 if runtime.generation.startswith("1.") else 3
        name = files or (f"v{version}-cdi" if cdi and version == 2 else f"v{version}")
        shape = Shape(f"pods-{name}", {}, explicit=False, files=f"../pods/{name}")
        super().__init__(runtime, shape)

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            done = self.inside(["sh", "-c", _MAKE_FILES])
            assert done.returncode == 0, done.stderr
            tar = self.directory / "run/pause.tar"
            pause_image.write_pause_image(tar)
            self.import_image(tar, pause_image.NAME)
            tar.unlink()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            kill_pods(os.readlink(self._mounts.prefix[1].partition("=")[2]))
        finally:
            super().__exit__(*error)

    @property
    def cdi_directory(self) -> Path:
        """The runtime's /var/run/cdi, as it is seen from here."""
        return self.directory / "run/cdi"

    @property
    def reachable_socket(self) -> Path:
        """The CRI socket, as it is seen from here."""
        return self._reachable_socket()

    def import_image(self, tar: Path, name: str) -> None:
        """Give the runtime the image `name` in `tar`, an OCI or a docker archive.

        Its CRI hears of it a moment later, and until then looks for it in a registry.
        """
        ctr = self.runtime.executable.with_name("ctr")
        words = [str(ctr), "-a", str(self.socket), "-n", "k8s.io", "images", "import", str(tar)]
        result = self.inside(words, timeout=120)
        assert result.returncode == 0, result.stderr
        wait_until(
            lambda: "image" in call(self.reachable_socket, "ImageStatus", image={"image": name}),
            lambda: f"the CRI does not have {name}",
        )


def kill_pods(mount_namespace: str) -> None:
    """Kill each shim with these mounts, after its children: without it they would live on."""
    shims = [p.pid for p in _processes() if p.is_shim and p.namespace() == mount_namespace]
    for shim in shims:
        for pid in [*(p.pid for p in _processes() if p.parent == shim), shim]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    name: str

    @property
    def is_shim(self) -> bool:
        return self.name.startswith("containerd-shim")

    def namespace(self) -> str:
        """Which mounts it sees; empty where it has just ended."""
        try:
            return os.readlink(f"/proc/{self.pid}/ns/mnt")
        except OSError:
            return ""


def _processes() -> Iterator[_Process]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            head, _, tail = path.read_text("utf-8", "replace").rpartition(")")
            pid, _, name = head.partition(" (")
            yield _Process(int(pid), int(tail.split()[1]), name)


@dataclass(frozen=True)
class Mount:
    """A directory of the node in a container; where it is shared, later mounts in it follow."""

    host: Path | str
    container: str
    readonly: bool = False
    shared: bool = False


@dataclass(frozen=True)
class Status:
    """What the runtime says of a container: `state` is CREATED, RUNNING, EXITED or UNKNOWN."""

    state: str
    pid: int
    started_at: int
    exit_code: int
    message: str
    spec: Mapping[str, Any]


class Container:
    """A container in a pod of its own; `spec` is what its OCI runtime gets to see."""

    def __init__(self, pods: Pods, pod: str, sandbox: str, container: str, log: Path) -> None:
        self.pod = pod
        self.sandbox = sandbox
        self.id = container
        self._pods = pods
        self._log = log
        self.spec = self.status().spec

    @property
    def environment(self) -> list[str]:
        """What its process will find, NAME=VALUE, also where a name comes twice."""
        return list(self.spec["process"]["env"])

    @property
    def devices(self) -> list[str]:
        """The paths of the device nodes that it gets beside those that each container has."""
        return [device["path"] for device in self.spec["linux"].get("devices") or ()]

    @property
    def mounts(self) -> list[str]:
        """Where something is mounted, also where something else was before."""
        return [mount["destination"] for mount in self.spec["mounts"]]

    def start(self) -> None:
        """Start its process."""
        self._pods.call("StartContainer", container_id=self.id)

    def stop(self, grace: int = 30) -> None:
        """Send SIGTERM, after `grace` seconds SIGKILL, and wait for the end."""
        request = {"container_id": self.id, "timeout": grace}
        self._pods.call("StopContainer", limit=grace + 10.0, **request)

    def remove(self) -> None:
        """Remove it with its pod, whatever runs in there."""
        self._pods.remove(self.sandbox)

    def status(self) -> Status:
        """What the runtime says now."""
        answer = self._pods.call("ContainerStatus", container_id=self.id, verbose=True)
        status, info = answer["status"], json.loads(answer["info"]["info"])
        return Status(
            state=status.get("state", "CONTAINER_CREATED").removeprefix("CONTAINER_"),
            pid=info.get("pid", 0),
            started_at=int(status.get("started_at", 0)),
            exit_code=status.get("exit_code", 0),
            message=status.get("message", ""),
            spec=info["runtimeSpec"],
        )

    def log(self) -> str:
        """What it has written to stdout and stderr, without what the runtime puts before it."""
        if not self._log.exists():
            return ""
        # Time, stream and whether the line is whole: `2026-11-25T07:00:00Z stderr F text`.
        lines = self._log.read_text("utf-8", "replace").splitlines()
        return "".join(f"{line.split(' ', 3)[3]}\n" for line in lines)

    def wait(self, holds: Callable[[Container], bool]) -> None:
        """Wait until `holds(self)`, asked often; an AssertionError with its log if it never did."""
        wait_until(lambda: holds(self), self.log)


class Pods:
    """The pods that a test runs on `node`, from entering to leaving."""

    def __init__(self, node: PodNode) -> None:
        self.node = node
        self._sandboxes: list[str] = []
        self._logs = node.directory / "run/logs"
        self._numbers = itertools.count()

    def __enter__(self) -> Pods:
        return self

    def __exit__(self, *_: object) -> None:
        for sandbox in list(self._sandboxes):
            # What cannot be removed, perhaps because of what the test found, the node kills.
            with suppress(grpc.RpcError):
                self.remove(sandbox)
        shutil.rmtree(self._logs, ignore_errors=True)  # the next pods have the same names

    def create(
        self,
        image: str = pause_image.NAME,
        *,
        command: Sequence[str] = (),
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        mounts: Sequence[Mount] = (),
        cdi_devices: Sequence[str] = (),
        annotations: Mapping[str, str] | None = None,
        handler: str = "",
        privileged: bool = False,
        readonly_root: bool = False,
        host_pid: bool = False,
        beside: Container | None = None,
    ) -> Container:
        """Run a pod in the node's network and create, but do not start, one container in it;
        `beside` another that was created in the same way, in its pod."""
        number = next(self._numbers)
        name = f"pod-{number}" if beside is None else beside.pod
        logs = self._logs / name
        namespaces = {"network": "NODE", "ipc": "NODE", "pid": "NODE" if host_pid else "CONTAINER"}
        security = {"namespace_options": namespaces, "privileged": privileged}
        pod = {
            "metadata": {"name": name, "uid": name, "namespace": "tests"},
            "log_directory": str(logs),
            "linux": {"security_context": security},
        }
        if beside is None:
            answer = self.call("RunPodSandbox", config=pod, runtime_handler=handler)
            self._sandboxes.append(answer["pod_sandbox_id"])
        sandbox = self._sandboxes[-1] if beside is None else beside.sandbox
        config = {
            "metadata": {"name": f"container-{number}"},
            "image": {"image": image, "user_specified_image": image},
            "command": list(command),
            "args": list(args),
            "envs": [{"key": key, "value": value} for key, value in (env or {}).items()],
            "mounts": [_mount(mount) for mount in mounts],
            "annotations": dict(annotations or {}),
            "log_path": f"log-{number}",
            "linux": {"security_context": security | {"readonly_rootfs": readonly_root}},
            "CDI_devices": [{"name": device} for device in cdi_devices],
        }
        request: dict[str, Any] = {
            "pod_sandbox_id": sandbox,
            "config": config,
            "sandbox_config": pod,
        }
        answer = self.call("CreateContainer", **request)
        log = logs / f"log-{number}"
        return Container(self, name, sandbox, answer["container_id"], log)

    def remove(self, sandbox: str) -> None:
        """Remove a pod with its containers; a grpc.RpcError where the runtime cannot."""
        self.call("StopPodSandbox", pod_sandbox_id=sandbox)
        self.call("RemovePodSandbox", pod_sandbox_id=sandbox)
        self._sandboxes.remove(sandbox)

    def call(self, method: str, limit: float = 30.0, **fields: object) -> dict[str, Any]:
        """Call one method of the interface; a grpc.RpcError where the runtime refuses."""
        return call(self.node.reachable_socket, method, limit, **fields)


def call(socket: Path, method: str, limit: float = 30.0, **fields: object) -> dict[str, Any]:
    """Call one method of the CRI behind a socket; a grpc.RpcError where the runtime refuses."""
    request = json_format.ParseDict(fields, _message(f"{method}Request")())
    service = "ImageService" if method.startswith("Image") else "RuntimeService"
    # A channel of its own for each call: one that lives on is blind after a restart.
    with grpc.insecure_channel(f"unix:{socket}", options=_OPTIONS) as channel:
        invoke = channel.unary_unary(
            f"/runtime.v1.{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=_message(f"{method}Response").FromString,
        )
        answer = invoke(request, timeout=limit)
    found: dict[str, Any] = json_format.MessageToDict(answer, preserving_proto_field_name=True)
    return found


def _mount(mount: Mount) -> dict[str, object]:
    propagation = "PROPAGATION_HOST_TO_CONTAINER" if mount.shared else "PROPAGATION_PRIVATE"
    return {
        "container_path": mount.container,
        "host_path": str(mount.host),
        "readonly": mount.readonly,
        "propagation": propagation,
    }


def _message(name: str) -> type[Message]:
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"runtime.v1.{name}"))


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "descriptors"
        words = [f"-I{_PROTO.parent}", f"--descriptor_set_out={output}", _PROTO.name]
        assert protoc.main(["protoc", *words]) == 0
        files = descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes()).file
    pool = descriptor_pool.DescriptorPool()
    for file in files:
        pool.Add(file)
    return pool
