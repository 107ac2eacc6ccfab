"""What the scripted runtimes have in common: the calls that are the same, and acting out faults."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from pathlib import Path
from typing import NoReturn

import grpc

from agent._cri import api_pb2, api_pb2_grpc
from tests.doubles.runtime.script import Pod, Script

PID = 4242  # of every container: nobody looks for its process


class BaseService(api_pb2_grpc.RuntimeServiceServicer, api_pb2_grpc.ImageServiceServicer):
    """Answer as a runtime of that version; `ended` releases the calls that are kept waiting."""

    def __init__(
        self, version: str, script: Callable[[], Script], ended: threading.Event, has_cri: bool
    ) -> None:
        self._version = version
        self._script = script
        self._ended = ended
        self._has_cri = has_cri
        self._calls = 0
        self._lock = threading.Lock()

    def Version(  # noqa: N802 - the interface's name
        self, request: api_pb2.VersionRequest, context: grpc.ServicerContext
    ) -> api_pb2.VersionResponse:
        """Say who answers."""
        script = self.enter(context)
        return api_pb2.VersionResponse(
            version="0.1.0",
            runtime_name=script.runtime_name,
            runtime_version=script.version_name or self._version,
            runtime_api_version="v1",
        )

    def ListPodSandbox(  # noqa: N802 - the interface's name
        self, request: api_pb2.ListPodSandboxRequest, context: grpc.ServicerContext
    ) -> api_pb2.ListPodSandboxResponse:
        """List the pods of the script and those that were run."""
        script = self.enter(context)
        wanted = request.filter
        answer = api_pb2.ListPodSandboxResponse()
        for pod in (*script.pods, *self.more_pods()):
            number = number_of(pod)
            state = api_pb2.SANDBOX_READY if pod.ready else api_pb2.SANDBOX_NOTREADY
            selected = pod.labels.items() >= wanted.label_selector.items()
            if not selected or (wanted.id and wanted.id != number):
                continue
            if wanted.HasField("state") and wanted.state.state != state:
                continue
            answer.items.add(
                id=number,
                metadata=api_pb2.PodSandboxMetadata(
                    name=pod.name, uid=number[:32], namespace=pod.namespace
                ),
                labels=pod.labels,
                state=state,
                created_at=_created(pod),
                runtime_handler=self.listed_handler(pod),
            )
        return answer

    def ListContainers(  # noqa: N802 - the interface's name
        self, request: api_pb2.ListContainersRequest, context: grpc.ServicerContext
    ) -> api_pb2.ListContainersResponse:
        """List the one container of each pod that has one."""
        script = self.enter(context)
        answer = api_pb2.ListContainersResponse()
        for pod in (*script.pods, *self.more_pods()):
            if not pod.bare:
                answer.containers.add(
                    id=container_of(pod),
                    pod_sandbox_id=number_of(pod),
                    metadata=api_pb2.ContainerMetadata(name="main"),
                    state=_state(pod),
                    created_at=_created(pod),
                    annotations=pod.annotations,
                )
        return answer

    def ContainerStatus(  # noqa: N802 - the interface's name
        self, request: api_pb2.ContainerStatusRequest, context: grpc.ServicerContext
    ) -> api_pb2.ContainerStatusResponse:
        """Say what is known of one container, as far as anybody here asks for it."""
        script = self.enter(context)
        pods = {container_of(pod): pod for pod in (*script.pods, *self.more_pods())}
        pod = pods.get(request.container_id)
        if pod is None or pod.bare:
            abort(context, "NOT_FOUND", "an error occurred when try to find container: not found")
        info = {"info": json.dumps(self.container_info(pod))} if request.verbose else None
        return api_pb2.ContainerStatusResponse(info=info)

    def PodSandboxStatus(  # noqa: N802 - the interface's name
        self, request: api_pb2.PodSandboxStatusRequest, context: grpc.ServicerContext
    ) -> api_pb2.PodSandboxStatusResponse:
        """Say what is known of one pod, as far as anybody here asks for it."""
        script = self.enter(context)
        pods = {number_of(pod): pod for pod in (*script.pods, *self.more_pods())}
        pod = pods.get(request.pod_sandbox_id)
        if pod is None:
            abort(context, "NOT_FOUND", "an error occurred when try to find sandbox: not found")
        info = {"info": json.dumps(self.pod_info(pod))} if request.verbose else None
        return api_pb2.PodSandboxStatusResponse(info=info)

    def ImageStatus(  # noqa: N802 - the interface's name
        self, request: api_pb2.ImageStatusRequest, context: grpc.ServicerContext
    ) -> api_pb2.ImageStatusResponse:
        """Say whether an image is there: an empty answer where it is not."""
        script, name = self.enter(context), request.image.image
        image = api_pb2.Image(id="sha256:0") if name in script.images else None
        return api_pb2.ImageStatusResponse(image=image)

    def listed_handler(self, pod: Pod) -> str:
        """The handler of a pod as lists have it."""
        return pod.handler

    def pod_info(self, pod: Pod) -> Mapping[str, object]:
        """What is told of a pod in words of the runtime's own."""
        return {"runtimeSpec": {"annotations": pod.annotations}}

    def container_info(self, pod: Pod) -> Mapping[str, object]:
        """What is told of its container."""
        env = [f"PATH={os.defpath}", *pod.env]
        spec = {"annotations": pod.annotations, "process": {"env": env}}
        return {"sandboxID": number_of(pod), "pid": PID, "runtimeSpec": spec}

    def more_pods(self) -> Iterable[Pod]:
        """Pods that the script does not know."""
        return ()

    def enter(self, context: grpc.ServicerContext) -> Script:
        """Count the call and act out its faults."""
        with self._lock:
            self._calls += 1
            call = self._calls
        script = self._script()
        if script.log_calls:
            with open(script.log_calls, "a", encoding="ascii") as log:
                log.write(f"{sys._getframe(1).f_code.co_name}\n")
        while script.silent and context.is_active() and not self._ended.wait(0.05):
            script = self._script()
        if call <= script.fail_first:
            abort(context, script.fail_code, "server is not initialized yet")
        if script.unimplemented or not self._has_cri:
            abort(context, "UNIMPLEMENTED", "unknown service runtime.v1.RuntimeService")
        return script


def number_of(pod: Pod) -> str:
    """Give the id of a pod."""
    return hashlib.sha256(f"{pod.namespace}/{pod.name}".encode()).hexdigest()


def container_of(pod: Pod) -> str:
    """Give the id of its container."""
    return hashlib.sha256(f"{pod.namespace}/{pod.name}/main".encode()).hexdigest()


def _created(pod: Pod) -> int:
    """Give the time of its creation in nanoseconds."""
    return time.time_ns() - int(pod.age * 1e9) if pod.age else 0


def _state(pod: Pod) -> api_pb2.ContainerState:
    """Give the state of its container."""
    if not pod.started:
        return api_pb2.CONTAINER_CREATED
    return api_pb2.CONTAINER_RUNNING if pod.ready else api_pb2.CONTAINER_EXITED


def abort(context: grpc.ServicerContext, code: str, details: str) -> NoReturn:
    """End the call with this code."""
    context.abort(grpc.StatusCode[code], details)
    raise AssertionError("abort raises")


def conditions(script: Script) -> tuple[api_pb2.RuntimeCondition, ...]:
    """Give the conditions that every runtime has: no network is configured here."""
    return (
        api_pb2.RuntimeCondition(type="RuntimeReady", status=script.runtime_ready),
        api_pb2.RuntimeCondition(
            type="NetworkReady",
            reason="NetworkPluginNotReady",
            message="Network plugin returns error: cni plugin not initialized",
        ),
    )


def start(service: BaseService, address: str) -> grpc.Server:
    """Serve on an address; the server stops when it is told to."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    api_pb2_grpc.add_RuntimeServiceServicer_to_server(service, server)
    api_pb2_grpc.add_ImageServiceServicer_to_server(service, server)
    server.add_insecure_port(address)
    server.start()
    return server


def serve(service: BaseService, socket: Path, ended: threading.Event) -> None:
    """Listen on the socket until `ended` is set, then remove it."""
    socket.parent.mkdir(parents=True, exist_ok=True)
    server = start(service, f"unix:{socket}")
    os.chmod(socket, 0o660)
    ended.wait()
    server.stop(grace=None).wait()
    socket.unlink(missing_ok=True)
