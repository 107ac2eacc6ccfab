"""A garbled file of ours is written anew by `apply` and `run`, and removed by `revert`."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode, fails, shows
from tests.cli.crio import make
from tests.cli.daemon import running
from tests.conformance import checks
from tests.conformance.trees import contents
from tests.doubles.crio.crio_node import CrioNode

Garble = Callable[[Path], None]


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\nx = [\n")


def _binary(path: Path) -> None:
    path.write_bytes(bytes(range(128, 256)) * 4)


def _marked(path: Path) -> None:
    """containerd 2.x does not start on a byte order mark."""
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def _wrong_types(path: Path) -> None:
    path.write_text('imports = 3\nplugins = "x"\ncrio = 1\n')


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("not-there.toml")


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _open_to_all(path: Path) -> None:
    path.chmod(0o666)


WAYS: dict[str, Garble] = {
    "appended": _append,
    "binary": _binary,
    "byte order mark": _marked,
    "wrong types": _wrong_types,
    "emptied": _emptied,
    "link": _link,
    "directory": _directory,
    "writable by all": _open_to_all,
}

ConfiguredRuntime = CliNode | CrioNode


@contextmanager
def applied(kind: str, place: Path) -> Iterator[tuple[ConfiguredRuntime, Path]]:
    """A node on which all is right, and the file that we made."""
    if kind == "crio":
        with make(place) as crio:
            checks.done(crio.agent("apply"))
            yield crio, crio.drop_in
        return
    with CliNode(place, kind) as node:
        if kind.startswith("1"):  # on 1.x the root file is ours where there was none
            pytest.skip("1.x has no drop-in of ours")
        checks.done(node.agent("apply"))
        yield node, node.drop_in


kinds = pytest.mark.parametrize("kind", ["2.1.9", "crio"])


@kinds
@pytest.mark.parametrize("way", WAYS)
def test_garbled_file_is_written_anew_without_a_restart(kind: str, way: str, place: Path) -> None:
    """The same bytes and mode, no restart, and the node stays ready; a plan shows it before."""
    with applied(kind, place) as (node, file):
        before, ready = contents(node.tree()), node.ready()
        pid = node.supervisor.pid
        WAYS[way](file)
        garbled = contents(node.tree())
        plan = node.agent("plan", "-o", "json")
        if way != "link":
            changes = shows(plan, "Plan", 1)["changes"]
            assert [item["path"] for item in changes] == [str(file)]
        shown = json.loads(node.agent("status", "-o", "json").stdout)
        assert not shown["ready"]
        assert contents(node.tree()) == garbled
        data = shows(node.agent("apply", "-o", "json"), "Outcome")
        assert data["changed"] == [str(file)]
        assert not data["restarted"]
        assert contents(node.tree()) == before
        assert node.ready() == ready
        assert node.supervisor.pid == pid
        assert "Nothing to do" in node.agent("apply").stdout


@kinds
@pytest.mark.parametrize("way", ["appended", "link", "emptied"])
def test_revert_removes_a_garbled_file(kind: str, way: str, place: Path) -> None:
    """It is ours: nothing of it is anybody's edit."""
    with applied(kind, place) as (node, file):
        WAYS[way](file)
        checks.done(node.agent("revert"))
        assert not os.path.lexists(file)
        assert node.ready() is None
        assert "nvidia" not in node.answer().runtimes


def test_garbled_file_is_written_anew_while_the_runtime_is_down(node: CliNode) -> None:
    """It ends, and does not come back for that file, until it is written anew."""
    checks.done(node.agent("apply"))
    ready = node.ready()
    _append(node.drop_in)
    starts = node.supervisor.starts
    node.supervisor.send(signal.SIGTERM)
    assert node.supervisor.wait_until(lambda s: s.starts > starts + 1), "it dies at each start"
    result = node.agent("apply", "--proof-timeout=20")
    checks.done(result)
    assert "rewritten" in result.stderr
    assert "nvidia" in node.answer().runtimes
    assert node.ready() == ready


def test_run_writes_a_garbled_file_anew_within_2_seconds(node: CliNode) -> None:
    """Within two seconds of the kernel's report."""
    with running(node) as daemon:
        ready = node.validations / "toolkit-ready"
        daemon.until(ready.exists)
        text = node.drop_in.read_bytes()
        pid = node.supervisor.pid
        _append(node.drop_in)
        daemon.until(lambda: node.drop_in.read_bytes() == text)
        daemon.until(ready.exists)
        assert node.supervisor.pid == pid
        daemon.end()


def test_garbled_root_file_of_ours_is_written_anew(tmp_path: Path) -> None:
    """A node without a root file got one from us: it is ours in the same way."""
    with CliNode(tmp_path) as node:
        checks.done(node.agent("apply"))
        memory = json.loads((node.state / "memory.json").read_text())
        assert memory["files"][str(node.config)]["digest"] is not None, "this one is the admin's"
        _append(node.config)
        fails(node.agent("apply"), 3, "not valid TOML")


def test_directory_with_foreign_files_stays(node: CliNode) -> None:
    """What somebody keeps there is not removed."""
    checks.done(node.agent("apply"))
    _directory(node.drop_in)
    (node.drop_in / "theirs").touch()
    fails(node.agent("apply"), 3, str(node.drop_in))
    assert (node.drop_in / "theirs").exists()


def test_garbled_file_without_a_kept_copy_is_planned_anew(node: CliNode) -> None:
    """An older version kept none: the file goes, and is planned afresh."""
    checks.done(node.agent("apply"))
    text = node.drop_in.read_bytes()
    memory = json.loads((node.state / "memory.json").read_text())
    for known in memory["files"].values():
        del known["text"]
    (node.state / "memory.json").write_text(json.dumps(memory))
    _append(node.drop_in)
    checks.done(node.agent("apply"))
    assert node.drop_in.read_bytes() == text
