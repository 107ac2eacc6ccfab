"""`run` keeps the node right, reports readiness truthfully and ends when told."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from tests.cli.cli_node import CliNode, fails, tells
from tests.cli.daemon import files, has_handler, published, running, settle
from tests.conformance import checks, statusfile
from tests.tools.waiting import wait_until


class Watcher:
    """Sees to it that `toolkit-ready` never appears while the runtime has not our handler."""

    def __init__(self, node: CliNode) -> None:
        self.node = node
        self.lies: list[str] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _watch(self) -> None:
        ready, there = self.node.validations / statusfile.READY, False
        while not self._ending.wait(0.005):
            before, there = there, ready.exists()
            if there and not before and not has_handler(self.node):
                self.lies.append(f"toolkit-ready without the handler at {time.time()}")


def _without_import(node: CliNode) -> None:
    lines = node.config.read_text().splitlines(keepends=True)
    node.config.write_text("".join(line for line in lines if not line.startswith("imports")))


def _without_handler(node: CliNode) -> None:
    text = node.drop_in.read_text()
    head, section = text.split("\n[", 1)
    assert "nvidia" in section
    node.drop_in.write_text(head)


def _restart(node: CliNode) -> None:
    starts = node.supervisor.starts
    node.supervisor.send(signal.SIGTERM)
    assert node.supervisor.wait_until(lambda s: s.starts > starts)


def _replace_socket(node: CliNode) -> None:
    other = node.socket.with_suffix(".new")
    node.socket.rename(other)
    time.sleep(0.6)
    other.rename(node.socket)


DISTURBANCES: dict[str, Callable[[CliNode], object]] = {
    "drop-in removed": lambda node: node.drop_in.unlink(),
    "drop-in without a handler": _without_handler,
    "root file without our import": _without_import,
    "root file touched": lambda node: os.utime(node.config),
    "runtime restarted": _restart,
    "socket replaced": _replace_socket,
    "status file emptied": lambda node: (node.validations / statusfile.READY).write_bytes(b""),
    "status file removed": lambda node: (node.validations / statusfile.READY).unlink(),
    "twin removed": lambda node: (node.validations / statusfile.TWIN).unlink(),
    "toolkit changed": lambda node: (node.toolkit / "nvidia-cdi-hook").write_bytes(b"#!"),
}


def test_node_is_kept_right(node: CliNode) -> None:
    """Ten disturbances: right again within 5 s each, and ready is never said before it is true."""
    with Watcher(node) as watcher, running(node) as daemon:
        settle(daemon)
        wanted, said = files(node), published(node)
        for name, disturb in DISTURBANCES.items():
            disturb(node)
            daemon.until(
                lambda: files(node) == wanted and published(node) == said and has_handler(node)
            )
            settle(daemon)
            assert files(node) == wanted, name
        daemon.process.send_signal(signal.SIGHUP)
        daemon.until(lambda: not daemon.idle())
        settle(daemon)
        assert node.error() == {}
        assert node.supervisor.starts == 3, "the first restart, and the one that was not ours"
        daemon.end()
        assert published(node) == said
    assert watcher.lies == []


def test_fight_with_another_program_ends_after_three_restarts(node: CliNode) -> None:
    """The failure is told, the runtime is left alone, and a person is not limited."""
    original = node.config.read_bytes()
    with running(node) as daemon:
        settle(daemon)
        for _ in range(2):
            node.config.write_bytes(original)
            node.restart()
            daemon.until(lambda: has_handler(node))
            settle(daemon)
        node.config.write_bytes(original)
        node.restart()
        daemon.until(lambda: node.error().get("TOOLKIT_ERROR_CODE") == "RESTART_BUDGET")
        tells(node, 3, "RESTART_BUDGET", str(node.config))
        daemon.process.send_signal(signal.SIGHUP)
        daemon.until(lambda: not daemon.idle())
        daemon.until(daemon.idle)
        assert node.config.read_bytes() == original
        assert node.supervisor.starts == 7
        daemon.end()
    checks.done(node.agent("apply"))
    assert has_handler(node)


def test_nothing_is_touched_while_nothing_happens(node: CliNode) -> None:
    """A short interval: convergences come and go, and leave no trace."""
    with running(node, "--interval=1") as daemon:
        settle(daemon)
        ready = node.validations / statusfile.READY
        before = node.tree(), ready.stat().st_ctime_ns, ready.read_bytes()
        for _ in range(2):
            daemon.until(lambda: not daemon.idle())
            daemon.until(daemon.idle)
        assert (node.tree(), ready.stat().st_ctime_ns, ready.read_bytes()) == before


def test_not_ready_while_the_runtime_is_down(node: CliNode) -> None:
    """Withdrawn while it is down, told why, and back when it is."""
    with Watcher(node) as watcher, running(node) as daemon:
        settle(daemon)
        node.supervisor.delay = None
        node.supervisor.send(signal.SIGTERM)
        daemon.until(lambda: not (node.validations / statusfile.READY).exists())
        daemon.until(lambda: bool(node.error()))
        tells(node, 4, "RUNTIME_UNREACHABLE")
        daemon.until(lambda: '"waiting"' in daemon.said())
        node.supervisor.delay = 0.05
        daemon.until(lambda: published(node) is not None and has_handler(node))
        assert node.error() == {}
    assert watcher.lies == []


def test_not_ready_while_the_toolkit_is_gone(node: CliNode) -> None:
    """Handlers that lead nowhere fail every pod; nothing is changed meanwhile."""
    away = node.toolkit.with_name("away")
    with running(node) as daemon:
        settle(daemon)
        before, starts = files(node), node.supervisor.starts
        node.toolkit.rename(away)
        daemon.until(lambda: not (node.validations / statusfile.READY).exists())
        daemon.until(lambda: bool(node.error()))
        tells(node, 3, "NO_TOOLKIT")
        away.rename(node.toolkit)
        daemon.until(lambda: published(node) is not None)
        assert (files(node), node.supervisor.starts) == (before, starts)


def test_first_failure_is_no_end(node: CliNode) -> None:
    """A file that cannot be used is told once and waited for; repaired, the node is made right."""
    good = node.config.read_bytes()
    node.config.write_bytes(good + b"[broken")
    with running(node) as daemon:
        daemon.until(lambda: '"waiting"' in daemon.said())
        tells(node, 3, "REFUSED")
        time.sleep(2.5)  # it has tried again by now
        assert daemon.said().count("cannot read") == 1
        assert node.ready() is None
        node.config.write_bytes(good)
        daemon.until(lambda: published(node) is not None)


def test_stop_during_a_change_finishes_it_first(node: CliNode) -> None:
    """The change is finished first, and the node is right."""
    node.supervisor.delay = 0.5
    with running(node) as daemon:
        daemon.until((node.state / "journal.json").exists)
        daemon.end()
        assert not (node.state / "journal.json").exists()
        assert published(node) is not None
        assert "nvidia" in node.answer().runtimes
        assert node.supervisor.starts == 2


def test_killed_run_leaves_its_child_the_lock(node: CliNode) -> None:
    """Its child finishes under the lock that it inherited; nobody can come between."""
    node.supervisor.delay = 0.5
    with running(node) as daemon:
        daemon.until((node.state / "journal.json").exists)
        daemon.process.kill()
        daemon.process.wait()
        fails(node.agent("apply"), 7, "another toolkit-agent")
        wait_until(lambda: published(node) is not None, daemon.said)
    assert node.supervisor.starts == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_while_waiting_ends_at_once(number: signal.Signals, node: CliNode) -> None:
    """At once, and the node stays as it is; meanwhile nobody else may change it."""
    with running(node) as daemon:
        settle(daemon)
        fails(node.agent("run"), 7, "another toolkit-agent")
        fails(node.agent("apply"), 7, "another toolkit-agent")
        before, said = files(node), published(node)
        daemon.end(number)
        assert (files(node), published(node)) == (before, said)
    checks.done(node.agent("apply"))


def test_usage_error_ends_it(node: CliNode) -> None:
    fails(node.agent("run", "--proof-timeout=never"), 2, "--proof-timeout")
    fails(node.agent("run", "--interval=0"), 2, "--interval")


@pytest.mark.parametrize(
    ("words", "code"),
    [("--interval=0", "USAGE"), ("--no-such", "USAGE"), ("--runtime=crio", "REFUSED")],
)
def test_errors_are_lines_of_the_log(words: str, code: str, node: CliNode) -> None:
    """JSON like all others, with `run` for good and once; those of `apply` are for a person."""
    result = node.agent("run", "--no-daemon", words)
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    last = lines[-1]
    assert (last["event"], last["level"], last["code"]) == ("failed", "error", code)
    assert (last["exit"], last["ready"]) == (result.returncode, False)
    assert last["error"].startswith("cannot ")
    assert node.agent("apply", words).stderr.splitlines()[-1].startswith("cannot ")


def test_each_convergence_ends_with_a_summary_line(node: CliNode) -> None:
    """With a change, and when there was nothing to do."""
    found = []
    for _ in range(2):
        result = node.agent("run", "--no-daemon")
        checks.done(result)
        found.append(json.loads(result.stderr.splitlines()[-1]))
    for line in found:
        del line["ts"], line["transaction"]
    assert found[1] == {
        "runtime": "containerd", "version": "2.1.9+unknown", "row": 3, "native": True,
        "default": "runc", "ready": True, "done": "nothing to do", "changed": [],
        "event": "converged", "level": "info",
    }  # fmt: skip
    assert found[0]["done"].endswith("files, restarted the runtime")
    assert str(node.drop_in) in found[0]["changed"]


def test_run_without_daemon_applies_once(node: CliNode) -> None:
    """With --no-daemon it is `apply` without a report."""
    checks.done(node.agent("run", "--no-daemon"))
    assert node.ready()


def test_child_gets_the_options(node: CliNode) -> None:
    """Those of the command line; the environment is inherited."""
    with running(node, "--set-as-default", "--runtime-name=gpu") as daemon:
        daemon.until(lambda: published(node) is not None)
        assert node.answer().default == "gpu"


def test_runtime_that_cannot_be_brought_back_is_left_alone(node: CliNode) -> None:
    """Neither on the new files nor on the old ones does it serve the CRI: exit 6, and it is not
    restarted for that again. Whoever brings it back ends the matter, without another restart."""
    runtime = node.supervisor

    def fail_from_the_first_restart_on() -> None:
        if runtime.wait_until(lambda s: s.starts >= 2):
            node.script(unimplemented=True)

    thread = threading.Thread(target=fail_from_the_first_restart_on)
    thread.start()
    with running(node) as daemon:
        daemon.until(lambda: node.error().get("TOOLKIT_ERROR_EXIT") == "6")
        thread.join()
        assert runtime.starts == 3
        for _ in range(2):
            daemon.process.send_signal(signal.SIGHUP)
            daemon.until(lambda: not daemon.idle())
            daemon.until(daemon.idle)
        assert runtime.starts == 3, daemon.said()
        assert daemon.said().count("unfinished change found") == 1
        node.script()
        node.restart()
        daemon.until(lambda: node.error().get("TOOLKIT_ERROR_CODE") == "CANDIDATE_FAILED")
        assert runtime.starts == 4, daemon.said()
