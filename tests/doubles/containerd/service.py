"""The CRI service of the scripted containerd: what it answers from its configuration."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from agent._cri import api_pb2
from tests.doubles.containerd.generation import Generation, Table
from tests.doubles.containerd.status import info
from tests.doubles.runtime import base
from tests.doubles.runtime.script import Pod, Script


@dataclass(frozen=True)
class Runtime:
    """What the service answers from: `config` is None where the CRI plugin did not load."""

    generation: Generation
    version: str
    config: Table | None
    script: Callable[[], Script]


class Service(base.BaseService):
    """Answer for one runtime; `ended` releases the calls that are kept waiting."""

    def __init__(self, runtime: Runtime, ended: threading.Event) -> None:
        super().__init__(runtime.version, runtime.script, ended, runtime.config is not None)
        self._runtime = runtime

    def Status(  # noqa: N802 - the interface's name
        self, request: api_pb2.StatusRequest, context: grpc.ServicerContext
    ) -> api_pb2.StatusResponse:
        """Say how the runtime is."""
        script = self.enter(context)
        generation, config = self._runtime.generation, script.disguise(self._runtime.config or {})
        answer = api_pb2.StatusResponse(
            status=api_pb2.RuntimeStatus(conditions=base.conditions(script)),
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

    def pod_info(self, pod: Pod) -> Mapping[str, object]:
        """What is told of a pod (captured on 1.6 to 2.3)."""
        info = {
            "pid": base.PID if pod.ready else 0,
            "processStatus": "running" if pod.ready else "deleted",
            **self._run_by(pod),
            "config": {"annotations": pod.annotations},
            "runtimeSpec": {"annotations": {}},
        }
        if self._runtime.generation.since < (2, 0):
            return {**info, "runtimeHandler": pod.handler}
        metadata = {"ID": base.number_of(pod), "RuntimeHandler": pod.handler}
        return {**info, "sandboxMetadata": {"Version": "v1", "Metadata": metadata}}

    def container_info(self, pod: Pod) -> Mapping[str, object]:
        """What is told of its container (captured on the same)."""
        info = {**super().container_info(pod), **self._run_by(pod)}
        return info if pod.ready else {**info, "pid": 0}

    def _run_by(self, pod: Pod) -> Mapping[str, object]:
        """The program that was its handler's when it was made."""
        options = {"binary_name": pod.binary} if pod.binary else None
        return {"runtimeType": "io.containerd.runc.v2", "runtimeOptions": options}


def serve(runtime: Runtime, socket: Path, ended: threading.Event) -> None:
    """Listen on the socket until `ended` is set, then remove it."""
    base.serve(Service(runtime, ended), socket, ended)
