"""Compiles the protos to Python when the package is built; also runs by itself in a bare checkout.

Compiled at build time and never committed: protobuf's own rule is that generated code may not be
newer than the runtime that loads it, so the compiler's bound in pyproject.toml and the runtime's
floor there belong together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTO = "agent/_cri/api.proto"


class CompileProtos(BuildHookInterface[Any]):
    """Hatchling calls this before it packs a wheel, editable ones included."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the stubs into the tree, where `artifacts` in pyproject.toml picks them up."""
        compile_protos(Path(self.root))


def compile_protos(root: Path) -> None:
    """Write api_pb2.py, api_pb2.pyi and api_pb2_grpc.py below `root`/agent/_cri.

    protoc derives the stubs' import path from the path below `-I`, hence the nested folders.
    """
    # Imported here: hatchling also loads this file to make an sdist, which needs no compiler.
    from grpc_tools import protoc

    outputs = [f"--{kind}_out={root}" for kind in ("python", "pyi", "grpc_python")]
    status = protoc.main(["protoc", f"-I{root / 'protos'}", *outputs, PROTO])
    if status != 0:
        raise RuntimeError(f"cannot compile {PROTO}: protoc ended with {status}")


if __name__ == "__main__":
    compile_protos(Path(__file__).resolve().parent.parent)
