"""What the runtime says of itself through the CRI.

Invariant: the only module that imports grpc, and each question opens and closes a channel of its
own: a channel that has seen a restart stays blind for more than a second.
"""

from __future__ import annotations

import json
import os
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
    """A pod that the runtime knows, and the handler that it was created with."""

    id: str
    name: str
    namespace: str
    handler: str
    ready: bool


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


def sandboxes(path: str, name: str, timeout: float = 10.0) -> tuple[Sandbox, ...]:
    """All pods that the runtime knows. Raises Unreachable."""
    from agent._cri import api_pb2

    with _stub(path) as stub:
        answer = _call(
            name, lambda: stub.ListPodSandbox(api_pb2.ListPodSandboxRequest(), timeout=timeout)
        )
    return tuple(
        Sandbox(
            id=item.id,
            name=item.metadata.name,
            namespace=item.metadata.namespace,
            handler=item.runtime_handler,
            ready=item.state == api_pb2.SANDBOX_READY,
        )
        for item in answer.items
    )


def sandbox_info(path: str, name: str, pod: str, timeout: float = 10.0) -> str:
    """What the runtime knows of one pod, in words of its own; "" where there is no such pod any
    more. Raises Unreachable."""
    from agent._cri import api_pb2

    request = api_pb2.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
    with _stub(path) as stub:
        try:
            answer = _call(name, lambda: stub.PodSandboxStatus(request, timeout=timeout))
        except _NotFound:
            return ""
    return str(dict(answer.info).get("info", ""))


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
        code, details = error.code(), error.details() or ""
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
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
