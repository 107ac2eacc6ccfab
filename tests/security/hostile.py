"""A runtime that answers any bytes, and the agent with the memory that it took.

The socket of the CRI belongs to somebody who wants the agent to die of its answers: messages of any
size and shape, sent by a real gRPC server.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from agent._cri import api_pb2
from tests.tools.runtimes import ROOT

LIMIT = 128 << 10  # KiB: a third of the memory limit of the pod

# A process starts with the peak of the one that forked it: a small one has to be between.
_LAUNCH = """
import os, resource, sys
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
os.write(2, b"peak %d\\n" % resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code if code >= 0 else 128 - code)
"""
_SERVICE = "runtime.v1.RuntimeService"


@dataclass(frozen=True)
class Done:
    """How a run of the agent ended, and its peak of resident memory in KiB."""

    code: int
    out: str
    err: str
    peak: int

    def one_line(self, code: int, *words: str) -> None:
        """It failed in the way that it has to: one line, no traceback, within the limit."""
        assert self.code == code, self.err
        assert self.err.startswith("cannot "), self.err
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err
        self.fits()

    def fits(self) -> None:
        """The peak of its memory is below the limit of the pod."""
        assert self.peak < LIMIT, f"{self.peak >> 10} MiB"


def agent(*words: str, timeout: float = 60) -> Done:
    """Execute the agent in a new process; its memory is its own, and that of no test."""
    return python("-m", "agent", *words, timeout=timeout)


def python(*words: str, timeout: float = 60) -> Done:
    """The same with any arguments of the interpreter."""
    argv = [sys.executable, "-I", "-S", "-c", _LAUNCH, sys.executable, *words]
    env = {"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
    child = subprocess.Popen(
        argv,
        env=env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    out: list[str] = []
    reader = threading.Thread(target=lambda: out.append(child.stdout.read()))  # type: ignore[union-attr]
    reader.start()
    timer = threading.Timer(timeout, lambda: os.killpg(child.pid, signal.SIGKILL))
    timer.start()
    with child:
        err = child.stderr.read()
        reader.join()
    timer.cancel()
    err, _, peak = err.removesuffix("\n").rpartition("peak ")
    return Done(child.returncode, out[0], err, int(peak))


@contextmanager
def runtime(socket: Path, answers: Mapping[str, bytes | Callable[[], bytes]]) -> Iterator[None]:
    """Serve these answers, by method; Version says containerd 2.1.9 unless told otherwise."""
    version = api_pb2.VersionResponse(
        version="0.1.0", runtime_name="containerd", runtime_version="2.1.9",
        runtime_api_version="v1",
    )  # fmt: skip
    all_answers = {"Version": version.SerializeToString(), **answers}

    def handler(answer: bytes | Callable[[], bytes]) -> grpc.RpcMethodHandler[bytes, bytes]:
        def serve(_: bytes, __: grpc.ServicerContext) -> bytes:
            return answer() if callable(answer) else answer

        return grpc.unary_unary_rpc_method_handler(serve)

    server = grpc.server(
        futures.ThreadPoolExecutor(4), options=[("grpc.max_send_message_length", -1)]
    )
    handlers = {name: handler(answer) for name, answer in all_answers.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()
