"""The client of the CRI: version, Status, pods and containers of a runtime.

Invariant: no other module imports grpc. Each session opens and closes its own channel, because a
channel that has seen a restart of the runtime gets no answer for more than a second. The fields of
an answer are counted before it is parsed, because a message of a few bytes takes a hundred bytes in
memory.
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

_VISIBLE = "NVIDIA_VISIBLE_DEVICES="  # the variable by which a container asks NVIDIA's runtime
_Session = TypeVar("_Session", bound="Session")

# The codes of errors that come from the runtime, not from gRPC.
_ANSWERS = ("UNKNOWN", "INTERNAL", "INVALID_ARGUMENT", "ALREADY_EXISTS", "FAILED_PRECONDITION")


class Rejected(Unreachable):
    """The runtime answered with an error. `words` are the text of its error, with values of its
    configuration masked."""

    def __init__(self, message: str, words: str) -> None:
        super().__init__(message)
        self.words = words


class NotFound(Rejected):
    """The runtime does not know the pod or container of the request."""


class Unimplemented(Unreachable):
    """The socket answers gRPC, but not the CRI: its plugin is disabled or failed to load."""

    code = "CRI_UNIMPLEMENTED"


@dataclass(frozen=True)
class Answer:
    """The answers to Version and Status at one moment. `ready` is the condition RuntimeReady.
    `config` is the parsed `info["config"]`, None if the runtime did not send it. `handlers` are
    names, none if the runtime does not list them (containerd 1.x). `dump` is CRI-O's effective
    configuration, None if it was not requested."""

    name: str
    version: str
    ready: bool
    config: Mapping[str, Any] | None
    handlers: tuple[str, ...]
    dump: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Sandbox:
    """A pod in the runtime's list. `handler` is the handler with which it was created: "" for the
    default, and for every pod of CRI-O, whose list does not show it. `created` is in seconds since
    the epoch, 0 if the list does not show it. `uid` is that of the kubelet."""

    id: str
    name: str
    namespace: str
    handler: str
    ready: bool
    created: float = 0.0
    uid: str = ""


@dataclass(frozen=True)
class Container:
    """A container in the runtime's list. `sandbox` is the id of its pod. `attempt` is the number of
    earlier containers with this name in the pod. `started`: is its state another one than CREATED?
    `created` as in Sandbox."""

    id: str
    sandbox: str
    name: str
    attempt: int
    annotations: Mapping[str, str]
    started: bool = True
    created: float = 0.0


def ask(path: str, name: str, timeout: float = 10.0) -> Answer:
    """Ask for Version and verbose Status, within `timeout` seconds for both. `path` is the agent
    path of the CRI socket, `name` is its name in messages. Raises Unreachable, or Unimplemented."""
    from agent._cri import api_pb2

    with session(Session, path, name, timeout, limits=budget.STATUS) as calls:
        version = calls.ask("Version", api_pb2.VersionRequest())
        status = calls.ask("Status", api_pb2.StatusRequest(verbose=True))
    return answer_of(version, status)


def answer_of(version: Any, status: Any) -> Answer:
    """The answer that consists of a VersionResponse and a StatusResponse."""
    conditions = {item.type: item.status for item in status.status.conditions}
    return Answer(
        name=version.runtime_name,
        version=version.runtime_version,
        ready=conditions.get("RuntimeReady", False),
        config=_json(dict(status.info).get("config")),
        handlers=tuple(sorted(handler.name for handler in status.runtime_handlers)),
    )


class Session:
    """Calls on one channel, within `timeout` seconds for all of them. `name` is the name of the
    socket in messages. `limits` is the budget of each answer. `known` are texts of ours, which are
    not masked in the runtime's errors."""

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
        """Make a call, and return the parsed response. Raises Unreachable; Rejected if the runtime
        answers with an error."""
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
    """Questions about pods and containers."""

    def sandboxes(self, labels: Mapping[str, str] = MappingProxyType({})) -> tuple[Sandbox, ...]:
        """All pods in the runtime's list that have these labels. Raises Unreachable."""
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
        """All containers in the runtime's list, in any state. Raises Unreachable."""
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
        """The runtime's own details of a pod (`info` of the verbose status); {} if the pod no
        longer exists, or if the details are not JSON. Raises Unreachable."""
        return self._info("PodSandboxStatus", pod_sandbox_id=sandbox)

    def container_info(self, container: str) -> Mapping[str, Any]:
        """As `sandbox_info`, for a container."""
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
    """Open a session of the class `kind` with the runtime behind the socket at the agent path
    `path`. The other parameters are as in `Session`."""
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
    """Open a session for questions about pods; parameters as in `session`."""
    return session(PodQuestions, path, name, timeout)


def _failure(error: Any, name: str, known: tuple[str, ...]) -> Unreachable:
    """The error of ours for a failed call."""
    from agent.toml.masking import masked  # needed only if something failed

    # The error of a runtime can quote values of its configuration.
    code, details = error.code().name, masked(error.details() or "", (name, *known))
    if code == "UNIMPLEMENTED":
        return Unimplemented(
            f"cannot use {name}: it does not serve CRI v1 ({details}); look in the runtime's "
            "log for why its CRI plugin did not load"
        )
    if code == "NOT_FOUND":
        return NotFound(f"cannot find the pod or container behind {name}: {details}", details)
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
        value = budget.json_value(text, budget.INFO) if text else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def asks_by_variable(info: Mapping[str, Any]) -> bool:
    """Does a container ask NVIDIA's runtime for devices by environment variable? `info` is the
    result of `container_info`. A container with devices of a CDI spec has the value "void", in
    CRI-O 1.30 before the value of its image."""
    words = get(info, ("runtimeSpec", "process", "env"))
    variables = [str(word) for word in words] if isinstance(words, list) else []
    values = [word.removeprefix(_VISIBLE) for word in variables if word.startswith(_VISIBLE)]
    return bool(values) and "void" not in values and values[-1] not in ("", "none")


def monitored_pod(words: tuple[str, ...]) -> tuple[str, str] | None:
    """The namespace and the name of the pod whose container a conmon process monitors, None if it
    is no container of a pod. `words` are conmon's command line. Its `-n` is
    `k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT`, and no part of that has an underscore."""
    name = dict(itertools.pairwise(words)).get("-n", "")
    parts = name.split("_")
    return (parts[3], parts[2]) if len(parts) == 6 and parts[0] == "k8s" else None
