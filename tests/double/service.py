"""The CRI service of the scripted runtime: answers on a Unix socket until it is told to stop."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import grpc

from agent._cri import api_pb2, api_pb2_grpc
from tests.double.generation import Generation, Table
from tests.double.script import Script
from tests.double.status import info


@dataclass(frozen=True)
class Runtime:
    """What the service answers from: `config` is None where the CRI plugin did not load."""

    generation: Generation
    version: str
    config: Table | None
    script: Callable[[], Script]


class Service(api_pb2_grpc.RuntimeServiceServicer):
    """Answer for one runtime; `ended` releases the calls that are kept waiting."""

    def __init__(self, runtime: Runtime, ended: threading.Event) -> None:
        self._runtime = runtime
        self._ended = ended
        self._calls = 0
        self._lock = threading.Lock()

    def Version(  # noqa: N802 - the interface's name
        self, request: api_pb2.VersionRequest, context: grpc.ServicerContext
    ) -> api_pb2.VersionResponse:
        """Say who answers."""
        script, _ = self._enter(context)
        return api_pb2.VersionResponse(
            version="0.1.0",
            runtime_name=script.runtime_name,
            runtime_version=script.version_name or self._runtime.version,
            runtime_api_version="v1",
        )

    def Status(  # noqa: N802 - the interface's name
        self, request: api_pb2.StatusRequest, context: grpc.ServicerContext
    ) -> api_pb2.StatusResponse:
        """Say how the runtime is."""
        script, config = self._enter(context)
        generation, config = self._runtime.generation, script.disguise(config)
        ready = api_pb2.RuntimeCondition(type="RuntimeReady", status=script.runtime_ready)
        network = api_pb2.RuntimeCondition(
            type="NetworkReady",
            reason="NetworkPluginNotReady",
            message="Network plugin returns error: cni plugin not initialized",
        )
        answer = api_pb2.StatusResponse(
            status=api_pb2.RuntimeStatus(conditions=[ready, network]),
            info=info(config, generation.golang)
            if request.verbose and not script.no_verbose
            else None,
        )
        if generation.since >= (1, 7):
            condition = "ContainerdHasNoDeprecationWarnings"
            answer.status.conditions.add(type=condition, status=True)
        if generation.since >= (2, 0):
            for name in ("", *config["containerd"]["runtimes"]):
                answer.runtime_handlers.add(name=name)
            answer.features.supplemental_groups_policy = True
            answer.features.user_namespaces_host_network = generation.since >= (2, 3)
        return answer

    def ListPodSandbox(  # noqa: N802 - the interface's name
        self, request: api_pb2.ListPodSandboxRequest, context: grpc.ServicerContext
    ) -> api_pb2.ListPodSandboxResponse:
        """List the pods of the script; they have no labels."""
        script, _ = self._enter(context)
        wanted = request.filter
        answer = api_pb2.ListPodSandboxResponse()
        for pod in script.pods:
            number = hashlib.sha256(f"{pod.namespace}/{pod.name}".encode()).hexdigest()
            state = api_pb2.SANDBOX_READY if pod.ready else api_pb2.SANDBOX_NOTREADY
            if wanted.label_selector or (wanted.id and wanted.id != number):
                continue
            if wanted.HasField("state") and wanted.state.state != state:
                continue
            answer.items.add(
                id=number,
                metadata=api_pb2.PodSandboxMetadata(
                    name=pod.name, uid=number[:32], namespace=pod.namespace
                ),
                state=state,
                runtime_handler=pod.handler,
            )
        return answer

    def _enter(self, context: grpc.ServicerContext) -> tuple[Script, Table]:
        """Count the call and act out its faults; gives the script and the shown configuration."""
        with self._lock:
            self._calls += 1
            call = self._calls
        script = self._runtime.script()
        while script.silent and context.is_active() and not self._ended.wait(0.05):
            script = self._runtime.script()
        if call <= script.fail_first:
            _abort(context, script.fail_code, "server is not initialized yet")
        if script.unimplemented or self._runtime.config is None:
            _abort(context, "UNIMPLEMENTED", "unknown service runtime.v1.RuntimeService")
        return script, self._runtime.config


def _abort(context: grpc.ServicerContext, code: str, details: str) -> NoReturn:
    context.abort(grpc.StatusCode[code], details)
    raise AssertionError("abort raises")


def serve(runtime: Runtime, socket: Path, ended: threading.Event) -> None:
    """Listen on the socket until `ended` is set, then remove it."""
    socket.parent.mkdir(parents=True, exist_ok=True)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    api_pb2_grpc.add_RuntimeServiceServicer_to_server(Service(runtime, ended), server)
    server.add_insecure_port(f"unix:{socket}")
    os.chmod(socket, 0o660)
    server.start()
    ended.wait()
    server.stop(grace=None).wait()
    socket.unlink(missing_ok=True)
