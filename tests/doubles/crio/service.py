"""The CRI service of the scripted CRI-O, and the pages that it answers over HTTP."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc

from agent._cri import api_pb2
from tests.doubles.crio.load import RefusedError
from tests.doubles.crio.script import CrioScript
from tests.doubles.crio.state import Daemon
from tests.doubles.crio.status import effective_text, info
from tests.doubles.runtime import base
from tests.doubles.runtime.script import Pod
from tests.doubles.toolkit import cdi


class Service(base.BaseService):
    """Answer for one daemon; `ended` releases the calls that are kept waiting."""

    def __init__(
        self,
        version: str,
        daemon: Daemon,
        script: Callable[[], CrioScript],
        ended: threading.Event,
    ) -> None:
        super().__init__(version, script, ended, has_cri=True)
        self._daemon = daemon
        self._specs: dict[str, dict[str, Any]] = {}  # of the containers that were created

    def Status(  # noqa: N802 - the interface's name
        self, request: api_pb2.StatusRequest, context: grpc.ServicerContext
    ) -> api_pb2.StatusResponse:
        """Say how the runtime is."""
        script, generation = self.enter(context), self._daemon.generation
        document = script.disguise(self._daemon.shown)
        answer = api_pb2.StatusResponse(
            status=api_pb2.RuntimeStatus(conditions=base.conditions(script)),
            info=info(generation, document) if request.verbose and not script.no_verbose else None,
        )
        if generation.shows_handlers:
            for name in document["runtime"]["runtimes"]:
                answer.runtime_handlers.add(name=name)
                if name == document["runtime"]["default_runtime"]:
                    answer.runtime_handlers.add(name="")
        answer.features.supplemental_groups_policy = generation.number >= (1, 31)
        answer.features.user_namespaces_host_network = generation.number >= (1, 36)
        return answer

    def RunPodSandbox(  # noqa: N802 - the interface's name
        self, request: api_pb2.RunPodSandboxRequest, context: grpc.ServicerContext
    ) -> api_pb2.RunPodSandboxResponse:
        """Run a pod, by the table of handlers of the start."""
        script = self.enter(context)
        assert isinstance(script, CrioScript)
        if request.runtime_handler in script.broken_handlers:
            base.abort(context, "UNKNOWN", "container create failed: executable file not found")
        metadata, labels = request.config.metadata, dict(request.config.labels)
        pod = Pod(metadata.name, metadata.namespace, request.runtime_handler, labels=labels)
        with _refusals(context):
            number = self._daemon.run(pod)
            if script.removes_pods:
                self._daemon.remove(number)
        return api_pb2.RunPodSandboxResponse(pod_sandbox_id=number)

    def StopPodSandbox(  # noqa: N802 - the interface's name
        self, request: api_pb2.StopPodSandboxRequest, context: grpc.ServicerContext
    ) -> api_pb2.StopPodSandboxResponse:
        """Stop a pod."""
        self.enter(context)
        with _refusals(context):
            self._daemon.stop(request.pod_sandbox_id)
        return api_pb2.StopPodSandboxResponse()

    def RemovePodSandbox(  # noqa: N802 - the interface's name
        self, request: api_pb2.RemovePodSandboxRequest, context: grpc.ServicerContext
    ) -> api_pb2.RemovePodSandboxResponse:
        """Remove a pod."""
        self.enter(context)
        with _refusals(context):
            self._daemon.remove(request.pod_sandbox_id)
        return api_pb2.RemovePodSandboxResponse()

    def CreateContainer(  # noqa: N802 - the interface's name
        self, request: api_pb2.CreateContainerRequest, context: grpc.ServicerContext
    ) -> api_pb2.CreateContainerResponse:
        """Make a container with its CDI devices, each once however it is asked for."""
        self.enter(context)
        if request.pod_sandbox_id not in map(base.number_of, self._daemon.pods()):
            base.abort(context, "UNKNOWN", "specified sandbox not found")
        config = request.config
        by_annotation = [
            name
            for key, value in config.annotations.items()
            if key.startswith("cdi.k8s.io/")
            for name in value.split(",")
        ]
        names = dict.fromkeys([*(d.name for d in config.CDI_devices), *by_annotation])
        spec: dict[str, Any] = {"process": {"env": [f"PATH={os.defpath}"]}}
        try:
            cdi.inject(spec, [*names], self._daemon.shown["runtime"].get("cdi_spec_dirs") or ())
        except cdi.Unresolvable as error:
            base.abort(context, "UNKNOWN", f"CDI device injection failed: {error}")
        number = f"{request.pod_sandbox_id[:32]}{len(self._specs):032x}"
        self._specs[number] = spec
        return api_pb2.CreateContainerResponse(container_id=number)

    def ContainerStatus(  # noqa: N802 - the interface's name
        self, request: api_pb2.ContainerStatusRequest, context: grpc.ServicerContext
    ) -> api_pb2.ContainerStatusResponse:
        """Say what is known of a container."""
        if (spec := self._specs.get(request.container_id)) is None:
            return super().ContainerStatus(request, context)
        self.enter(context)
        text = json.dumps({"pid": 0, "runtimeSpec": spec, "privileged": False})
        return api_pb2.ContainerStatusResponse(info={"info": text})

    def listed_handler(self, pod: Pod) -> str:
        """CRI-O leaves it empty, whatever handler the pod has (captured on 1.30 and 1.37)."""
        return ""

    def pod_info(self, pod: Pod) -> Mapping[str, object]:
        """What is told of a pod: its handler as it was asked for, the default not resolved."""
        handler = {"io.kubernetes.cri-o.RuntimeHandler": pod.handler}
        return {"runtimeSpec": {"annotations": {**pod.annotations, **handler}}}

    def container_info(self, pod: Pod) -> Mapping[str, object]:
        """What is told of its container; the pid of one that ended stays."""
        return {**super().container_info(pod), "privileged": False}

    def more_pods(self) -> Iterable[Pod]:
        """Give the pods that were run."""
        return self._daemon.pods()


@contextmanager
def _refusals(context: grpc.ServicerContext) -> Iterator[None]:
    """End the call as the daemon refuses it."""
    try:
        yield
    except RefusedError as error:
        base.abort(context, "UNKNOWN", str(error))


def page(daemon: Daemon, script: Callable[[], CrioScript], path: str) -> tuple[int, str, bytes]:
    """Give the status, the type and the text of a page; 0 where nothing is to be answered."""
    faults = script()
    if faults.silent:
        return 0, "", b""
    if faults.http_status != 200:
        return faults.http_status, "text/plain; charset=utf-8", b"scripted\n"
    document = faults.disguise(daemon.shown)
    if path == "/config":
        return 200, "application/toml", effective_text(daemon.generation, document).encode()
    if path == "/info":
        shown = {
            "storage_driver": document["storage_driver"],
            "storage_root": document["root"],
            "cgroup_driver": document["runtime"]["cgroup_manager"],
            "default_id_mappings": {"uids": [], "gids": []},
        }
        return 200, "application/json", json.dumps(shown, separators=(",", ":")).encode()
    return 404, "text/plain; charset=utf-8", b"404 page not found\n"
