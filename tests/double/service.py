"""The CRI service of the scripted containerd: what it answers from its configuration."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from agent._cri import api_pb2
from tests.double import base
from tests.double.generation import Generation, Table
from tests.double.script import Pod, Script
from tests.double.status import info


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
        """What is told of a pod (observed on 1.6 to 2.1)."""
        return {
            "runtimeType": "io.containerd.runc.v2",
            "runtimeOptions": {"binary_name": pod.binary} if pod.binary else {},
            "config": {"annotations": pod.annotations},
            "runtimeSpec": {"annotations": pod.annotations},
        }


def serve(runtime: Runtime, socket: Path, ended: threading.Event) -> None:
    """Listen on the socket until `ended` is set, then remove it."""
    base.serve(Service(runtime, ended), socket, ended)
