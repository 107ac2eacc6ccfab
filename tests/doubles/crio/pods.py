"""The CRI's calls for running pods, which the program under test does not use.

So its generated code has no messages for them; these are made here from the fields that matter, on
the wire the same as the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_SERVICE = "runtime.v1.RuntimeService"
_STRING = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
_MESSAGE = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
_OPTIONAL = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL

# Message, then its fields: name, number, and the message that it is unless it is text.
_FIELDS: Mapping[str, tuple[tuple[str, int, str], ...]] = {
    "Metadata": (("name", 1, ""), ("uid", 2, ""), ("namespace", 3, "")),
    "Config": (("metadata", 1, "Metadata"),),
    "RunRequest": (("config", 1, "Config"), ("runtime_handler", 2, "")),
    "Pod": (("pod_sandbox_id", 1, ""),),
    "Nothing": (),
}
# Call, then what it takes and what it gives.
_CALLS = {
    "RunPodSandbox": ("RunRequest", "Pod"),
    "StopPodSandbox": ("Pod", "Nothing"),
    "RemovePodSandbox": ("Pod", "Nothing"),
}


def _messages() -> Mapping[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="pods.proto", package="pods", syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for label, number, kind in fields:
            field = message.field.add(name=label, number=number, label=_OPTIONAL)
            field.type = _MESSAGE if kind else _STRING
            if kind:
                field.type_name = f".pods.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"pods.{name}"))
        for name in _FIELDS
    }


MESSAGES = _messages()


def handlers(
    calls: Mapping[str, Callable[[Any, grpc.ServicerContext], Any]],
) -> grpc.GenericRpcHandler:
    """Give what a server needs to answer these calls; each gives the message to answer."""
    return grpc.method_handlers_generic_handler(
        _SERVICE,
        {
            name: grpc.unary_unary_rpc_method_handler(
                call,
                request_deserializer=MESSAGES[_CALLS[name][0]].FromString,
                response_serializer=MESSAGES[_CALLS[name][1]].SerializeToString,
            )
            for name, call in calls.items()
        },
    )


def call(channel: grpc.Channel, name: str, request: Any) -> Any:
    """Make one of the calls; a grpc.RpcError where it fails."""
    made = channel.unary_unary(
        f"/{_SERVICE}/{name}",
        request_serializer=MESSAGES[_CALLS[name][0]].SerializeToString,
        response_deserializer=MESSAGES[_CALLS[name][1]].FromString,
    )
    return made(request, timeout=5)
