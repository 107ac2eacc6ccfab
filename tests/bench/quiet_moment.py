"""How many containers a restart leaves in CREATED, with and without the wait for a quiet moment:
`python tests/bench/quiet_moment.py [RESTARTS] [GENERATION]`, 50 and 2.1 by default; as root.

On a real containerd. Beside the restarts pods come and go in a loop, each made as a kubelet makes
it: sandbox, container, a moment in which the kubelet does its own work, start. What fails is not
tried again. A restart is the agent's own, by `apply` that makes our handler the default and back.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[2]
if TYPE_CHECKING:
    from tests.tools.pods import PodNode

_OWN_WORK = 0.5  # seconds at most between the kubelet's CreateContainer and its StartContainer
_BETWEEN = (2.2, 4.0)  # seconds between two pods
_PAUSE = 2.0  # seconds at most between two restarts
# The program without the wait: its limit is over at once.
_AT_ONCE = """
import sys
from agent.transaction import quiet_moment
quiet_moment.LIMIT = 0.0
from agent.cli import main
main()
"""
_AS_IT_IS = "from agent.cli import main; main()"


@dataclass
class Pods:
    """Pods that are made one after the other; `stuck` are containers that stayed in CREATED."""

    node: PodNode
    made: int = 0
    failed: int = 0
    stuck: list[str] = field(default_factory=list)

    def keep_coming(self, ending: threading.Event) -> None:
        """Until told to end."""
        chance = random.Random(7)  # noqa: S311 - no secret
        while not ending.wait(chance.uniform(*_BETWEEN)):
            self._one(chance.uniform(0, _OWN_WORK))

    def _one(self, own_work: float) -> None:
        import grpc

        from tests.tools import pause_image
        from tests.tools.pods import call

        name = f"pod-{self.made}"
        self.made += 1
        network = {"network": "NODE", "ipc": "NODE", "pid": "CONTAINER"}
        config = {
            "metadata": {"name": name, "uid": name, "namespace": "bench"},
            "linux": {"security_context": {"namespace_options": network}},
        }
        container = {
            "metadata": {"name": "main"},
            "image": {"image": pause_image.NAME, "user_specified_image": pause_image.NAME},
            "linux": {"security_context": {"namespace_options": network}},
        }
        socket, sandbox = self.node.reachable_socket, ""
        try:
            sandbox = str(call(socket, "RunPodSandbox", config=config)["pod_sandbox_id"])
            made = call(
                socket, "CreateContainer", pod_sandbox_id=sandbox, config=container,
                sandbox_config=config,
            )  # fmt: skip
            time.sleep(own_work)
            try:
                call(socket, "StartContainer", container_id=made["container_id"])
            except grpc.RpcError:
                self._note(str(made["container_id"]))
        except grpc.RpcError:
            self.failed += 1  # a kubelet tries this again
        finally:
            self._remove(sandbox)

    def _note(self, container: str) -> None:
        """A kubelet does not start it again."""
        from tests.tools.pods import call

        self.node.wait()
        answer = call(self.node.reachable_socket, "ContainerStatus", container_id=container)
        if answer["status"].get("state", "CONTAINER_CREATED") == "CONTAINER_CREATED":
            self.stuck.append(container)

    def _remove(self, sandbox: str) -> None:
        import grpc

        from tests.tools.pods import call

        for method in ("StopPodSandbox", "RemovePodSandbox"):
            with suppress(grpc.RpcError):
                self.node.wait()
                call(self.node.reachable_socket, method, pod_sandbox_id=sandbox)


def measure(program: str, restarts: int, generation: str) -> str:
    """One line of figures."""
    from tests.tools.pods import PodNode
    from tests.tools.runtimes import load

    runtime = load().find(generation)
    assert runtime is not None, load().reason(generation)
    times, hurried = [], 0
    with PodNode(runtime) as node:
        pods, ending = Pods(node), threading.Event()
        thread = threading.Thread(target=pods.keep_coming, args=(ending,))
        thread.start()
        chance = random.Random(8)  # noqa: S311 - no secret
        try:
            starts = node.supervisor.starts
            for number in range(restarts):
                words = [sys.executable, "-c", program, "apply", *node._options()]
                words.append(f"--set-as-default={'true' if number % 2 == 0 else 'false'}")
                time.sleep(chance.uniform(0, _PAUSE))
                began = time.monotonic()
                done = subprocess.run(
                    [*node._mounts.prefix, *words], capture_output=True, text=True, check=False,
                    cwd=ROOT, env=node._environment(),
                )  # fmt: skip
                times.append(time.monotonic() - began)
                assert done.returncode == 0, done.stderr
                hurried += "restart without a quiet moment" in done.stderr
            restarted = node.supervisor.starts - starts
        finally:
            ending.set()
            thread.join()
    middle, longest = statistics.median(times), max(times)
    return (
        f"{restarted} restarts, {pods.made} pods, {pods.failed} calls cut off and tried again by a "
        f"kubelet, {len(pods.stuck)} stuck in CREATED; apply took {middle:.1f} s (longest "
        f"{longest:.1f} s), {hurried} without a quiet moment"
    )


def main() -> None:
    """Both ways, one after the other."""
    restarts = int(sys.argv[1]) if sys.argv[1:] else 50
    generation = sys.argv[2] if sys.argv[2:] else "2.1"
    for name, program in (("at once", _AT_ONCE), ("quiet moment", _AS_IT_IS)):
        print(
            f"containerd {generation}, {name}: {measure(program, restarts, generation)}", flush=True
        )


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    assert os.geteuid() == 0, "pods need root"
    main()
