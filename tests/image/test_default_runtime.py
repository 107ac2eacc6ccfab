"""The default runtime that `apply` goes back to runs pods, and so do NVIDIA's handlers.

A handler without a type, or of one that is not there, looks well in Status and in the dump; only a
pod shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from tests.conformance import checks
from tests.conformance.trees import contents, touched
from tests.sampling import by_run, sample
from tests.tools.pods import PodNode, Pods
from tests.tools.runtimes import Runtime

pytestmark = pytest.mark.real

# Configurations whose default runtime is NVIDIA's, each in a way of its own, and containerds.
_NODES = {
    # The drop-in of a vendor, which hides the root file's runc (containerd 1.x).
    "v2-empty-runc": ("1.6", "1.7"),
    # The shim before runc's, which takes the program from settings of its own.
    "v1-linux-shim": ("1.6", "1.7"),
    # runc's own name, NVIDIA's program.
    "v2-runc-is-nvidia": ("1.6", "1.7", "2.1"),
}
_CASES = [
    (files, generation)
    for files, generations in _NODES.items()
    for generation in sample(generations, by_run(1, len(generations)), files)
]


@contextmanager
def node_of(runtime: Runtime, files: str) -> Iterator[PodNode]:
    """A node whose toolkit calls runc, as NVIDIA's does in the end."""
    with PodNode(runtime, files=files) as node:
        for path in node.toolkit.glob("nvidia-container-runtime*"):
            path.write_text(f'#!/bin/sh\nexec {runtime.runc} "$@"\n', encoding="utf-8")
        yield node


def runs(node: PodNode, handler: str) -> bool:
    """Whether a pod of a handler can be created, and its container started."""
    with Pods(node) as pods:
        container = pods.create(handler=handler)
        container.start()
        return container.status().state == "RUNNING"


@pytest.mark.parametrize(("files", "generation"), _CASES)
def test_pods_of_every_handler_run(files: str, generation: str, runtime: Runtime) -> None:
    """Pods of the default and of each handler of ours; a second `apply` changes nothing, and
    `revert` brings everything back."""
    with node_of(runtime, files) as node:
        before, answer = node.tree(), node.status()
        with pytest.raises(grpc.RpcError, match="nvidia-container-runtime"):  # it is not there
            runs(node, "")
        checks.done(node.agent("apply"))
        native = generation != "1.6"
        assert node.status().default == ("runc" if native else "nvidia")
        for handler in ("", "nvidia", "nvidia-cdi", "nvidia-legacy", *(["runc"] * native)):
            assert runs(node, handler), handler
        right, starts = node.whole(), node.supervisor.starts
        checks.done(node.agent("apply"))
        assert touched(right, node.whole()) == []
        assert node.supervisor.starts == starts
        checks.done(node.agent("revert"))
        assert contents(node.tree()) == contents(before)
        assert node.status() == answer
