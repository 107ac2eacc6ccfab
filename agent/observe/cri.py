"""What the runtime says of itself through the CRI.

Invariant: the only module that imports grpc, and each question (those about pods together) opens
and closes a channel of its own: a channel that has seen a restart stays blind for more than a
second.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from agent.data import dataclass
from agent.errors import Unreachable
from agent.observe.process import reachable

if TYPE_CHECKING:
    from agent._cri.api_pb2_grpc import RuntimeServiceStub

_LIMIT = 16 << 20  # bytes of one answer, as the kubelet's; the default of 4 MiB is too small
_Answer = TypeVar("_Answer")


class _NotFound(Unreachable):
    """What was asked for is there no more."""


class Unimplemented(Unreachable):
    """The socket answers gRPC, but not the CRI: its plugin is disabled or failed to load."""

    code = "CRI_UNIMPLEMENTED"


@dataclass(frozen=True, slots=True)
class Answer:
    """Version and Status of one moment. `config` is the parsed `info["config"]`, None where the
    runtime did not send it; `handlers` is empty where the runtime does not list them (1.x).
    `dump` is CRI-O's effective configuration, where it was asked for."""

    name: str
    version: str
    ready: bool
    config: Mapping[str, Any] | None
    handlers: tuple[str, ...]
    dump: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A pod that the runtime knows. `handler` is the handler that it was created with as the list
    says it: "" for the default, and for every pod of CRI-O; `created` are seconds since the epoch,
    0 where the list does not say."""

    id: str
    name: str
    namespace: str
    handler: str
    ready: bool
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class Container:
    """A container that the runtime knows, in the pod with the id `sandbox`. `attempt` counts the
    containers of this name that the pod had before."""

    id: str
    sandbox: str
    name: str
    attempt: int
    annotations: Mapping[str, str]


def ask(path: str, name: str, timeout: float = 10.0) -> Answer:
    """Version and verbose Status. Raises Unreachable, or Unimplemented; `name` is for messages."""
    from agent._cri import api_pb2

    with _stub(path) as stub:
        version = _call(name, lambda: stub.Version(api_pb2.VersionRequest(), timeout=timeout))
        status = _call(
            name, lambda: stub.Status(api_pb2.StatusRequest(verbose=True), timeout=timeout)
        )
    conditions = {item.type: item.status for item in status.status.conditions}
    return Answer(
        name=version.runtime_name,
        version=version.runtime_version,
        ready=conditions.get("RuntimeReady", False),
        config=_json(dict(status.info).get("config")),
        handlers=tuple(sorted(handler.name for handler in status.runtime_handlers)),
    )


class PodQuestions:
    """Questions about pods, on one channel and all together within one time."""

    def __init__(self, stub: RuntimeServiceStub, name: str, timeout: float) -> None:
        self._stub = stub
        self._name = name
        self._end = time.monotonic() + timeout

    def sandboxes(self) -> tuple[Sandbox, ...]:
        """All pods that the runtime knows. Raises Unreachable."""
        from agent._cri import api_pb2

        answer = self._ask(self._stub.ListPodSandbox, api_pb2.ListPodSandboxRequest())
        return tuple(
            Sandbox(
                id=item.id,
                name=item.metadata.name,
                namespace=item.metadata.namespace,
                handler=item.runtime_handler,
                ready=item.state == api_pb2.SANDBOX_READY,
                created=item.created_at / 1e9,
            )
            for item in answer.items
        )

    def containers(self) -> tuple[Container, ...]:
        """All containers that the runtime knows, in whatever state. Raises Unreachable."""
        from agent._cri import api_pb2

        answer = self._ask(self._stub.ListContainers, api_pb2.ListContainersRequest())
        return tuple(
            Container(
                id=item.id,
                sandbox=item.pod_sandbox_id,
                name=item.metadata.name,
                attempt=item.metadata.attempt,
                annotations=dict(item.annotations),
            )
            for item in answer.containers
        )

    def sandbox_info(self, sandbox: str) -> Mapping[str, Any]:
        """What only this runtime knows of a pod; {} where there is no such pod any more, and where
        the answer is not JSON. Raises Unreachable."""
        from agent._cri import api_pb2

        request = api_pb2.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True)
        return self._info(self._stub.PodSandboxStatus, request)

    def container_info(self, container: str) -> Mapping[str, Any]:
        """The same of a container."""
        from agent._cri import api_pb2

        request = api_pb2.ContainerStatusRequest(container_id=container, verbose=True)
        return self._info(self._stub.ContainerStatus, request)

    def _info(self, method: Callable[..., Any], request: Any) -> Mapping[str, Any]:
        try:
            answer = self._ask(method, request)
        except _NotFound:
            return {}
        return _json(dict(answer.info).get("info")) or {}

    def _ask(self, method: Callable[..., Any], request: Any) -> Any:
        left = self._end - time.monotonic()
        if left <= 0:
            raise Unreachable(f"cannot reach {self._name}: no answer in time; is the runtime up?")
        return _call(self._name, lambda: method(request, timeout=left))


@contextmanager
def pod_questions(path: str, name: str, timeout: float = 10.0) -> Iterator[PodQuestions]:
    """Questions about pods, `timeout` seconds for all of them. `name` is for messages."""
    with _stub(path) as stub:
        yield PodQuestions(stub, name, timeout)


@contextmanager
def _stub(path: str) -> Iterator[RuntimeServiceStub]:
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    import grpc

    from agent._cri.api_pb2_grpc import RuntimeServiceStub

    options = (
        # Without it the socket's path becomes the :authority, which strict servers reset.
        ("grpc.default_authority", "localhost"),
        ("grpc.max_receive_message_length", _LIMIT),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    )
    with (
        reachable(path) as short,
        grpc.insecure_channel(f"unix:{short}", options=options) as channel,
    ):
        yield RuntimeServiceStub(channel)


def _call(name: str, call: Callable[[], _Answer]) -> _Answer:
    import grpc

    try:
        return call()
    except grpc.RpcError as error:
        from agent.masking import masked  # needed only where something failed

        # A runtime repeats in it what its configuration says.
        code, details = error.code(), masked(error.details() or "", (name,))
        if code is grpc.StatusCode.UNIMPLEMENTED:
            raise Unimplemented(
                f"cannot use {name}: it does not serve CRI v1 ({details}); look in the runtime's "
                "log for why its CRI plugin did not load"
            ) from error
        if code is grpc.StatusCode.NOT_FOUND:
            raise _NotFound(f"cannot find it behind {name}: {details}") from error
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            details = "no answer in time"
        raise Unreachable(
            f"cannot reach {name}: {details or code.name}; is the runtime up?"
        ) from error


def _json(text: str | None) -> Mapping[str, Any] | None:
    try:
        found = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
