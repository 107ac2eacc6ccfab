"""What `run` costs while it waits: `python tests/bench/waiting.py [SECONDS]`, 20 by default.

On the scripted containerd; prints the memory of the waiting process and the CPU time it used.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def memory(pid: int) -> str:
    """Resident memory in KiB, all of it and what is nobody else's."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    wanted = ("VmRSS", "RssAnon")
    return ", ".join(" ".join(line.split()) for line in lines if line.startswith(wanted))


def cpu(pid: int) -> float:
    """Milliseconds on a CPU so far."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e6


def children(pid: int) -> list[str]:
    """Pids of its children."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()


def main() -> None:
    """Start a node and `run` on it, let it come to rest, and measure. As root it has a driver."""
    from tests.cli.cli_node import CliNode
    from tests.cli.test_spec import DriverNode
    from tests.tools.driver import make_driver

    seconds = float(sys.argv[1]) if sys.argv[1:] else 20.0
    kind = CliNode if os.geteuid() else DriverNode
    with tempfile.TemporaryDirectory(prefix="node-") as place, kind(Path(place)) as node:
        if isinstance(node, DriverNode):
            make_driver(node.driver)
        process = subprocess.Popen(
            [sys.executable, "-m", "agent", "run", *node.options()],
            env={"PATH": os.defpath}, cwd=place, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while not node.ready():
                time.sleep(0.1)
            time.sleep(5)
            began = cpu(process.pid)
            time.sleep(seconds)
            used = cpu(process.pid) - began
            print(f"memory: {memory(process.pid)}")
            print(f"CPU: {used:.1f} ms in {seconds:.0f} s")
            print(f"children: {len(children(process.pid))}")
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
