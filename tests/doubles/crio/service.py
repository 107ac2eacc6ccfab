"""The CRI service of the scripted CRI-O, and the pages that it answers over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc

from agent._cri import api_pb2
from tests.doubles.crio import pods
from tests.doubles.crio.load import RefusedError
from tests.doubles.crio.script import CrioScript
from tests.doubles.crio.state import Daemon
from tests.doubles.crio.status import effective_text, info
from tests.doubles.runtime import base
from tests.doubles.runtime.script import Pod


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

    def pod_calls(self) -> grpc.GenericRpcHandler:
        """Give the calls that run pods, by the table of handlers of the start."""
        daemon, empty = self._daemon, pods.MESSAGES["Nothing"]

        def run(request: Any) -> Any:
            metadata = request.config.metadata
            number = daemon.run(Pod(metadata.name, metadata.namespace, request.runtime_handler))
            return pods.MESSAGES["Pod"](pod_sandbox_id=number)

        def stop(request: Any) -> Any:
            daemon.stop(request.pod_sandbox_id)
            return empty()

        def remove(request: Any) -> Any:
            daemon.remove(request.pod_sandbox_id)
            return empty()

        calls = {"RunPodSandbox": run, "StopPodSandbox": stop, "RemovePodSandbox": remove}
        return pods.handlers({name: self._guarded(call) for name, call in calls.items()})

    def _guarded(self, call: Callable[[Any], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
        def guarded(request: Any, context: grpc.ServicerContext) -> Any:
            self.enter(context)
            try:
                return call(request)
            except RefusedError as error:
                base.abort(context, "UNKNOWN", str(error))

        return guarded

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
