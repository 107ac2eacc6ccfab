"""What several commands at once weigh: `python tests/bench/memory.py [ROUNDS]`, 3 by default.

On a real containerd, as root, beside a `run` that waits: 1, 2 and 4 times `status`, and `plan`
where a change is due, which starts a second containerd for a moment. It prints the most that all
processes of the agent had at one moment, as the memory limit of a pod counts it: what each has for
itself, and pages of files once for each program.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PAUSE = 0.01  # seconds between two looks


def descendants(pid: int) -> Iterator[int]:
    """A process and all that it started."""
    yield pid
    with suppress(OSError, ValueError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                yield from descendants(int(child))


def weight(roots: list[int]) -> int:
    """KiB of all these and what they started."""
    own = 0
    shared: dict[str, int] = {}
    for pid in {found for root in roots for found in descendants(root)}:
        with suppress(OSError, ValueError):
            text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
            values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
            own += _kib(values, "RssAnon") + _kib(values, "RssShmem")
            program = os.readlink(f"/proc/{pid}/exe")
            shared[program] = max(shared.get(program, 0), _kib(values, "RssFile"))
    return own + sum(shared.values())


def _kib(values: dict[str, str], name: str) -> int:
    return int(values.get(name, "0 kB").split()[0])


def heaviest(waiting: int, argvs: list[list[str]], environment: dict[str, str]) -> int:
    """KiB of the waiting process and of these commands at their heaviest moment."""
    processes = [
        subprocess.Popen(
            argv, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for argv in argvs
    ]  # fmt: skip
    most = 0
    while any(process.poll() is None for process in processes):
        most = max(most, weight([waiting, *(process.pid for process in processes)]))
        time.sleep(_PAUSE)
    return most


def main() -> None:
    """Print a table."""
    from tests.conformance.private_node import PrivateNode
    from tests.conformance.shapes import BY_NAME
    from tests.tools.runtimes import load

    rounds = int(sys.argv[1]) if sys.argv[1:] else 3
    runtime = load().runtimes[-1]
    shape = BY_NAME["kubeadm-v3" if runtime.generation >= "2" else "kubeadm-v2"]
    with PrivateNode(runtime, shape) as node, tempfile.NamedTemporaryFile() as log:
        words = [*node._mounts.prefix, sys.executable, "-m", "agent"]
        environment = node._environment()
        run = subprocess.Popen(
            [*words, "run", *node._options()], env=environment, cwd=ROOT, stderr=log
        )
        try:
            while not (node.validations / "toolkit-ready").exists():
                time.sleep(0.1)
            time.sleep(3)
            print(f"{runtime.name} {runtime.version}; waiting: {weight([run.pid]) / 1024:.0f} MiB")
            for name, command in (
                ("status", ["status"]),
                ("plan of a change", ["plan", "--set-as-default=true"]),
            ):
                argv = [*words, *command, *node._options()]
                for number in (1, 2, 4):
                    most = max(
                        heaviest(run.pid, [argv] * number, environment) for _ in range(rounds)
                    )
                    print(f"{number} x {name}: {most / 1024:.0f} MiB")
        finally:
            run.terminate()
            run.wait()


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    assert os.geteuid() == 0, "a real containerd needs root"
    main()
