"""Ask a runtime through the CRI, sharing nothing but generated code with the program under test."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from agent._cri import api_pb2, api_pb2_grpc

# Strict servers reset a stream whose authority is the escaped path of a socket.
_OPTIONS = (("grpc.default_authority", "localhost"),)


@dataclass(frozen=True)
class Answer:
    """What Version and Status(verbose) said; `config` is the JSON of the info of that name."""

    version: str
    ready: bool
    config: Mapping[str, Any]

    @property
    def runtimes(self) -> Mapping[str, Mapping[str, Any]]:
        """The table of handlers, by name."""
        runtimes: Mapping[str, Mapping[str, Any]] = self.config["containerd"]["runtimes"]
        return runtimes

    @property
    def default(self) -> str:
        """The name of the default runtime."""
        return str(self.config["containerd"]["defaultRuntimeName"])

    @property
    def cdi(self) -> bool | None:
        """`enableCDI`; None where the runtime has no such setting."""
        return self.config.get("enableCDI")

    @property
    def spec_dirs(self) -> tuple[str, ...]:
        """`cdiSpecDirs`; empty where the runtime has no such setting."""
        return tuple(self.config.get("cdiSpecDirs") or ())


def ask(socket: Path, timeout: float = 5.0) -> Answer:
    """Answer of the runtime behind `socket`; a grpc.RpcError where there is none."""
    # A channel of its own for each question: one that lives on is blind after a restart.
    with grpc.insecure_channel(f"unix:{socket}", options=_OPTIONS) as channel:
        stub = api_pb2_grpc.RuntimeServiceStub(channel)
        version = stub.Version(api_pb2.VersionRequest(), timeout=timeout)
        status = stub.Status(api_pb2.StatusRequest(verbose=True), timeout=timeout)
    conditions = {c.type: c.status for c in status.status.conditions}
    return Answer(
        version=version.runtime_version,
        ready=conditions.get("RuntimeReady", False),
        config=json.loads(status.info["config"]),
    )


def wait(socket: Path, timeout: float = 10.0) -> Answer | None:
    """Ask until the runtime answers; None where it runs without the CRI. TimeoutError otherwise."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return ask(socket)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return None
            if time.monotonic() > deadline:
                raise TimeoutError(f"{socket}: {error.details()}") from error
        time.sleep(0.05)
