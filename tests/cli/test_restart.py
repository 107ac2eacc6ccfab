"""A runtime that does not come back as desired gets its old files back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.cli_node import CliNode, Refusal, fails, refuses, shows, tells
from tests.conformance import checks, statusfile
from tests.conformance.trees import contents, touched

versions = pytest.mark.parametrize("version", ["1.7.24", "2.1.9"])


@versions
def test_runtime_that_dies_on_the_new_configuration_gets_the_old_one(
    version: str, tmp_path: Path
) -> None:
    """Exit 5, the old bytes and a runtime on them; the same is refused until something changes."""
    with CliNode(tmp_path, version) as node:
        before, answer = node.tree(), node.answer()
        node.script(die_when={"handler": "nvidia"})
        fails(node.agent("apply"), 5, "the old configuration is back and proven")
        assert contents(node.tree()) == contents(before)
        assert node.answer() == answer
        assert node.ready() is None
        tells(node, 5, "ROLLED_BACK")

        starts, before = node.supervisor.starts, node.tree()
        fails(node.agent("apply"), 3, "failed before", "apply --retry")
        assert touched(before, node.tree()) == []
        assert node.supervisor.starts == starts
        tells(node, 3, "CANDIDATE_FAILED")
        found = shows(node.agent("status", "-o", "json"), "Status", 1)
        assert found["transaction"]["failed"]

        node.script()
        checks.done(node.agent("apply", "--retry"))  # as the message says
        assert node.ready()
        assert node.error() == {}


@contextmanager
def bad_after_restart(node: CliNode, **faults: Any) -> Iterator[None]:
    """The first new process of the runtime misbehaves, the one after it does not."""

    def watch() -> None:
        runtime = node.supervisor
        if runtime.wait_until(lambda s: s.starts >= 2):
            node.script(**faults)
        if runtime.wait_until(lambda s: s.starts >= 3):
            node.script()

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()


BAD = {
    "handler is missing": ({"drop_handler": True}, "handler nvidia is missing"),
    "not ready": ({"runtime_ready": False}, "RuntimeReady is false"),
    "no CRI": ({"unimplemented": True}, "does not serve CRI"),
    "silent": ({"silent": True}, "no answer in time"),
    "another default": ({"default": "nvidia-cdi"}, "the default runtime is nvidia-cdi"),
}


@pytest.mark.parametrize(("fault", "names"), BAD.values(), ids=BAD)
def test_runtime_that_comes_back_otherwise_is_rolled_back(
    node: CliNode, fault: dict[str, Any], names: str
) -> None:
    """Not as wanted after the restart: exit 5, old bytes, and the runtime proven on them."""
    before, answer = node.tree(), node.answer()
    with bad_after_restart(node, **fault):
        fails(node.agent("apply", "--set-as-default=true", "--proof-timeout=2"), 5, names)
    assert contents(node.tree()) == contents(before)
    assert node.answer() == answer
    assert node.ready() is None
    assert node.supervisor.starts == 3
    tells(node, 5, "ROLLED_BACK", names)


def test_runtime_that_dies_of_native_cdi_is_configured_without_it(tmp_path: Path) -> None:
    """containerd 1.7 that dies of enable_cdi: rolled back, then decided again without it."""
    with CliNode(tmp_path, "1.7.24") as node:
        node.script(die_when={"enable_cdi": True})
        checks.done(node.agent("apply"))
        answer = node.answer()
        assert (answer.cdi, answer.default) == (False, "nvidia")
        values = statusfile.parse((node.ready() or b"").decode())
        assert values["TOOLKIT_NATIVE_CDI"] == "false"
        assert values["TOOLKIT_NATIVE_CDI_REASON"] == "disabled"
        assert values["DEVICE_LIST_STRATEGY"] == "cdi-annotations"
        assert node.error() == {}

        before, starts = node.tree(), node.supervisor.starts
        checks.done(node.agent("apply"))
        assert touched(before, node.tree()) == [], "it is not tried again on a node that works"
        assert node.supervisor.starts == starts


def test_trial_start_that_fails_with_native_cdi_costs_no_restart(tmp_path: Path) -> None:
    """The same, found by the trial start: the runtime is restarted once, for what works."""
    with CliNode(tmp_path, "1.7.24") as node:
        node.script(die_when={"enable_cdi": True}, in_trial={"die_when": {"enable_cdi": True}})
        found = shows(node.agent("plan", "-o", "json"), "Plan", 1)
        assert found["decision"]["row"] == 5
        checks.done(node.agent("apply"))
        answer = node.answer()
        assert (answer.cdi, answer.default) == (False, "nvidia")
        assert node.supervisor.starts == 2
        checks.done(node.agent("apply"))
        assert node.supervisor.starts == 2


def test_configuration_that_fails_its_trial_start_is_refused(node: CliNode) -> None:
    """A trial start shows it: exit 3, nothing is touched, and what is wrong is not remembered."""
    node.script(in_trial={"die_when": {"handler": "nvidia"}})
    refuses(node, Refusal(3, "does not start on the new configuration", "TRIAL_FAILED"),
            commands=("apply", "apply"))  # fmt: skip
    found = shows(node.agent("plan", "-o", "json"), "Plan", 1)
    assert not found["trial"]["note"].endswith("serves the CRI")
    assert any("apply refuses" in text for text in found["warnings"])
    node.script()
    checks.done(node.agent("apply"))


def test_handler_missing_after_a_trial_start_is_refused(node: CliNode) -> None:
    """The runtime would start, and not be as it has to be."""
    node.script(in_trial={"drop_handler": True})
    refuses(node, Refusal(3, "handler nvidia is missing", "TRIAL_FAILED"), commands=("apply",))


def test_restart_that_never_comes_exits_with_6(node: CliNode) -> None:
    """Nothing starts the runtime again: exit 6, old bytes on disk for when something does."""
    before = node.tree()
    node.supervisor.delay = None
    fails(node.agent("apply", "--proof-timeout=1"), 6, "cannot bring the runtime back")
    assert contents(node.tree()) == contents(before)
    assert node.ready() is None
    tells(node, 6, "ROLLBACK_FAILED")
    fails(node.agent("apply", "--proof-timeout=1"), 6)

    node.supervisor.delay = 0.05
    node.answer()
    result = node.agent("revert")
    checks.done(result)
    assert contents(node.tree()) == contents(before)


@versions
def test_restart_by_others_is_proven_by_the_next_apply(version: str, tmp_path: Path) -> None:
    """With `none`: written and not ready, exit 0; after the restart the next apply commits."""
    none = "--restart-mode=none"
    with CliNode(tmp_path, version) as node:
        before = node.tree()
        found = shows(node.agent("apply", none, "-o", "json"), "Outcome")
        assert found["pending"]
        assert found["changed"]
        written = node.tree()
        for _ in range(2):
            assert node.ready() is None
            assert node.error()["TOOLKIT_ERROR_CODE"] == "RESTART_PENDING"
            assert node.error()["TOOLKIT_ERROR_EXIT"] == "0"
            (node.validations / statusfile.READY).touch()  # it goes again
            checks.done(node.agent("apply", none))
            assert touched(written, node.tree()) == []
        status = shows(node.agent("status", none, "-o", "json"), "Status", 1)
        assert status["transaction"]["unfinished"] == "apply (awaiting-restart)"

        node.restart()
        found = shows(node.agent("apply", none, "-o", "json"), "Outcome")
        assert (found["pending"], found["recovered"]) == (False, "committed")
        assert node.ready()
        assert node.error() == {}
        # The copies that an undo would have renamed into place are gone.
        kept = {path: entry for path, entry in written.items() if not path.endswith("~")}
        assert contents(node.tree()) == contents(kept)

        checks.done(node.agent("revert", none))
        assert node.config.read_bytes() == before["config.toml"].content
        assert not node.drop_in.exists()
        node.restart()
        checks.done(node.agent("revert", none))
        assert contents(node.tree()) == contents(before)
        assert not list((node.state / "originals").iterdir())
        assert node.ready() is None
        assert node.supervisor.starts == 3


def test_waiting_is_given_up_for_another_wish(node: CliNode) -> None:
    """Other options while a restart is awaited: undone, then done as asked now."""
    checks.done(node.agent("apply", "--restart-mode=none"))
    checks.done(node.agent("apply", "--set-as-default=true"))
    assert node.settled().default == "nvidia"
    assert node.ready()


def test_revert_before_the_restart_restarts_nothing(node: CliNode) -> None:
    """What no runtime has seen is undone without a restart."""
    before = node.tree()
    checks.done(node.agent("apply", "--restart-mode=none"))
    checks.done(node.agent("revert", "--restart-mode=none"))
    assert contents(node.tree()) == contents(before)
    assert node.supervisor.starts == 1
    assert node.error() == {}


def test_explicit_signal_needs_a_containerd(node: CliNode) -> None:
    """`auto` without a systemd unit is refused before anything is touched, saying what to give."""
    before = node.tree()
    fails(node.agent("apply", "--restart-mode=auto"), 3, "--restart-mode=signal")
    assert touched(before, node.tree()) == []
    assert node.supervisor.starts == 1
    tells(node, 3, "REFUSED")


def test_missing_file_of_a_right_runtime_is_written_without_a_restart(node: CliNode) -> None:
    """The runtime is right and only a file is gone: it is written, and nothing is restarted."""
    checks.done(node.agent("apply"))
    right, ready = contents(node.tree()), node.ready()
    node.drop_in.unlink()
    checks.done(node.agent("plan"), 1)
    checks.done(node.agent("apply"))
    assert contents(node.tree()) == right
    assert node.ready() == ready
    assert node.supervisor.starts == 2


def test_no_runtime_config_publishes_and_writes_nothing(node: CliNode) -> None:
    """The decision is published; no file is written and nothing is restarted."""
    before = node.tree()
    checks.done(node.agent("apply", env={"NO_RUNTIME_CONFIG": "true"}))
    assert touched(before, node.tree()) == []
    assert node.ready()
    assert node.supervisor.starts == 1
