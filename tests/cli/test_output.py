"""Commands print the same data as JSON and as YAML; `config` prints every option."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent import __version__
from agent.host import lock
from tests.cli.cli_node import CliNode, fails, shows
from tests.conformance import checks
from tests.conformance.trees import touched
from tests.tools import forked


def both(node: CliNode, command: str, kind: str, code: int = 0) -> Any:
    """The data of a command that changes nothing, the same in both forms."""
    data = shows(node.agent(command, "-o", "json"), kind, code)
    result = node.agent(command, "-o", "yaml")
    assert result.returncode == code, checks.said(result)
    assert yaml.safe_load(result.stdout) == data
    assert list(yaml.safe_load(result.stdout)) == list(data)
    return data


def test_every_command_speaks_yaml(node: CliNode) -> None:
    """Before, during and after."""
    assert both(node, "plan", "Plan", 1)["changes"]
    assert both(node, "status", "Status", 1)["ready"] is False
    done = yaml.safe_load(node.agent("apply", "-o", "yaml").stdout)
    assert (done["apiVersion"], done["kind"]) == ("toolkit-agent/v1", "Outcome")
    assert (done["restarted"], str(node.drop_in) in done["changed"]) == (True, True)
    assert both(node, "apply", "Outcome")["changed"] == []
    assert both(node, "status", "Status")["ready"] is True
    assert both(node, "plan", "Plan")["changes"] == []
    undone = yaml.safe_load(node.agent("revert", "--output=yaml").stdout)
    assert (undone["kind"], undone["restarted"]) == ("Reverted", True)
    assert both(node, "revert", "Reverted")["changed"] == []
    assert both(node, "config", "Config")["options"]


def config(*options: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `config` where there is no runtime."""
    variables = {"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
    return forked.run(forked.AGENT, ["config", *options], variables, Path.cwd())


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_config_names_every_origin(form: str) -> None:
    """Default, command line, or the variable that won; values are those in force, typed."""
    result = config(
        "--proof-timeout=5s", "--socket=unix:///x.sock", "-o", form,
        env={"ROOT": "/r", "DRIVER_ROOT": "/d", "NVIDIA_DRIVER_ROOT": "/n", "NO_DAEMON": "1",
             "AGENT_PROOF_TIMEOUT": "7", "KUBELET_VERSION": "v1.30.2",
             "AGENT_DEVICE_LIST_STRATEGY": "envvar, cdi-cri"},
    )  # fmt: skip
    checks.done(result)
    found = yaml.safe_load(result.stdout)
    assert (found["apiVersion"], found["kind"]) == ("toolkit-agent/v1", "Config")
    options = {item["option"]: (item["value"], item["origin"]) for item in found["options"]}
    assert options["--proof-timeout"] == (5.0, "command line")
    assert options["--socket"] == ("/x.sock", "command line")
    assert options["--toolkit-install-dir"] == ("/r", "ROOT")
    assert options["--driver-root"] == ("/n", "NVIDIA_DRIVER_ROOT")
    assert options["--no-daemon"] == (True, "NO_DAEMON")
    assert options["--kubelet-version"] == ("1.30", "KUBELET_VERSION")
    assert options["--device-list-strategy"] == (
        ["envvar", "cdi-cri"],
        "AGENT_DEVICE_LIST_STRATEGY",
    )
    assert options["--cdi-enabled"] == (True, "default")
    assert options["--config"] == (None, "default")
    variables = {item["option"]: item["environment"] for item in found["options"]}
    assert variables["--toolkit-install-dir"] == ["TOOLKIT_INSTALL_DIR", "ROOT"]


def test_config_prints_one_line_per_option() -> None:
    """One line per option; an option that is accepted without effect is a warning."""
    result = config("--cdi-output-dir=", "--use-legacy-config", env={"CDI_ENABLED": "false"})
    checks.done(result)
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in result.stdout.splitlines()}
    assert rows["OPTION"] == ["VALUE", "ORIGIN"]
    assert rows["--cdi-output-dir"] == ['""', "command line"]
    assert rows["--cdi-enabled"] == ["false", "CDI_ENABLED"]
    assert rows["--enable-cdi-in-runtime"] == ["false", "default"]
    assert rows["--socket"] == ["-", "default"]
    assert "--use-legacy-config" not in rows
    assert "--use-legacy-config is accepted, but has no effect" in result.stderr


def test_config_refuses_what_makes_no_sense() -> None:
    """As every command does, naming the variable."""
    result = config(env={"CDI_ENABLED": "perhaps"})
    checks.refused(result, 2, "CDI_ENABLED=perhaps")
    assert "cannot use the command line" in config("-o", "xml").stderr
    assert json.loads(config("-o", "json").stdout)["kind"] == "Config"


STREAMS = {
    "full output": (">/dev/full", 1),
    "closed output": (">&-", 0),
    "full log": ("2>/dev/full", 0),
    "closed log": ("2>&-", 0),
    "all closed": ("<&- >&- 2>&-", 0),
}


@pytest.mark.parametrize(("streams", "code"), STREAMS.values(), ids=STREAMS.keys())
def test_streams_are_in_no_change_s_way(node: CliNode, streams: str, code: int) -> None:
    """What cannot be told is done all the same, and no file of the node takes a stream's place."""
    shell = ("/bin/sh", "-c", f'exec "$@" {streams}', "sh")
    for command in ("apply", "apply", "revert"):
        result = node.agent(command, prefix=shell)
        assert result.returncode == code, checks.said(result)
        assert "Traceback" not in result.stderr
        if code:
            assert "cannot write the output: no space left on device" in result.stderr
        assert bool(node.ready()) == (command == "apply")
    assert b"Runtime" not in b"".join(p.read_bytes() for p in node.etc.rglob("*") if p.is_file())


@pytest.mark.parametrize("command", ["--help", "--version", "config", "config -o yaml"])
def test_full_disk_ends_help_with_one_line(command: str) -> None:
    """One line, whoever writes."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >/dev/full', "sh", sys.executable, "-m", "agent",
         *command.split()],
        env={"PATH": os.defpath}, stderr=subprocess.PIPE, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("cannot write the output: ")
    assert len(done.stderr.splitlines()) == 1


def test_exit_code_tells_an_error_that_cannot_be_printed() -> None:
    """It is what is left."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" 2>/dev/full', "sh", sys.executable, "-m", "agent", "nope"],
        env={"PATH": os.defpath}, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2


def test_dry_run_is_a_plan(node: CliNode) -> None:
    """In what it prints and in its exit code; nothing is written."""
    before = node.tree()
    for code in (1, 0):
        planned, dry = node.agent("plan", "-o", "json"), node.agent("apply", "--dry-run", "-o=json")
        assert (dry.returncode, planned.returncode) == (code, code)
        assert json.loads(dry.stdout) == json.loads(planned.stdout)
        if code:
            assert touched(before, node.tree()) == []
            checks.done(node.agent("apply"))


def test_apply_and_revert_wait_for_the_lock(node: CliNode) -> None:
    """Until its holder is gone, or until the time is over."""
    node.state.mkdir(exist_ok=True)
    for command in ("apply", "revert"):
        with lock.held(str(node.state / "lock")):
            fails(node.agent(command, "--wait-lock=1s"), 7, "another toolkit-agent")
    with ThreadPoolExecutor(1) as pool:
        with lock.held(str(node.state / "lock")):
            waiting = pool.submit(node.agent, "apply", "--wait-lock")
            time.sleep(2)
            assert not waiting.done()
        checks.done(waiting.result(60))
        assert "waiting for the lock" in waiting.result().stderr


def test_version_says_what_a_report_needs() -> None:
    """As a table and as a document, and without a node."""

    def said(*words: str) -> str:
        return forked.run(forked.AGENT, words, {}, Path.cwd()).stdout

    found = yaml.safe_load(said("version", "-o", "yaml"))
    assert (found["kind"], found["agent"], found["cri"]) == ("Version", __version__, "runtime.v1")
    assert said("version").splitlines()[0].split() == ["agent:", __version__]
    assert said("--version").split()[-1] == __version__


@pytest.mark.parametrize("command", ["plan", "status", "doctor", "apply"])
def test_v_logs_what_was_seen_and_what_follows(node: CliNode, command: str) -> None:
    """The options that were given, what the decision is made from, and the decision."""
    quiet = node.agent(command)
    assert '"level": "debug"' not in quiet.stderr
    found = {line["event"]: line for line in map(json.loads, _logged(node.agent(command, "-v")))}
    assert str(node.socket) in found["options"]["socket"]
    assert found["runtime observed"]["socket"] == str(node.socket)
    assert found["decided"]["row"] == 3
    assert all(line["transaction"] for line in found.values())


def _logged(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("{")]
