"""A private node with a scripted containerd, for tests.

node = DoubleNode(tmp_path, "2.1.9")
node.write(text)  # its configuration
node.script(die_when={"handler": "nvidia"})  # its faults
with node.run() as supervisor:
    node.wait()
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from agent._cri import api_pb2, api_pb2_grpc
from tests.doubles.runtime.install import make_fake_containerd, start_program
from tests.doubles.runtime.supervisor import Supervisor
from tests.tools import forked

# UNKNOWN is what containerd 1.6 answers to a call that comes before its CRI is initialized.
_NOT_YET = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN)


class DoubleNode:
    """A private node: its configuration, its scripted runtime and a supervisor for it."""

    def __init__(self, directory: Path, version: str, program: Path | None = None) -> None:
        self.directory = directory
        self.version = version
        self.config = directory / "config.toml"
        self.socket = directory / "c.sock"
        self.program = program or make_fake_containerd(
            directory / "bin", version, sys.executable, server=forked.address()
        )
        self.argv = [str(self.program), "-c", str(self.config)]
        self.write("")

    def write(self, text: str) -> None:
        """Write the configuration: this, and the private places of a daemon."""
        number = 2 if self.version.startswith("1") else 3
        self.config.write_text(
            f'version = {number}\nroot = "{self.directory}/root"\nstate = "{self.directory}/state"'
            f'\n[grpc]\naddress = "{self.socket}"\n[ttrpc]\naddress = "{self.socket}.ttrpc"\n{text}'
        )

    def script(self, **faults: Any) -> None:
        """Tell the runtime how to misbehave from now on."""
        script = self.directory / "bin/double.json"
        script.with_suffix(".new").write_text(json.dumps(faults))
        script.with_suffix(".new").replace(script)  # it may be read at any moment

    def run(self, delay: float | None = 0.05) -> Supervisor:
        """Give the supervisor of the daemon, to be entered."""
        return Supervisor(self.argv, {"PATH": os.defpath}, self.directory, delay, start_program)

    def dump(self) -> dict[str, Any]:
        """Give what `config dump` prints."""
        done = subprocess.run([*self.argv, "config", "dump"], capture_output=True, check=True)
        return tomllib.loads(done.stdout.decode())

    @contextmanager
    def stub(self) -> Iterator[api_pb2_grpc.RuntimeServiceStub]:
        """Give a client on a fresh channel."""
        with grpc.insecure_channel(f"unix:{self.socket}") as channel:
            yield api_pb2_grpc.RuntimeServiceStub(channel)

    def code(self, timeout: float = 2.0) -> grpc.StatusCode:
        """Call once; OK or the code of the failure."""
        try:
            with self.stub() as stub:
                stub.Version(api_pb2.VersionRequest(), timeout=timeout)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
        return grpc.StatusCode.OK

    def wait(self, *wanted: grpc.StatusCode) -> grpc.StatusCode:
        """Call until one of these comes (by default: any answer of the runtime itself)."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            code = self.code()
            if code in wanted or (not wanted and code not in _NOT_YET):
                return code
            time.sleep(0.05)
        raise TimeoutError(f"{self.socket} does not answer as expected")

    def status(self, verbose: bool = True) -> api_pb2.StatusResponse:
        """Ask for the status."""
        with self.stub() as stub:
            answer: api_pb2.StatusResponse = stub.Status(
                api_pb2.StatusRequest(verbose=verbose), timeout=5
            )
            return answer

    def shown(self) -> dict[str, Any]:
        """Give the configuration that the status shows."""
        config: dict[str, Any] = json.loads(self.status().info["config"])
        return config
