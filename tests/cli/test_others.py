"""Edits, other agents, kills, clock changes and reboots in the middle of a command do no harm."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cli.cli_node import fails
from tests.cli.interrupted import Case, OldNode, PlainNode, SpecNode
from tests.conformance import checks, statusfile
from tests.conformance.trees import contents, touched
from tests.doubles.containerd.sample import SECTIONS, handler
from tests.sampling import sampled_params
from tests.tools.waiting import wait_until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root: run as root")


# Before the journal is begun, and when it is there.
_EARLY, _LATE = "..toolkit-ctr-ready", "agent-state/journal.json"


_MOMENTS = sampled_params(
    ["/.99-nvidia", "pidfd", "/cdi/", "journal.json", "memory.json"], 2, "moments"
)


class ImportingNode(PlainNode):
    """A node with a file that its root file imports, and one that nothing imports yet."""

    def text(self, directory: Path) -> str | None:
        return handler("runc", SECTIONS[3])

    def write(self, text: str) -> None:
        super().write(text)
        if not text:
            return
        (self.etc / "conf.d").mkdir()
        (self.etc / "conf.d/10-site.toml").write_text("version = 3\n")
        was = self.config.read_text()
        self.config.write_text(f'imports = ["{self.config.parent}/conf.d/*.toml"]\n{was}')


def edit(path: Path) -> None:
    """An edit by an administrator."""
    path.write_text((path.read_text() if path.exists() else "version = 3\n") + "# admin\n")


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("config.toml", _EARLY),
        ("conf.d/10-site.toml", _LATE),
        ("conf.d/99-nvidia.toml", _EARLY),
        ("conf.d/99-nvidia.toml", _LATE),
        ("conf.d/new.toml", _LATE),
    ],
)
def test_edit_between_plan_and_write_is_refused_and_kept(
    name: str, before: str, place: Path
) -> None:
    """Refused, and the edit is there; the next `apply` builds on it."""
    with ImportingNode(place) as node:
        process = node.start_in_steps("apply", f"stop:@{before}")
        node.stopped(process)
        edit(node.etc / name)
        found, starts = node.tree(), node.supervisor.starts
        fails(node.finish(process), 3, "somebody changed", name)
        assert contents(node.tree()) == contents(found)
        assert node.supervisor.starts == starts
        assert not (node.state / "journal.json").exists()
        checks.done(node.agent("apply"))
        assert "# admin" in (node.etc / name).read_text()
        assert node.ready()
        checks.done(node.agent("revert"))
        assert contents(node.tree()) == contents(found)


def test_edit_while_writing_undoes_the_drop_in(place: Path) -> None:
    """The drop-in is there already when the root file turns out to be another one: it goes."""
    with PlainNode(place) as node:
        process = node.start_in_steps("apply", "stop:@/.99-nvidia")
        node.stopped(process)
        edit(node.config)
        text = node.config.read_bytes()
        fails(node.finish(process), 3, "somebody changed", "config.toml")
        left = contents(node.tree())
        assert sorted(left) == [".", "config.toml"]
        assert node.config.read_bytes() == text
        checks.done(node.agent("apply"))
        checks.done(node.agent("revert"))
        assert contents(node.tree()) == left


@pytest.mark.parametrize("name", ["config.toml", "conf.d/99-nvidia.toml"])
def test_edit_during_the_restart_stays_and_is_reported(name: str, place: Path) -> None:
    """It stays, and is told; `revert` asks before it touches it."""
    with PlainNode(place) as node:
        process = node.start_in_steps("apply", "stop:@pidfd_send")
        node.stopped(process)
        edit(node.etc / name)
        result = node.finish(process)
        checks.done(result)
        assert "file changed since it was written" in result.stderr
        assert str(node.etc / name) in result.stderr
        assert "# admin" in (node.etc / name).read_text()
        assert node.ready()
        fails(node.agent("revert"), 3, name, "--keep-edits")
        checks.done(node.agent("revert", "--keep-edits"))
        assert "nvidia" not in node.answer().runtimes
        assert "# admin" in (node.etc / name).read_text()


@pytest.mark.parametrize("kind", [PlainNode, OldNode])
def test_edit_during_a_failed_restart_stays_and_is_reported(
    kind: type[PlainNode], place: Path
) -> None:
    """It stays, is told (6), and what is ours can still be taken out of it."""
    with kind(place) as node:
        process = node.start_in_steps("apply", "stop:@pidfd_send")
        node.stopped(process)
        edit(node.config)
        node.script(drop_handler=True)
        fails(node.finish(process), 6, "config.toml", "somebody else")
        assert node.ready() is None
        node.script()
        assert "# admin" in node.config.read_text()
        fails(node.agent("revert"), 3, "config.toml", "--keep-edits")
        checks.done(node.agent("revert", "--keep-edits"))
        assert "nvidia" not in node.answer().runtimes
        assert "nvidia" not in node.config.read_text().split("# admin")[0].replace(str(place), "")
        assert node.config.read_text().endswith("# admin\n")


def spellings(node: PlainNode) -> list[str]:
    """Names of the state directory."""
    link = node.directory / "link"
    link.symlink_to(node.state)
    state = str(node.state)
    return [state, f"{state}/", f"{node.directory}/./agent-state", f"{node.etc}/../agent-state",
            str(link)]  # fmt: skip


@pytest.mark.parametrize("first", ["apply", "revert", "run"])
def test_second_agent_at_once_exits_with_7(first: str, place: Path) -> None:
    """The second one ends with 7, however it spells the state directory, and touches nothing."""
    with PlainNode(place) as node:
        case = Case(node)
        names = spellings(node)
        if first == "revert":
            checks.done(node.agent("apply"))
        process = node.start_in_steps(first, "stop:@pidfd_send")
        node.stopped(process)
        found, rest = node.tree(), node.rest()
        # Beside a `run` a revert waits until its change ought to have ended: once is enough.
        again = "run" if first == "run" else "revert"
        for name, command in zip(names, ("apply", "revert", "run", again, "apply"), strict=True):
            fails(
                node.agent(command, f"--state-dir={name}", "--proof-timeout=1"), 7,
                "another toolkit-agent",
            )  # fmt: skip
        assert (touched(found, node.tree()), node.rest()) == ([], rest)
        if first == "run":
            node.go.touch()
            wait_until((node.validations / statusfile.READY).exists)
            process.terminate()
        assert node.finish(process).returncode == 0
        case.recover()


@as_root
@pytest.mark.parametrize("word", _MOMENTS)
def test_child_of_a_killed_run_keeps_the_lock(word: str, place: Path) -> None:
    """The child goes on under the lock, and so nobody comes between; or it dies as well. The next
    `run` makes the node right."""
    with SpecNode(place) as node:
        case = Case(node)
        for dies in (False, True):
            process = node.start_in_steps("run", f"stop:@{word}")
            child = node.stopped(process)
            process.kill()
            process.wait()
            fails(node.agent("run"), 7, "another toolkit-agent")
            if dies:
                os.kill(child, signal.SIGKILL)
            node.go.touch()
            wait_until(lambda: node.agent("apply").returncode == 0)
            case.recover()


@as_root
@pytest.mark.parametrize("word", _MOMENTS)
def test_run_starts_another_child_for_a_killed_one(word: str, place: Path) -> None:
    """The one who waits starts another, which makes the node right."""
    with SpecNode(place) as node:
        case = Case(node)
        process = node.start_in_steps("run", f"kill:@{word}")
        wait_until((node.validations / statusfile.READY).exists)
        wait_until(lambda: contents(node.tree()) == case.new)
        process.terminate()
        assert node.finish(process).returncode == 0
        case.is_right()
        case.recover()


@pytest.mark.parametrize("command", ["apply", "revert"])
def test_clock_that_jumps_changes_nothing_but_the_printed_time(command: str, place: Path) -> None:
    """By years, back and forth, at each look: nothing depends on it but the time that is told."""
    with PlainNode(place) as node:
        case = Case(node)
        case.prepare(command)
        checks.done(node.in_steps(command, env={"STEPS_CLOCK": "1"}))
        if command == "apply":
            case.is_right()
            checks.done(node.in_steps("apply", env={"STEPS_CLOCK": "1"}))
            case.is_right()
        case.recover()


@as_root
@pytest.mark.parametrize("command", ["apply", "revert"])
@pytest.mark.parametrize("word", _MOMENTS)
def test_reboot_between_two_steps_is_repaired_by_apply(
    word: str, command: str, place: Path
) -> None:
    """Another boot, another runtime process, and what lay in memory is gone: the next `apply`
    makes the node right, and nothing of before is taken for ready."""
    with SpecNode(place) as node:
        case = Case(node)
        case.prepare(command)
        assert node.in_steps(command, f"kill:@{word}").returncode == -signal.SIGKILL
        for directory in (node.validations, node.cdi):
            for path in directory.iterdir():
                path.unlink()
        node.restart()
        checks.done(node.in_steps("apply", env={"STEPS_BOOT_ID": "another-boot"}))
        assert b"BOOT_ID=another-boot" in (node.ready() or b"")
        case.is_right()
        case.recover()
