"""What a person sees in a terminal of 80 columns and 24 lines."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path

from tests.cli.cli_node import CliNode
from tests.conformance import checks
from tests.tools.runtimes import ROOT

COLOR = re.compile(r"\x1b\[[0-9;]*m")
ERASE = "\r\x1b[2K"
TABLES = ("plan --diff=none", "status", "config", "doctor", "cdi list", "cdi validate")


class Terminal:
    """A command of the agent at a terminal, from entering to its end."""

    def __init__(self, node: CliNode, command: str, *options: str, **env: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        given: Mapping[str, str] = {**node.agent_environment(), "TERM": "xterm", **env}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agent", *command.split(), *node.options(), *options],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True, cwd=ROOT,
            env={key: value for key, value in given.items() if key != "COLUMNS"},
        )  # fmt: skip
        os.close(slave)

    def read(self) -> str:
        """Everything until the end, with plain line ends."""
        parts = []
        while True:
            try:
                parts.append(os.read(self._master, 1 << 16))
            except OSError:  # the end of a terminal
                break
            if not parts[-1]:
                break
        os.close(self._master)
        return b"".join(parts).decode().replace("\r\n", "\n")

    def read_until(self, words: str) -> str:
        """What comes until these words do."""
        seen = b""
        while words.encode() not in seen:
            seen += os.read(self._master, 1 << 16)
        return seen.decode()


def at_terminal(node: CliNode, command: str, *options: str, **env: str) -> tuple[int, str]:
    """The exit code of a command, and what stays on the screen."""
    terminal = Terminal(node, command, *options, **env)
    text = terminal.read()
    lines = [line.rpartition(ERASE)[2] for line in text.split("\n")]
    return terminal.process.wait(30), "\n".join(lines)


def fits(text: str) -> None:
    """No line is wider than the terminal, unless its last word alone is what is too wide."""
    for line in COLOR.sub("", text).splitlines():
        assert len(line) <= 80 or len(line.split()) == 1, line


def test_nothing_is_wider_than_the_terminal(place: Path) -> None:
    """Before and after an apply; a node that is right has its status on one screen."""
    with CliNode(place) as node:
        for command in TABLES:
            fits(at_terminal(node, command)[1])
        code, text = at_terminal(node, "apply")
        assert code == 0, text
        fits(text)
        for command in TABLES:
            code, text = at_terminal(node, command)
            fits(text)
            if command == "status":
                assert code == 0, text
                assert len(text.splitlines()) <= 24


def test_node_that_was_never_configured_is_told_so(place: Path) -> None:
    """In one line, not in twenty of drift; the runtime is shown, also after another failure."""
    with CliNode(place) as node:
        code, text = at_terminal(node, "status", "--color=never")
        assert code == 1
        first = " ".join(text.splitlines()[:2])
        assert first.startswith("Not ready: this node is not configured; run `toolkit-agent apply`")
        assert "is missing" not in text
        _, text = at_terminal(node, "status", f"--toolkit-install-dir={place}/none")
        assert "apply` would refuse" in text
        assert "cannot find the NVIDIA container toolkit" in text
        assert "\nRuntime:   containerd 2.1.9" in text


def test_apply_at_a_terminal_prints_no_log(place: Path) -> None:
    """The result says it all, each warning once; a pipe gets the log as ever."""
    with CliNode(place) as node:
        (node.toolkit / "nvidia-container-runtime.legacy").unlink()
        code, text = at_terminal(node, "apply", "--color=never")
        assert code == 0
        assert text.startswith("Proven:    the runtime was restarted and answers as desired\n")
        assert "['" not in text
        assert "[info" not in text
        assert " ".join(text.split()).count("handler nvidia-legacy is left out") == 1
        done = node.agent("revert")
        checks.done(done)
        assert '"event": "runtime restarted"' in done.stderr
        assert "\r" not in done.stderr + done.stdout


def test_colours_are_for_terminals(place: Path) -> None:
    """NO_COLOR and --color win; a pipe has none."""
    with CliNode(place) as node:
        assert "\x1b[1;31mNot ready:\x1b[0m" in at_terminal(node, "status")[1]
        assert "\x1b" not in at_terminal(node, "status", NO_COLOR="1")[1]
        assert "\x1b" not in node.agent("status").stdout
        assert "\x1b[1;31mNot ready:" in node.agent("status", "--color=always").stdout


def test_step_that_takes_long_is_shown_and_goes(place: Path) -> None:
    """A restart that takes seconds: the line counts them, and is gone at the end."""
    with CliNode(place) as node:
        node.script(delay_start_s=2.5)
        terminal = Terminal(node, "apply", "--color=never", "--proof-timeout=30")
        text = terminal.read()
        assert terminal.process.wait(30) == 0
        assert "proving that the runtime works … 1 s" in text
        assert text.rpartition(ERASE)[2].startswith("Proven:")


def test_watch_shows_a_change_and_ends_by_ctrl_c(place: Path) -> None:
    """With exit code 0, because nothing is wrong with the command."""
    with CliNode(place) as node:
        terminal = Terminal(node, "status --watch", "--color=never")
        terminal.read_until("Not ready:")
        checks.done(node.agent("apply"))
        terminal.read_until("Ready:     the node is configured as decided")
        time.sleep(0.1)
        terminal.process.send_signal(signal.SIGINT)
        terminal.read()
        assert terminal.process.wait(30) == 0


def test_wait_ends_when_the_node_is_ready(place: Path) -> None:
    """With the status; where the time is over, with exit code 1."""
    with CliNode(place) as node:
        result = node.agent("status", "--wait", "--timeout=0.1")
        checks.done(result, 1)
        assert result.stdout.startswith("Not ready:")
        waiting = Terminal(node, "status --wait", "--color=never")
        checks.done(node.agent("apply"))
        assert "Ready:     the node is configured as decided" in waiting.read()
        assert waiting.process.wait(30) == 0


def test_wait_names_the_last_failure(place: Path) -> None:
    """Readable, without the underscores of its file."""
    with CliNode(place) as node:
        checks.done(node.agent("apply", f"--toolkit-install-dir={place}/none"), 3)
        result = node.agent("wait", "--timeout=0")
        checks.done(result, 1)
        assert "the last failure: cannot find the NVIDIA container toolkit" in result.stderr
