"""What the runtime says of itself through the CRI.

Invariant: the only module that imports grpc, and each question (those about pods together) opens
and closes a channel of its own: a channel that has seen a restart stays blind for more than a
second. An answer is counted before it is parsed, because a message of a few bytes takes a hundred
in memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from agent.cri import protobuf
from agent.cri.process import short_socket_path
from agent.errors import Unreachable
from agent.host import budget
from agent.host.budget import Budget

if TYPE_CHECKING:
    import grpc

_Answer = TypeVar("_Answer")

# The codes with which a runtime, and not gRPC, says that a call failed.
_ANSWERS = ("UNKNOWN", "INTERNAL", "INVALID_ARGUMENT", "ALREADY_EXISTS", "FAILED_PRECONDITION")


class Rejected(Unreachable):
    """The runtime answered with an error. `words` are its own, without what they may repeat of a
    configuration."""

    def __init__(self, message: str, words: str) -> None:
        super().__init__(message)
        self.words = words


class NotFound(Rejected):
    """What was asked for is not there, or not any more."""


class Unimplemented(Unreachable):
    """The socket answers gRPC, but not the CRI: its plugin is disabled or failed to load."""

    code = "CRI_UNIMPLEMENTED"


@dataclass(frozen=True)
class Answer:
    """Version and Status of one moment. `config` is the parsed `info["config"]`, None if the
    runtime did not send it; `handlers` is empty if the runtime does not list them (1.x).
    `dump` is CRI-O's effective configuration, if it was asked for."""

    name: str
    version: str
    ready: bool
    config: Mapping[str, Any] | None
    handlers: tuple[str, ...]
    dump: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Sandbox:
    """A pod that the runtime knows. `handler` is the handler that it was created with as the list
    says it: "" for the default, and for every pod of CRI-O; `created` are seconds since the epoch,
    0 if the list does not say."""

    id: str
    name: str
    namespace: str
    handler: str
    ready: bool
    created: float = 0.0


@dataclass(frozen=True)
class Container:
    """A container that the runtime knows, in the pod with the id `sandbox`. `attempt` counts the
    containers of this name that the pod had before; `started`: it is no longer in CREATED;
    `created` as in Sandbox."""

    id: str
    sandbox: str
    name: str
    attempt: int
    annotations: Mapping[str, str]
    started: bool = True
    created: float = 0.0


def ask(path: str, name: str, timeout: float = 10.0) -> Answer:
    """Version and verbose Status. Raises Unreachable, or Unimplemented; `name` is for messages."""
    from agent._cri import api_pb2

    question = api_pb2.StatusRequest(verbose=True)
    with _channel(path, budget.STATUS) as channel:
        service = _Service(channel, name, budget.STATUS)
        version = service.ask("Version", api_pb2.VersionRequest(), timeout)
        status = service.ask("Status", question, timeout)
    return answer_of(version, status)


def answer_of(version: Any, status: Any) -> Answer:
    """What the two messages say."""
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

    def __init__(self, session: Session) -> None:
        self._ask = session.ask

    def sandboxes(self) -> tuple[Sandbox, ...]:
        """All pods that the runtime knows. Raises Unreachable."""
        from agent._cri import api_pb2

        answer = self._ask("ListPodSandbox", api_pb2.ListPodSandboxRequest())
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

        answer = self._ask("ListContainers", api_pb2.ListContainersRequest())
        return tuple(
            Container(
                id=item.id,
                sandbox=item.pod_sandbox_id,
                name=item.metadata.name,
                attempt=item.metadata.attempt,
                annotations=dict(item.annotations),
                started=item.state != api_pb2.CONTAINER_CREATED,
                created=item.created_at / 1e9,
            )
            for item in answer.containers
        )

    def sandbox_info(self, sandbox: str) -> Mapping[str, Any]:
        """What only this runtime knows of a pod; {} if there is no such pod any more, and if
        the answer is not JSON. Raises Unreachable."""
        from agent._cri import api_pb2

        request = api_pb2.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True)
        return self._info("PodSandboxStatus", request)

    def container_info(self, container: str) -> Mapping[str, Any]:
        """The same of a container."""
        from agent._cri import api_pb2

        request = api_pb2.ContainerStatusRequest(container_id=container, verbose=True)
        return self._info("ContainerStatus", request)

    def _info(self, method: str, request: Any) -> Mapping[str, Any]:
        try:
            answer = self._ask(method, request)
        except NotFound:
            return {}
        return json_of(answer)


class Session:
    """Calls on one channel, all together within one time; `end` is a time of time.monotonic()."""

    def __init__(self, service: _Service, name: str, end: float) -> None:
        self._service = service
        self._name = name
        self._end = end

    def ask(self, method: str, request: Any) -> Any:
        """The answer to a call. Raises Unreachable, Rejected where the runtime gives an error."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise Unreachable(f"cannot reach {self._name}: no answer in time; is the runtime up?")
        return self._service.ask(method, request, left)


@contextmanager
def session(
    path: str, name: str, timeout: float = 10.0, known: tuple[str, ...] = ()
) -> Iterator[Session]:
    """Calls about pods, `timeout` seconds for all of them. `name` is for messages; `known` are
    texts of ours that the runtime may repeat in its errors."""
    with _channel(path, budget.PODS) as channel:
        service = _Service(channel, name, budget.PODS, known)
        yield Session(service, name, time.monotonic() + timeout)


@contextmanager
def pod_questions(path: str, name: str, timeout: float = 10.0) -> Iterator[PodQuestions]:
    """Questions about pods, as `session`."""
    with session(path, name, timeout) as opened:
        yield PodQuestions(opened)


def json_of(answer: Any) -> Mapping[str, Any]:
    """What only this runtime says in a verbose answer about a pod or a container; {} where that is
    not JSON."""
    return _json(dict(answer.info).get("info")) or {}


@contextmanager
def _channel(path: str, limits: Budget) -> Iterator[grpc.Channel]:
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    import grpc

    options = (
        # Without it the socket's path becomes the :authority, which strict servers reset.
        ("grpc.default_authority", "localhost"),
        ("grpc.max_receive_message_length", limits.size),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    )
    with (
        short_socket_path(path) as short,
        grpc.insecure_channel(f"unix:{short}", options=options) as channel,
    ):
        yield channel


class _Service:
    """The CRI's services behind a channel; `name` is for messages, `known` as for `session`."""

    def __init__(
        self, channel: grpc.Channel, name: str, limits: Budget, known: tuple[str, ...] = ()
    ) -> None:
        self._channel = channel
        self._name = name
        self._limits = limits
        self._known = known

    def ask(self, method: str, request: Any, timeout: float) -> Any:
        """The answer within `timeout` seconds. Raises Unreachable."""
        from agent._cri import api_pb2

        service = "ImageService" if method.startswith("Image") else "RuntimeService"
        call: Callable[..., bytes] = self._channel.unary_unary(
            f"/runtime.v1.{service}/{method}",
            request_serializer=type(request).SerializeToString,
        )
        data = _call(self._name, self._known, lambda: call(request, timeout=timeout))
        kind = getattr(api_pb2, f"{method}Response")
        try:
            return protobuf.parsed(data, kind, self._limits)
        except ValueError as error:
            raise Unreachable(
                f"cannot use the answer of {self._name} to {method}: {error}; look at what listens "
                "there"
            ) from error


def _call(name: str, known: tuple[str, ...], call: Callable[[], _Answer]) -> _Answer:
    import grpc

    try:
        return call()
    except grpc.RpcError as error:
        from agent.toml.masking import masked  # needed only if something failed

        # A runtime repeats in it what its configuration says.
        code, details = error.code(), masked(error.details() or "", (name, *known))
        if code is grpc.StatusCode.UNIMPLEMENTED:
            raise Unimplemented(
                f"cannot use {name}: it does not serve CRI v1 ({details}); look in the runtime's "
                "log for why its CRI plugin did not load"
            ) from error
        if code is grpc.StatusCode.NOT_FOUND:
            raise NotFound(f"cannot find it behind {name}: {details}", details) from error
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            details = "no answer in time"
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            details = f"its answer is too large ({details})"
        text = f"cannot reach {name}: {details or code.name}; is the runtime up?"
        if code.name in _ANSWERS:
            raise Rejected(text, details or code.name) from error
        raise Unreachable(text) from error


def _json(text: str | None) -> Mapping[str, Any] | None:
    try:
        found = budget.json_value(text, budget.INFO) if text else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
