"""What users of such tools suffer from, as it cannot happen here.

`tests/reported.py` has the table of all pains, with the tests that answer each.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import crio
from tests.cli.cli_node import CliNode
from tests.cli.daemon import running, settle
from tests.cli.test_doctor import head, table
from tests.conformance import checks
from tests.conformance.trees import contents
from tests.doubles.containerd.sample import handler

VERSIONS = ("1.6.20", "1.7.24", "2.1.9")


@pytest.mark.parametrize("version", VERSIONS)
def test_p4_rewritten_configuration_is_repaired_with_one_restart(place: Path, version: str) -> None:
    """A tool of the cluster writes its own file again; `run` repairs it once, and then rests."""
    with CliNode(place, version) as node:
        first = node.config.read_text()
        with running(node) as daemon:
            settle(daemon)
            starts = node.supervisor.starts
            node.config.write_text(first)
            node.restart()
            daemon.until(lambda: "nvidia" in node.answer().runtimes)
            settle(daemon)
            assert node.supervisor.starts == starts + 2  # theirs, and one of ours


def test_p5_nothing_restarts_a_right_runtime(place: Path) -> None:
    """A pod that is created again and again, other settings of the pod, a file that says the same
    in other words: no restart, and no write."""
    with CliNode(place) as node:
        checks.done(node.agent("apply"))
        starts, before = node.supervisor.starts, node.tree()
        for env in ({}, {"CONTAINERD_RESTART_MODE": "signal"}, {"LOG_LEVEL": "debug"}):
            with running(node) as daemon:
                settle(daemon)
            checks.done(node.agent("apply", env=env))
        assert node.tree() == before
        node.config.write_text(f"# somebody's comment\n{node.config.read_text()}")
        checks.done(node.agent("apply"))
        assert node.supervisor.starts == starts


@pytest.mark.parametrize("version", VERSIONS)
def test_p6_stopping_is_not_undoing(place: Path, version: str) -> None:
    """`run` ends by SIGTERM: the node works as before, also after a restart of the runtime, and
    `revert` brings back the default of before, which is not runc."""
    text = handler("crun", "plugins.x").replace("plugins.x", "SECTION") + (
        '[SECTION.containerd]\ndefault_runtime_name = "crun"\n'
    )
    with CliNode(place, version) as node:
        node.write((handler("runc", "SECTION") + text).replace("SECTION", node.section))
        node.restart()
        first = contents(node.tree())
        with running(node) as daemon:
            settle(daemon)
            applied, starts = node.tree(), node.supervisor.starts
            daemon.end()
        assert (node.tree(), node.supervisor.starts) == (applied, starts)
        assert node.ready() is not None
        node.restart()
        assert "nvidia" in node.answer().runtimes
        checks.done(node.agent("revert"))
        assert node.answer().default == "crun"
        after = {path: one for path, one in contents(node.tree()).items() if path != "conf.d"}
        assert after == first


def test_p15_systemd_is_never_reloaded(place: Path) -> None:
    """A reload takes GPUs from running containers (gpu-operator#485)."""
    with crio.make(place) as node:
        checks.done(node.agent("apply"))
        checks.done(node.agent("revert"))
        log = node.systemctl_log.read_text()
        assert "restart crio.service" in log
        assert "daemon-reload" not in log


def test_p3_missing_handler_is_named_with_its_file(place: Path) -> None:
    """`no runtime for nvidia is configured`: the file that was written, and is not loaded."""
    with CliNode(place) as node:
        checks.done(node.agent("apply"))
        node.write(table("runc", node.section, "/bin/true"))
        node.restart()
        said = " ".join(head(node).split())
        assert "99-nvidia.toml is there, and the runtime does not load it" in said
        assert "`toolkit-agent apply`" in said
