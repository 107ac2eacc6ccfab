"""Words of a neighbour in what `doctor` prints to root's terminal.

The attacker has a pod, whose processes the host sees. One calls itself the device plugin, and has
escape sequences in its settings; one calls itself the kubelet, and names a socket of its own, so
that root gives that to the agent. What must hold: no control character reaches the terminal, and
nobody but a service of the host is the kubelet.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cli.cli_node import CliNode
from tests.cli.test_doctor import base, restart

_SLEEP = "import time; print('up', flush=True); time.sleep(60)"


@contextmanager
def process(name: str, *words: str) -> Iterator[None]:
    """A process that calls itself so, and has these words on its command line."""
    argv = [name, "-c", _SLEEP, *words]
    with subprocess.Popen(argv, executable=sys.executable, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            yield
        finally:
            child.kill()


def said(*words: str) -> str:
    """What doctor prints beside such a process."""
    with tempfile.TemporaryDirectory(prefix="d") as name, CliNode(Path(name)) as node:
        restart(node, base(node))
        with process(*words):
            return node.agent("doctor").stdout


def test_no_control_character_of_a_plugin_reaches_the_terminal() -> None:
    """The strategy clears the screen, and writes a good result there."""
    text = said(
        "nvidia-device-plugin", "--device-list-strategy=cdi-annotations,\x1b[2Jok: no fault",
        "--cdi-annotation-prefix=x\x9b2J",
    )  # fmt: skip
    assert "nobody answers annotations x" in text
    assert not [char for char in text if char != "\n" and not char.isprintable()]


def test_kubelet_of_a_neighbour_names_no_socket() -> None:
    """It is no service of the host."""
    assert "/tmp/evil.sock" not in said(
        "kubelet", "--container-runtime-endpoint=unix:///tmp/evil.sock", "--cgroup-driver=systemd"
    )
