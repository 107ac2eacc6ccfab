"""How quick the commands are: `python tests/bench/startup.py [ROUNDS]`, 15 by default.

Prints medians and ratios. The two sides of a ratio are run in turn, because a machine has good and
bad minutes. As root the runtime is a real containerd, otherwise the scripted one.
"""

from __future__ import annotations

import compileall
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What every command that asks the runtime has to do at least.
_ONE_STATUS = """
import grpc
from agent._cri import api_pb2, api_pb2_grpc
options = (("grpc.default_authority", "localhost"),)
with grpc.insecure_channel("unix:" + {socket!r}, options=options) as channel:
    stub = api_pb2_grpc.RuntimeServiceStub(channel)
    stub.Status(api_pb2.StatusRequest(verbose=True), timeout=5)
"""
_TWO_DUMPS = """
import subprocess
for _ in range(2):
    subprocess.run({dump!r}, capture_output=True, check=True)
"""
_MIRRORS = 1000


@dataclass(frozen=True)
class Bench:
    """A node to measure on: words that run the program in it, its options, how `config dump` is
    asked for, and where it is told that it is ready. `restart` restarts the runtime."""

    name: str
    prefix: tuple[str, ...]
    options: tuple[str, ...]
    environment: dict[str, str]
    socket: str
    reachable: Path
    dump: tuple[str, ...]
    config: Path
    ready: Path
    restart: Callable[[], None]

    def python(self, code: str) -> Callable[[], float]:
        """Seconds that a program takes."""
        return lambda: self._time([sys.executable, "-c", code])

    def agent(self, *words: str, code: int = 0) -> Callable[[], float]:
        """Seconds that a command takes."""
        return lambda: self._time([sys.executable, "-m", "agent", *words, *self.options], code)

    def plain(self, *words: str) -> Callable[[], float]:
        """The same for a command that knows no options."""
        return lambda: self._time([sys.executable, "-m", "agent", *words])

    def _time(self, argv: Sequence[str], code: int = 0) -> float:
        began = time.perf_counter()
        done = subprocess.run(
            [*self.prefix, *argv], env=self.environment, cwd=ROOT,
            stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
        taken = time.perf_counter() - began
        if done.returncode != code:
            raise RuntimeError(f"{argv} ended with {done.returncode}: {done.stderr.decode()}")
        return taken


def compare(
    name: str, limit: float, rounds: int, measured: Callable[[], float],
    yardstick: Callable[[], float], times: float = 1.0,
) -> None:  # fmt: skip
    """Print both medians, and their ratio beside what it should be at most."""
    for warm in (measured, yardstick):
        warm()
    pairs = [(measured(), yardstick()) for _ in range(rounds)]
    one, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = one / (other * times)
    mark = "" if ratio <= limit else "  TOO SLOW"
    print(f"{name:<44} {one * 1000:7.0f} ms  {other * 1000:7.0f} ms  {ratio:5.2f} ({limit}){mark}")


@contextmanager
def real_node() -> Iterator[Bench]:
    """A private node with the newest real containerd that there is."""
    from tests.conformance.private_node import PrivateNode
    from tests.conformance.shapes import BY_NAME
    from tests.tools.runtimes import load

    runtime = load().runtimes[-1]
    shape = BY_NAME["kubeadm-v3" if runtime.generation >= "2" else "kubeadm-v2"]
    with PrivateNode(runtime, shape) as node:
        inside = node.supervisor.argv
        yield Bench(
            f"{runtime.name} {runtime.version}",
            tuple(node._mounts.prefix),
            tuple(node._options()),
            node._environment(),
            str(node.socket), node._reachable_socket(),
            (*inside[len(node._mounts.prefix) :], "config", "dump"),
            node.etc / "containerd/config.toml",
            node.validations / "toolkit-ready",
            node.restart,
        )  # fmt: skip


@contextmanager
def scripted_node() -> Iterator[Bench]:
    """A node with the scripted containerd."""
    from tests.cli.cli_node import CliNode

    with tempfile.TemporaryDirectory(prefix="node-") as place, CliNode(Path(place)) as node:
        yield Bench(
            "scripted containerd", (), tuple(node.options()), {"PATH": os.defpath},
            str(node.socket), node.socket, (*node.argv, "config", "dump"), node.config,
            node.validations / "toolkit-ready", node.restart,
        )  # fmt: skip


def first_answer_to_ready(bench: Bench) -> float:
    """Seconds from the first answer of the restarted runtime to `toolkit-ready`."""
    from agent.cri import process
    from tests.conformance import cri

    old = process.peer_pid(str(bench.reachable), "the runtime")
    thread = threading.Thread(target=bench.agent("apply"))
    thread.start()
    answered: float | None = None
    while answered is None:
        try:
            if process.peer_pid(str(bench.reachable), "the runtime") != old:
                cri.ask(bench.reachable, 1.0)
                answered = time.perf_counter()
        except Exception:  # noqa: BLE001, S110 - whatever it is, it is no answer yet
            pass
        time.sleep(0.005)
    while not bench.ready.exists():
        time.sleep(0.002)
    taken = time.perf_counter() - answered
    thread.join()
    return taken


def add_mirrors(bench: Bench) -> None:
    """A thousand registry mirrors in the root file, as a generator of such files writes them."""
    text = bench.config.read_text(encoding="utf-8")
    images = "io.containerd.cri.v1.images" if "cri.v1" in text else "io.containerd.grpc.v1.cri"
    text = text.replace("config_path = '/etc/containerd/certs.d'", "")  # excludes mirrors
    for number in range(_MIRRORS):
        text += (
            f'\n[plugins."{images}".registry.mirrors."r{number}.example"]\n'
            f'  endpoint = ["https://mirror-{number}.example:5000", "https://r{number}.example"]\n'
        )
    bench.config.write_text(text, encoding="utf-8")
    bench.restart()


def measure(bench: Bench, rounds: int) -> None:
    """The whole list."""
    status = _ONE_STATUS.format(socket=bench.socket)
    dumps = status + _TWO_DUMPS.format(dump=bench.dump)
    click = bench.python("import click")
    print(f"on {bench.name}, Python {sys.version.split()[0]}, medians of {rounds}")
    compare("--help / import click", 1.3, rounds, bench.plain("--help"), click)
    compare("plan / Status and two dumps", 1.3, rounds,
            bench.agent("plan", code=1), bench.python(dumps))  # fmt: skip
    if os.geteuid() == 0:
        generate = bench.agent("cdi", "generate", "--mode=management")
        compare("cdi generate / 2 x import click", 1.0, rounds, generate, click, 2.0)
    waits = []
    for _ in range(max(3, rounds // 5)):
        waits.append(first_answer_to_ready(bench))
        bench.agent("revert")()
    print(f"{'apply: first answer to toolkit-ready':<44} {statistics.median(waits):7.2f} s (1)")
    bench.agent("apply")()
    compare("apply, nothing to do / one Status", 1.5, rounds,
            bench.agent("apply"), bench.python(status))  # fmt: skip
    with (scripted_node if os.geteuid() else real_node)() as other:
        add_mirrors(other)
        other.agent("apply")()
        compare(f"the same with {_MIRRORS} mirrors / with none", 1.1, rounds,
                other.agent("apply"), bench.agent("apply"))  # fmt: skip


def main() -> None:
    """Measure on a node of its own; nothing of it is left."""
    rounds = int(sys.argv[1]) if sys.argv[1:] else 15
    compileall.compile_dir(ROOT / "agent", quiet=2)  # as an installed package is
    kind = scripted_node if os.geteuid() else real_node
    with kind() as bench:
        measure(bench, rounds)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
