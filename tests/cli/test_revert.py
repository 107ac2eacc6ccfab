"""`revert` restores every byte or refuses with a remedy; foreign edits stay."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode, Refusal, fails, refuses, shows
from tests.conformance import checks
from tests.conformance.trees import contents, touched

versions = pytest.mark.parametrize("version", ["1.7.24", "2.1.9"])
_EDIT = '\n# by the admin\n[debug]\n  level = "info" # for the ticket\n'


def append(path: Path, text: str) -> None:
    """Edit a file as an admin would."""
    path.write_text(path.read_text() + text)


@versions
def test_second_revert_has_nothing_to_do(version: str, tmp_path: Path) -> None:
    """The second one finds nothing to do, and says so."""
    with CliNode(tmp_path, version) as node:
        before = node.tree()
        checks.done(node.agent("apply"))
        assert contents(node.tree()) != contents(before)
        checks.done(node.agent("revert"))
        assert contents(node.tree()) == contents(before)
        assert node.ready() is None
        was, starts = node.tree(), node.supervisor.starts
        found = shows(node.agent("revert", "-o", "json"), "Reverted")
        assert (found["changed"], found["restarted"]) == ([], False)
        assert touched(was, node.tree()) == []
        assert node.supervisor.starts == starts == 3


@versions
def test_edit_between_two_applies_needs_keep_edits(version: str, tmp_path: Path) -> None:
    """Refused, naming --keep-edits; with it our keys go, and the edit stays with its comments."""
    with CliNode(tmp_path, version) as node:
        original = node.config.read_text()
        checks.done(node.agent("apply"))
        append(node.config, _EDIT)
        checks.done(node.agent("apply", "--set-as-default=true"))
        assert node.settled().default == "nvidia"
        refuses(node, Refusal(3, "--keep-edits"), commands=("revert", "revert"))

        checks.done(node.agent("revert", "--keep-edits"))
        found = node.config.read_text()
        assert tomllib.loads(found) == tomllib.loads(original + _EDIT)
        assert _EDIT in found
        assert not node.drop_in.exists()
        answer = node.settled()
        assert (answer.default, set(answer.runtimes)) == ("runc", {"runc"})
        assert answer.cdi is (version != "1.7.24")
        assert node.ready() is None
        assert list((node.state / "originals").iterdir()) == []


@versions
def test_edit_after_apply_needs_keep_edits(version: str, tmp_path: Path) -> None:
    """The same where nothing of ours was written after the edit."""
    with CliNode(tmp_path, version) as node:
        original = node.config.read_text()
        checks.done(node.agent("apply"))
        append(node.config, _EDIT)
        refuses(node, Refusal(3, str(node.config)), commands=("revert",))
        checks.done(node.agent("revert", "--keep-edits"))
        assert tomllib.loads(node.config.read_text()) == tomllib.loads(original + _EDIT)
        assert set(node.settled().runtimes) == {"runc"}


def test_edit_that_was_taken_back_does_not_count(node: CliNode) -> None:
    """Bytes as we wrote them are nobody's edit."""
    before = contents(node.tree())
    checks.done(node.agent("apply"))
    text = node.config.read_text()
    append(node.config, _EDIT)
    node.config.write_text(text)
    checks.done(node.agent("revert"))
    assert contents(node.tree()) == before


def test_files_put_back_by_hand_leave_nothing_to_revert(node: CliNode) -> None:
    """There is nothing left to change, but the node is no longer ready, and all is forgotten."""
    before, original = contents(node.tree()), node.config.read_bytes()
    checks.done(node.agent("apply"))
    node.config.write_bytes(original)
    node.drop_in.unlink()
    node.restart()
    starts = node.supervisor.starts
    checks.done(node.agent("revert"))
    assert node.ready() is None
    assert contents(node.tree()) == before
    assert not (node.state / "memory.json").exists()
    assert node.supervisor.starts == starts


def test_foreign_key_in_our_drop_in_stays(node: CliNode) -> None:
    """A key that the admin put into our drop-in stays there; without --keep-edits it is refused."""
    checks.done(node.agent("apply"))
    append(node.drop_in, f"\n[{node.section}.cni]\nconf_dir = '/srv/cni' # ours\n")
    refuses(node, Refusal(3, str(node.drop_in)), commands=("revert",))
    checks.done(node.agent("revert", "--keep-edits"))
    text = node.drop_in.read_text()
    assert "conf_dir = '/srv/cni' # ours" in text
    assert "nvidia-container-runtime" not in text
    answer = node.settled()
    assert set(answer.runtimes) == {"runc"}
    assert answer.config["cni"]["confDir"] == "/srv/cni", "it was in force, and it stays so"


def test_removed_drop_in_does_not_stop_a_revert(node: CliNode) -> None:
    """A drop-in that somebody removed already does not stand in the way."""
    before = contents(node.tree())
    checks.done(node.agent("apply"))
    node.drop_in.unlink()
    checks.done(node.agent("revert"))
    assert contents(node.tree()) == before


def test_drop_in_imported_by_name_stays_emptied(tmp_path: Path) -> None:
    """A file that is imported by name stays, emptied: without it containerd does not start."""
    with CliNode(tmp_path) as node:
        site = node.etc / "site.toml"
        site.write_text("version = 3\n")
        node.config.write_text(f"imports = [{json.dumps(str(site))}]\n{node.config.read_text()}")
        original = node.config.read_bytes()
        checks.done(node.agent("apply"))
        site.write_text(f"version = 3\nimports = [{json.dumps(str(node.drop_in))}]\n")
        checks.done(node.agent("revert"))
        assert node.config.read_bytes() == original
        assert tomllib.loads(node.drop_in.read_text()) == {}
        assert set(node.settled().runtimes) == {"runc"}
        node.restart()
        assert node.answer().ready


def test_revert_is_refused_while_pods_use_a_handler(node: CliNode) -> None:
    """Refused while there are any, listing them; others do not matter, nor do dead ones."""
    checks.done(node.agent("apply"))
    others = [{"name": "web", "namespace": "shop"}, {"name": "dns", "handler": "runc"}]
    train = {"name": "train-0", "namespace": "ml", "handler": "nvidia"}
    done = {"name": "job-1", "namespace": "ml", "handler": "nvidia-cdi", "ready": False}
    node.script(pods=[*others, train, done])
    refuses(node, Refusal(3, "ml/train-0 (nvidia)"), commands=("revert", "revert"))
    result = node.agent("revert")
    assert "web" not in result.stderr
    assert "job-1" not in result.stderr
    node.script(pods=[*others, done])
    checks.done(node.agent("revert"))
    assert set(node.settled().runtimes) == {"runc"}


def test_revert_that_is_not_proven_is_undone(node: CliNode) -> None:
    """A revert that cannot be proven is undone: exit 5, and the node works and is ready again."""
    checks.done(node.agent("apply", "--set-as-default=true"))
    right, ready = contents(node.tree()), node.ready()
    node.script(die_when={"default": "runc"})
    fails(node.agent("revert", "--proof-timeout=2"), 5)
    assert contents(node.tree()) == right
    assert node.answer().default == "nvidia"
    assert node.ready() == ready
    node.script()
    checks.done(node.agent("revert"))
    assert set(node.settled().runtimes) == {"runc"}


def test_revert_with_an_unreachable_runtime_exits_with_4(node: CliNode) -> None:
    """Exit 4, and the files stay: what cannot be proven is not undone."""
    checks.done(node.agent("apply"))
    before = node.tree()
    node.script(unimplemented=True)
    fails(node.agent("revert"), 4, str(node.socket))
    assert touched(before, node.tree()) == []


def test_originals_can_be_put_back_by_hand(node: CliNode) -> None:
    """What README.md says: originals lie under the digests that memory.json names."""
    before = contents(node.tree())
    checks.done(node.agent("apply"))
    files = json.loads((node.state / "memory.json").read_text())["files"]
    assert set(files) == {str(node.config), str(node.drop_in)}
    for name, known in files.items():
        if known["digest"] is None:
            Path(name).unlink()
        else:
            Path(name).write_bytes((node.state / "originals" / known["digest"]).read_bytes())
    node.drop_in.parent.rmdir()
    assert contents(node.tree()) == before
    node.restart()
    shutil.rmtree(node.state)
    for path in node.validations.iterdir():
        path.unlink()
    checks.done(node.agent("plan"), 1)
    checks.done(node.agent("apply"))
    assert node.ready()
