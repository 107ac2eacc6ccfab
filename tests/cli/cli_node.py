"""A node for black box tests of the command line: the scripted containerd and private directories.

    with CliNode(tmp_path) as node:
        refuses(node, Refusal(3, "config.toml"))

The runtime and the program under test get no environment but what a test names, and every path of
theirs is below `tmp_path`.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.conformance import checks, cri, statusfile
from tests.conformance.program import AgentNode
from tests.conformance.shapes import BINARIES, HOOK
from tests.conformance.trees import touched
from tests.doubles.containerd.double_node import DoubleNode
from tests.doubles.containerd.sample import SECTIONS, handler


class CliNode(AgentNode, DoubleNode):
    """A node on which a scripted containerd of that version runs, from entering to leaving.

    The root file is `etc/config.toml`; `text` is what it has besides the daemon's private places.
    """

    def __init__(self, directory: Path, version: str = "2.1.9", text: str | None = None) -> None:
        self.etc = directory / "etc"
        self.etc.mkdir()
        super().__init__(directory, version)
        self.config.unlink()
        self.config = self.etc / "config.toml"
        self.argv[-1] = str(self.config)
        self.section = SECTIONS[2 if version.startswith("1") else 3]
        self.write(handler("runc", self.section) if text is None else text)
        self.drop_in = self.etc / "conf.d/99-nvidia.toml"
        self.toolkit = directory / "nvidia/toolkit"
        self.validations = directory / "validations"
        self.state = directory / "agent-state"
        self.toolkit.mkdir(parents=True)
        self.validations.mkdir()
        for name in (*BINARIES.values(), HOOK):
            (self.toolkit / name).touch(0o755)
        self.supervisor = self.run()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(self.supervisor)
            cri.wait(self.socket)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def own_options(self) -> Mapping[str, object]:
        """Options that every command is told on this kind of node, by name."""
        return {"restart-mode": "signal"}

    def answer(self) -> cri.Answer:
        """What the runtime answers once it does."""
        found = cri.wait(self.socket)
        assert found is not None
        return found

    def restart(self) -> None:
        """Restart the runtime, as somebody else would."""
        starts = self.supervisor.starts
        self.supervisor.send(signal.SIGTERM)
        assert self.supervisor.wait_until(lambda s: s.starts > starts)
        self.answer()

    def settled(self) -> cri.Answer:
        """The answer of a runtime that may just have been told to end."""
        time.sleep(0.2)
        return self.answer()

    def ready(self) -> bytes | None:
        """The bytes of `toolkit-ready`, None where it is not there."""
        ready, twin = (self.validations / n for n in (statusfile.READY, statusfile.TWIN))
        assert ready.exists() == twin.exists()
        if not ready.exists():
            return None
        assert ready.read_bytes() == twin.read_bytes()
        return ready.read_bytes()


@dataclass(frozen=True)
class Refusal:
    """How a command has to end: the exit code, what the line names, and the code that is told
    beside `toolkit-ready` (None where nothing can be told there). `early`: a plan fails, too."""

    code: int
    names: str
    told: str | None = "REFUSED"
    early: bool = False


def fails(result: subprocess.CompletedProcess[str], code: int, *names: str) -> None:
    """It ended with that exit code and one line that starts with "cannot" and names these, or one
    of a log that has it."""
    assert result.returncode == code, checks.said(result)
    assert "Traceback" not in result.stdout + result.stderr
    texts = [error_of(line) for line in result.stderr.splitlines()]
    lines = [text for text in texts if text.startswith("cannot ")]
    assert len(lines) == 1, checks.said(result)
    for name in names:
        assert name in lines[0], checks.said(result)


def is_refused(
    command: str, result: subprocess.CompletedProcess[str], code: int, *names: str
) -> None:
    """The command fails; a plan shows why `apply` would refuse."""
    if command == "plan" and code == 3:
        for name in names:
            checks.foresees(result, name)
    else:
        fails(result, code, *names)


def error_of(line: str) -> str:
    """The error in a line of the log; another line as it is."""
    try:
        return str(json.loads(line).get("error", ""))
    except (ValueError, AttributeError):
        return line


def refuses(
    node: CliNode,
    refusal: Refusal,
    *options: str,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    commands: Sequence[str] = ("plan", "apply", "apply"),
) -> None:
    """Every command, run again too, ends as it must, says so, and touches nothing.

    The files keep bytes, modes, owners and times, the runtime is the same process with the same
    answer, and what was published stays.
    """
    before, ready = node.tree(), node.ready()
    pid, starts = node.supervisor.pid, node.supervisor.starts
    for command in commands:
        result = node.agent(command, *options, env=env, prefix=prefix)
        is_refused("" if refusal.early else command, result, refusal.code, refusal.names)
        assert touched(before, node.tree()) == [], checks.said(result)
        assert node.ready() == ready
        if command == "apply" and refusal.told:
            tells(node, refusal.code, refusal.told, refusal.names)
    assert (node.supervisor.pid, node.supervisor.starts) == (pid, starts)
    assert node.supervisor.running


def tells(node: CliNode, code: int, word: str, names: str = "") -> None:
    """The failure is told beside `toolkit-ready`, with its reason."""
    error = node.error()
    assert (error.get("TOOLKIT_ERROR_CODE"), error.get("TOOLKIT_ERROR_EXIT")) == (word, str(code))
    reason = error["TOOLKIT_ERROR_REASON"]
    assert reason.startswith("cannot_")
    assert re.sub(r"[^A-Za-z0-9_./:,@%+=-]", "_", names) in reason


def shows(result: subprocess.CompletedProcess[str], kind: str, code: int = 0) -> Mapping[str, Any]:
    """The JSON document of that kind that a command printed."""
    assert result.returncode == code, checks.said(result)
    data: Mapping[str, Any] = json.loads(result.stdout)
    assert (data["apiVersion"], data["kind"]) == ("toolkit-agent/v1", kind)
    return data
