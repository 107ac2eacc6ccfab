"""CRI-O gets handlers or a hook, restarts once, and never reads half of a drop-in."""

from __future__ import annotations

import itertools
import json
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.cli_node import fails, shows
from tests.cli.crio import CONFIG_MODE, HOOK_BINARY, NAMES, OFF, make, restarts
from tests.conformance import statusfile
from tests.conformance.trees import touched
from tests.doubles.crio.crio_node import CrioNode
from tests.doubles.crio.generation import VERSIONS
from tests.sampling import sampled_params
from tests.tools.watch import DirectoryWatch

HANDLER = "crio.runtime.runtimes.nvidia"


@pytest.fixture
def node(place: Path) -> Iterator[CrioNode]:
    """A running CRI-O of today, on which nothing was applied yet."""
    with make(place) as node:
        yield node


def published(node: CrioNode) -> dict[str, str]:
    """Return what the device plugin is told."""
    ready = node.ready()
    assert ready is not None
    return dict(statusfile.parse(ready.decode()))


def handlers(node: CrioNode) -> dict[str, Any]:
    """Return the handlers of our drop-in."""
    data = tomllib.loads(node.drop_in.read_text())
    found: dict[str, Any] = data["crio"]["runtime"]["runtimes"]
    return found


@pytest.mark.parametrize("version", sampled_params(VERSIONS, 2, "CRI-O"))
def test_apply_adds_the_handlers_and_revert_removes_them(place: Path, version: str) -> None:
    """Handlers come with a restart and go with one; the directory is whole at every moment."""
    with make(place, version) as node:
        before = node.tree()
        with DirectoryWatch(node.drop_ins) as watch:
            data = shows(node.agent("apply", "-o", "json"), "Outcome")
        assert data["decision"]["row"] == (6 if version.startswith("1.23") else 8)
        assert data["restarted"]
        assert data["changed"] == [str(node.toolkit), str(node.drop_in)]
        assert watch.strange([node.drop_in.read_bytes()]) == []
        assert watch.names == {node.drop_in.name}
        answer = node.answer()
        assert answer.runtimes.keys() >= NAMES
        assert answer.default == ("nvidia" if version.startswith("1.23") else answer.default)
        values = published(node)
        field = version >= "1.28"
        assert values["TOOLKIT_CRI_CDI_FIELD"] == ("true" if field else "false")
        assert values["DEVICE_LIST_STRATEGY"] == ("cdi-cri" if field else "cdi-annotations")
        after, number = node.tree(), restarts(node)
        assert shows(node.agent("apply", "-o", "json"), "Outcome")["changed"] == []
        assert (touched(after, node.tree()), restarts(node)) == ([], number)
        with DirectoryWatch(node.drop_ins) as watch:
            shows(node.agent("revert", "-o", "json"), "Reverted")
        assert watch.names == {node.drop_in.name}
        assert node.tree().keys() == before.keys()
        assert not NAMES & node.answer().runtimes.keys()
        assert node.ready() is None


def test_everything_is_inherited_from_the_default(node: CrioNode) -> None:
    """Also from a default of the admin's, but for what makes a handler its own."""
    (node.drop_ins / "50-site.conf").write_text(
        '[crio.runtime]\ndefault_runtime = "site"\n[crio.runtime.runtimes.site]\n'
        f'runtime_path = "{node.bin}/runc"\nruntime_root = "/run/site"\n'
        f'monitor_path = "{node.bin}/conmon"\nallowed_annotations = ["io.containers.trace-syscall"]'
        "\nprivileged_without_host_devices = true\n"
    )
    node.restart()
    shows(node.agent("apply", "-o", "json"), "Outcome")
    assert handlers(node)["nvidia-legacy"] == {
        "runtime_path": str(node.toolkit / "nvidia-container-runtime.legacy"),
        "runtime_type": "oci",
        "runtime_root": "/run/site",
        "monitor_path": f"{node.bin}/conmon",
        "allowed_annotations": ["io.containers.trace-syscall"],
        "privileged_without_host_devices": True,
    }
    assert node.answer().default == "site"


@pytest.mark.parametrize("text", ['runtime_path = "/opt/other"', 'runtime_root = "/run/other"'])
def test_a_later_file_that_undoes_it_is_edited(node: CrioNode, text: str) -> None:
    """Where it stands, and in our keys alone; its bytes come back."""
    late = node.drop_ins / "99-z.bak"
    whole = f'# by hand\n[crio.runtime]\nlog_level = "debug" # loud\n[{HANDLER}]\n{text}\n'
    late.write_text(whole)
    shows(node.agent("apply", "-o", "json"), "Outcome")
    edited = late.read_text()
    assert edited.startswith('# by hand\n[crio.runtime]\nlog_level = "debug" # loud\n')
    assert NAMES & handlers(node).keys() == NAMES - {"nvidia"}
    assert node.answer().runtimes["nvidia"]["runtime_path"].startswith(str(node.toolkit))
    assert shows(node.agent("apply", "-o", "json"), "Outcome")["changed"] == []
    assert (late.read_text(), restarts(node)) == (edited, 1)
    shows(node.agent("revert", "-o", "json"), "Reverted")
    assert late.read_text() == whole


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (".99-nvidia.conf.tmp", "[crio", "not valid TOML"),
        ("sub/10.conf", "crio = 1\n", "crio is not a table"),
        ("10.conf", '[crio.runtime]\ndefault_runtime = "none"\n', "default_runtime is none"),
    ],
)
def test_files_on_which_it_would_not_start_are_refused(
    node: CrioNode, name: str, text: str, says: str
) -> None:
    """Whatever the name: CRI-O reads it."""
    path = node.drop_ins / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    fails(node.agent("apply"), 3, says)
    assert restarts(node) == 0


def test_what_was_only_reloaded_is_restarted(node: CrioNode) -> None:
    """Status shows handlers after a SIGHUP, and no pod gets them."""
    done = node.agent("plan", "-o", "json")
    diff = json.loads(done.stdout)["changes"][0]["diff"]
    text = "\n".join(line[1:] for line in diff.splitlines()[3:] if line.startswith("+"))
    # An environment is no key of ours: the diff hides it.
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    text = text.replace("monitor_env = …", f'monitor_env = ["PATH={path}"]')
    pid = node.supervisor.pid
    # A process that is older than the file by more than clocks are off.
    assert node.supervisor.wait_until(lambda _: _age(pid) > 1)
    node.drop_in.write_text(text)
    node.supervisor.send(signal.SIGHUP)
    assert node.supervisor.wait_until(lambda _: node.ask().runtimes.keys() >= NAMES)
    data = shows(node.agent("plan", "-o", "json"), "Plan", 1)
    assert [Path(item["path"]).name for item in data["changes"]] == ["config.toml"]
    assert "only have reloaded" in data["restart"]["because"][0]
    shows(node.agent("apply", "-o", "json"), "Outcome")
    assert restarts(node) == 1
    node.remove_pod(node.run_pod("p", "nvidia"))
    node.drop_in.touch()
    assert shows(node.agent("apply", "-o", "json"), "Outcome")["restarted"] is False


def _age(pid: int | None) -> float:
    import time

    from agent.cri.process import inspect, start_moment

    found = inspect(pid or 0, "/proc")
    return time.time() - start_moment(found) if found else 0.0


def test_a_signal_is_refused(node: CrioNode) -> None:
    """CRI-O would stay dead."""
    before = node.tree()
    fails(node.agent("apply", "--restart-mode=signal"), 3, "--restart-mode=systemd")
    assert touched(before, node.tree()) == []


def test_reload_is_not_taken_for_a_restart(node: CrioNode) -> None:
    """Files are written; a reload is no restart, and is not taken for one."""
    option = "--restart-mode=none"
    assert shows(node.agent("apply", option, "-o", "json"), "Outcome")["pending"] is True
    node.supervisor.send(signal.SIGHUP)
    assert node.supervisor.wait_until(lambda _: node.ask().runtimes.keys() >= NAMES)
    assert shows(node.agent("apply", option, "-o", "json"), "Outcome")["pending"] is True
    assert node.ready() is None
    node.restart()
    shows(node.agent("apply", option, "-o", "json"), "Outcome")
    assert published(node)["TOOLKIT_NATIVE_CDI"] == "true"


def test_a_runtime_that_dies_of_it_gets_its_files_back(node: CrioNode) -> None:
    """The directory is whole all the time, also while it is undone."""
    before = node.tree()
    node.script(die_when={"handler": "nvidia"})
    with DirectoryWatch(node.drop_ins) as watch:
        result = node.agent("apply")
    node.script()
    fails(result, 5, "cannot apply")
    assert {len(seen) for seen in watch.contents.values()} == {1}
    assert watch.names == {node.drop_in.name}
    assert node.tree().keys() == before.keys()
    assert not NAMES & node.answer().runtimes.keys()


@pytest.mark.parametrize("command", ["revert", f"apply {OFF}"])
def test_handlers_of_running_pods_stay(node: CrioNode, command: str) -> None:
    """Nobody could stop these pods any more."""
    shows(node.agent("apply", "-o", "json"), "Outcome")
    pod = node.run_pod("train", "nvidia")
    before = node.tree()
    fails(node.agent(command), 3, "default/train (nvidia)")
    assert touched(before, node.tree()) == []
    node.remove_pod(pod)
    assert node.agent(command).returncode == 0


def test_foreign_file_at_our_place_is_edited_and_comes_back(node: CrioNode) -> None:
    """It is edited where it stands, comments and all, and comes back byte for byte."""
    text = (
        '# by hand\n[crio.runtime]\nlog_level = "debug" # loud\n'
        '[crio.runtime.runtimes.nvidia]\nruntime_path = "/usr/bin/nvidia-container-runtime"\n'
    )
    node.drop_in.write_text(text)
    node.drop_in.chmod(0o600)
    shows(node.agent("apply", "-o", "json"), "Outcome")
    edited = node.drop_in.read_bytes()
    assert b"# loud" in edited
    assert handlers(node)["nvidia"]["runtime_path"].startswith(str(node.toolkit))
    with DirectoryWatch(node.drop_ins) as watch:
        shows(node.agent("revert", "-o", "json"), "Reverted")
    assert node.drop_in.read_text() == text
    assert node.drop_in.stat().st_mode & 0o777 == 0o600
    assert watch.strange([edited, text.encode()]) == []
    assert [path.name for path in node.etc.iterdir()].count("crio.conf") == 1
    assert {path.name for path in node.etc.iterdir()} == {"crio.conf", "crio.conf.d"}


def test_an_edit_of_ours_is_not_overwritten(node: CrioNode) -> None:
    """--keep-edits takes our keys out."""
    shows(node.agent("apply", "-o", "json"), "Outcome")
    node.drop_in.write_text(node.drop_in.read_text() + '\n[crio.image]\npause_image = "p:1"\n')
    fails(node.agent("revert"), 3, "--keep-edits")
    shows(node.agent("revert", "--keep-edits", "-o", "json"), "Reverted")
    assert tomllib.loads(node.drop_in.read_text()) == {"crio": {"image": {"pause_image": "p:1"}}}


def test_hook_replaces_the_handlers_without_a_restart(node: CrioNode) -> None:
    """CDI off: a hook and nothing else; no restart, and the plugin knows that there is no class."""
    before = node.tree()
    data = shows(node.agent("apply", OFF, "-o", "json"), "Outcome")
    assert (data["decision"]["row"], data["restarted"]) == (2, False)
    assert touched(before, node.tree()) == []
    hook = node.hooks / "oci-nvidia-hook.json"
    path = str(node.toolkit / HOOK_BINARY)
    assert json.loads(hook.read_text()) == {
        "version": "1.0.0",
        "hook": {
            "path": path,
            "args": [HOOK_BINARY, "prestart"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:"
                + str(node.toolkit)
            ],
        },
        "when": {"always": True, "commands": [".*"]},
        "stages": ["prestart"],
    }
    values = published(node)
    assert values["TOOLKIT_RUNTIME_NAME"] == ""
    assert values["TOOLKIT_RUNTIME_MODE"] == "hook"
    assert values["DEVICE_LIST_STRATEGY"] == "envvar"
    assert "CDI_ANNOTATION_PREFIX" not in values
    assert shows(node.agent("apply", OFF, "-o", "json"), "Outcome")["changed"] == []
    shows(node.agent("revert", "-o", "json"), "Reverted")
    assert list(node.hooks.iterdir()) == []
    assert restarts(node) == 0


def test_a_hooks_directory_that_is_not_read_is_refused(node: CrioNode) -> None:
    """A hook there would do nothing, and nobody would know why."""
    other = node.directory / "other"
    other.mkdir()
    result = node.agent("apply", OFF, f"--hooks-dir={other}")
    fails(result, 3, str(other), str(node.hooks))
    assert list(other.iterdir()) == []


def test_a_drop_in_that_is_not_read_is_refused(node: CrioNode) -> None:
    """So is a handler without its program, and a hook without."""
    fails(node.agent("apply", f"--drop-in-config={node.etc}/99.conf"), 3, str(node.drop_ins))
    (node.toolkit / HOOK_BINARY).unlink()
    fails(node.agent("apply", OFF), 3, HOOK_BINARY)


def test_a_replaced_drop_in_is_whole(node: CrioNode) -> None:
    """For a moment there are two names, both with bytes that were or will be there."""
    shows(node.agent("apply", "-o", "json"), "Outcome")
    old = node.drop_in.read_bytes()
    with DirectoryWatch(node.drop_ins) as watch:
        shows(node.agent("apply", OFF, CONFIG_MODE, "-o", "json"), "Outcome")
    assert watch.strange([old, node.drop_in.read_bytes()]) == []
    assert len(watch.names) == 2
    node.script(die_when={"default": "crun"})
    old = node.drop_in.read_bytes()
    with DirectoryWatch(node.drop_ins) as watch:
        fails(node.agent("apply"), 5, "cannot apply")
    node.script()
    assert node.drop_in.read_bytes() == old
    assert {data for seen in watch.contents.values() for data in seen} >= {old}
    assert not watch.directories


def test_a_root_file_that_it_does_not_read_has_no_say(node: CrioNode) -> None:
    """gpu-operator names one; the process behind the socket says what it was started with."""
    option = "--config=/runtime/config-dir/config.toml"
    data = shows(node.agent("plan", option, "-o", "json"), "Plan", 1)
    assert data["runtime"]["config"] == str(node.config)


def test_a_hook_that_was_edited_is_left(node: CrioNode) -> None:
    """It is refused to overwrite it, and in a row without hooks it is named."""
    shows(node.agent("apply", OFF, "-o", "json"), "Outcome")
    (hook,) = node.hooks.iterdir()
    hook.write_text("{}")
    fails(node.agent("revert"), 3, "--keep-edits")
    data = shows(node.agent("apply", "-o", "json"), "Outcome")
    assert [text for text in data["warnings"] if str(hook) in text]
    shows(node.agent("revert", "--keep-edits", "-o", "json"), "Reverted")
    assert hook.read_text() == "{}"
    assert not node.drop_in.exists()


ROWS = {
    "8": (),
    "1": (OFF, CONFIG_MODE),
    "2": (OFF,),
    "6": ("--native-cdi=false",),
}


# Each row follows each other one once.
TOUR = ("8", "1", "8", "2", "8", "6", "1", "2", "1", "6", "2", "6", "8")


def test_each_row_undoes_the_row_before(node: CrioNode) -> None:
    """From each row to each other: what the first one left is gone, and the default is back."""
    assert len({*itertools.pairwise(TOUR)}) == len(ROWS) * (len(ROWS) - 1)
    for row in TOUR:
        data = shows(node.agent("apply", *ROWS[row], "-o", "json"), "Outcome")
        assert data["decision"]["row"] == int(row)
        hook, used = row == "2", row in ("1", "6")
        assert [path.name for path in node.hooks.iterdir()] == (
            ["oci-nvidia-hook.json"] if hook else []
        )
        assert [path.name for path in node.drop_ins.iterdir()] == (
            [] if hook else [node.drop_in.name]
        )
        answer = node.answer()
        assert answer.runtimes.keys() & NAMES == (set() if hook else NAMES)
        assert answer.default == ("nvidia" if used else "crun")
        values = published(node)
        assert values["TOOLKIT_RUNTIME_NAME"] == ("" if hook else "nvidia")
        assert values["TOOLKIT_RUNTIME_IS_DEFAULT"] == str(used).lower()
    shows(node.agent("revert", "-o", "json"), "Reverted")
    assert [*node.hooks.iterdir(), *node.drop_ins.iterdir()] == []
    assert node.answer().default == "crun"


def test_setting_behind_the_last_handler_does_not_stop_an_apply(place: Path) -> None:
    """Once handlers are shown, such a setting looks like one of the last handler's."""
    with make(place) as node:
        (node.drop_ins / "10-site.conf").write_text('[crio.runtime]\ntimezone = "Local"\n')
        node.restart()
        data = shows(node.agent("apply", "-o", "json"), "Outcome")
        assert data["restarted"] is True
        shown = tomllib.loads(node.crio("config").stdout)["crio"]["runtime"]
        assert "timezone" not in shown
        assert shown["runtimes"].keys() >= NAMES
        assert node.agent("revert").returncode == 0
        assert not NAMES & node.answer().runtimes.keys()
