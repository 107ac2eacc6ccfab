"""`run` on real runtimes: whatever is disturbed, the node is right again, and nobody is lied to."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from tests.conformance import statusfile
from tests.conformance.private_node import PrivateNode
from tests.conformance.shapes import BY_NAME, OURS, Shape
from tests.tools.beside import beside
from tests.tools.driver import make_driver, remove_driver
from tests.tools.runtimes import Runtime
from tests.tools.waiting import SOON, wait_until

pytestmark = pytest.mark.real

NEW = "560.28.03"


class KeptNode(PrivateNode):
    """A node with what `run` keeps right on it."""

    @property
    def spec(self) -> Path:
        """The management spec, as it is seen from here."""
        return self.directory / "run/cdi/management.nvidia.com-gpu.yaml"

    @property
    def ready(self) -> Path:
        """The barrier."""
        return self.validations / statusfile.READY

    def has_handlers(self) -> bool:
        """The runtime answers, with what is ours."""
        try:
            return set(OURS) <= set(self.status().runtimes)
        except grpc.RpcError:
            return False

    def configuration(self) -> dict[str, bytes]:
        """Every file of it."""
        files = (p for p in (self.etc / "containerd").rglob("*") if p.is_file())
        return {str(path): path.read_bytes() for path in files}

    def published(self) -> str | None:
        """What both files say, without the time of it."""
        texts = []
        for name in (statusfile.READY, statusfile.TWIN):
            try:
                texts.append((self.validations / name).read_text("ascii"))
            except FileNotFoundError:
                return None
        text = re.sub(r"TIMESTAMP=\d+", "", texts[0])
        return text if text and texts[0] == texts[1] else None


@contextmanager
def watched(node: KeptNode) -> Iterator[None]:
    """`toolkit-ready` never appears while the runtime has not our handlers."""
    lies: list[str] = []

    def watch(ended: threading.Event) -> None:
        there = False
        while not ended.wait(0.005):
            before, there = there, node.ready.exists()
            if there and not before and not node.has_handlers():
                lies.append("toolkit-ready without handlers")

    with beside(watch):
        yield
    assert lies == []


def _originals_back(node: KeptNode) -> None:
    """Another program writes its own configuration again, as installers do."""
    source = node.shape.directory
    for template in (p for p in source.rglob("*") if p.is_file()):
        text = template.read_text("utf-8").replace("@NODE@", str(node.directory))
        (node.etc / "containerd" / template.relative_to(source)).write_text(text)


def _overwritten_and_restarted(node: KeptNode) -> None:
    _originals_back(node)
    node.restart()


def _upgrade(node: KeptNode) -> None:
    remove_driver(node.directory / "driver")
    make_driver(node.directory / "driver", NEW)


DISTURBANCES: dict[str, Callable[[KeptNode], object]] = {
    "configuration overwritten": _originals_back,
    "runtime restarted": lambda node: node.restart(),
    "overwritten and restarted": _overwritten_and_restarted,
    "spec removed": lambda node: node.spec.unlink(),
    "spec emptied": lambda node: node.spec.write_bytes(b""),
    "status emptied": lambda node: node.ready.write_bytes(b""),
    "status removed": lambda node: node.ready.unlink(),
    "twin removed": lambda node: (node.validations / statusfile.TWIN).unlink(),
    "hook touched": lambda node: os.utime(node.toolkit / "nvidia-cdi-hook"),
    "driver upgraded": _upgrade,
}


@pytest.mark.parametrize(("name", "generation"), [("kubeadm-v2", "1.7"), ("kubeadm-v3", "2.1")])
def test_run_repairs_ten_disturbances_within_5_seconds(
    name: str, generation: str, runtime: Runtime
) -> None:
    """Right again within 5 s each, by the same process, which ends at once when asked to."""
    shape: Shape = BY_NAME[name]
    with KeptNode(runtime, shape) as node, watched(node):
        log = node.directory / "run.log"
        process = node.start_agent("run", log)

        def until(holds: Callable[[], bool], what: str) -> None:
            wait_until(
                holds,
                lambda: f"{what}: {log.read_text('utf-8')}",
                lambda: process.poll() is None,
            )

        try:
            until(lambda: node.published() is not None, "start")
            wanted, said = node.configuration(), node.published()
            for what, disturb in DISTURBANCES.items():
                disturb(node)
                version = NEW if "driver" in what else ""
                until(
                    lambda version=version: (  # type: ignore[misc] # bound in the loop
                        node.configuration() == wanted
                        and node.published() == said
                        and node.spec.exists()
                        and f"libcuda.so.{version}" in node.spec.read_text("utf-8")
                        and node.has_handlers()
                    ),
                    what,
                )
                time.sleep(0.8)  # everything that follows from it
                assert node.published() == said, what
            process.terminate()
            assert process.wait(SOON) == 0
            assert node.published() == said
        finally:
            process.kill()
            process.wait()
