"""What the runtime says of itself through the CRI.

Invariant: the only module that imports grpc, and each question (those about pods together) opens
and closes a channel of its own: a channel that has seen a restart stays blind for more than a
second. An answer is counted before it is parsed, because a message of a few bytes takes a hundred
in memory.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from agent.cri import protobuf
from agent.cri.process import short_socket_path
from agent.errors import Unreachable
from agent.host import budget
from agent.host.budget import Budget
from agent.toml.document import get

if TYPE_CHECKING:
    import grpc

_VISIBLE = "NVIDIA_VISIBLE_DEVICES="  # as containers ask NVIDIA's runtime by variable
_Session = TypeVar("_Session", bound="Session")

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
    0 if the list does not say; `uid` is the kubelet's."""

    id: str
    name: str
    namespace: str
    handler: str
    ready: bool
    created: float = 0.0
    uid: str = ""


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
    """Version and verbose Status, within `timeout` seconds. `path` is an agent path, `name` is for
    messages. Raises Unreachable, or Unimplemented."""
    from agent._cri import api_pb2

    with session(Session, path, name, timeout, limits=budget.STATUS) as calls:
        version = calls.ask("Version", api_pb2.VersionRequest())
        status = calls.ask("Status", api_pb2.StatusRequest(verbose=True))
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


class Session:
    """Calls on one channel, all together within `timeout` seconds. `name` is for messages; `known`
    are texts of ours that the runtime may repeat in its errors."""

    def __init__(
        self, channel: grpc.Channel, name: str, timeout: float, limits: Budget,
        known: tuple[str, ...],
    ) -> None:  # fmt: skip
        self._channel = channel
        self._name = name
        self._end = time.monotonic() + timeout
        self._limits = limits
        self._known = known

    def ask(self, method: str, request: Any) -> Any:
        """The answer to a call. Raises Unreachable, Rejected if the runtime gives an error."""
        import grpc

        from agent._cri import api_pb2

        service = "ImageService" if method.startswith("Image") else "RuntimeService"
        call: Callable[..., bytes] = self._channel.unary_unary(
            f"/runtime.v1.{service}/{method}",
            request_serializer=type(request).SerializeToString,
        )
        left = self._end - time.monotonic()
        if left <= 0:
            raise _unreachable(self._name, "no answer in time")
        try:
            data = call(request, timeout=left)
        except grpc.RpcError as error:
            raise _failure(error, self._name, self._known) from error
        try:
            return protobuf.parsed(data, getattr(api_pb2, f"{method}Response"), self._limits)
        except ValueError as error:
            raise Unreachable(
                f"cannot use the answer of {self._name} to {method}: {error}; look at what listens "
                "there"
            ) from error


class PodQuestions(Session):
    """Questions about pods."""

    def sandboxes(self, labels: Mapping[str, str] = MappingProxyType({})) -> tuple[Sandbox, ...]:
        """All pods with these labels that the runtime knows. Raises Unreachable."""
        from agent._cri import api_pb2

        chosen = api_pb2.PodSandboxFilter(label_selector=labels) if labels else None
        answer = self.ask("ListPodSandbox", api_pb2.ListPodSandboxRequest(filter=chosen))
        return tuple(
            Sandbox(
                id=item.id,
                name=item.metadata.name,
                namespace=item.metadata.namespace,
                handler=item.runtime_handler,
                ready=item.state == api_pb2.SANDBOX_READY,
                created=item.created_at / 1e9,
                uid=item.metadata.uid,
            )
            for item in answer.items
        )

    def containers(self) -> tuple[Container, ...]:
        """All containers that the runtime knows, in whatever state. Raises Unreachable."""
        from agent._cri import api_pb2

        answer = self.ask("ListContainers", api_pb2.ListContainersRequest())
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
        return self._info("PodSandboxStatus", pod_sandbox_id=sandbox)

    def container_info(self, container: str) -> Mapping[str, Any]:
        """The same of a container."""
        return self._info("ContainerStatus", container_id=container)

    def _info(self, method: str, **asked: str) -> Mapping[str, Any]:
        from agent._cri import api_pb2

        request = getattr(api_pb2, f"{method}Request")(verbose=True, **asked)
        try:
            return _json(dict(self.ask(method, request).info).get("info")) or {}
        except NotFound:
            return {}


@contextmanager
def session(
    kind: type[_Session], path: str, name: str, timeout: float, known: tuple[str, ...] = (),
    limits: Budget = budget.PODS,
) -> Iterator[_Session]:  # fmt: skip
    """A session of this kind with the runtime behind the socket at an agent path."""
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
        yield kind(channel, name, timeout, limits, known)


def pod_questions(
    path: str, name: str, timeout: float = 10.0
) -> AbstractContextManager[PodQuestions]:
    """Questions about pods, as `session`."""
    return session(PodQuestions, path, name, timeout)


def _failure(error: Any, name: str, known: tuple[str, ...]) -> Unreachable:
    """A failed call as an error of ours."""
    from agent.toml.masking import masked  # needed only if something failed

    # A runtime repeats in it what its configuration says.
    code, details = error.code().name, masked(error.details() or "", (name, *known))
    if code == "UNIMPLEMENTED":
        return Unimplemented(
            f"cannot use {name}: it does not serve CRI v1 ({details}); look in the runtime's "
            "log for why its CRI plugin did not load"
        )
    if code == "NOT_FOUND":
        return NotFound(f"cannot find it behind {name}: {details}", details)
    if code == "DEADLINE_EXCEEDED":
        details = "no answer in time"
    if code == "RESOURCE_EXHAUSTED":
        details = f"its answer is too large ({details})"
    failure = _unreachable(name, details or code)
    return Rejected(failure.message, details or code) if code in _ANSWERS else failure


def _unreachable(name: str, why: str) -> Unreachable:
    return Unreachable(f"cannot reach {name}: {why}; is the runtime up?")


def _json(text: str | None) -> Mapping[str, Any] | None:
    try:
        found = budget.json_value(text, budget.INFO) if text else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def asks_by_variable(info: Mapping[str, Any]) -> bool:
    """Does a container ask NVIDIA's runtime for devices by environment variable? One that got its
    devices from a CDI spec has the value "void", in CRI-O 1.30 before the value of its image."""
    words = get(info, ("runtimeSpec", "process", "env"))
    said = [str(word) for word in words] if isinstance(words, list) else []
    given = [word.removeprefix(_VISIBLE) for word in said if word.startswith(_VISIBLE)]
    return bool(given) and "void" not in given and given[-1] not in ("", "none")


def monitored(words: tuple[str, ...]) -> tuple[str, str] | None:
    """Namespace and name of the pod of a container that this conmon watches. Its `-n` is
    `k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT`, and none of these has an underscore."""
    name = dict(itertools.pairwise(words)).get("-n", "")
    parts = name.split("_")
    return (parts[3], parts[2]) if len(parts) == 6 and parts[0] == "k8s" else None
