"""Whatever was done to our files, a revert is possible, and `status` agrees with it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode, Refusal, fails, refuses, shows
from tests.cli.crio import make
from tests.cli.test_revert import append, versions
from tests.conformance import checks
from tests.conformance.trees import contents, touched


def conditions(node: CliNode) -> dict[str, str]:
    """What `status` says of each file that we wrote."""
    data = json.loads(node.agent("status", "-o", "json").stdout)
    return {Path(item["path"]).name: item["now"] for item in data["files"]}


@versions
def test_removed_root_file_does_not_stop_a_revert(version: str, tmp_path: Path) -> None:
    """There is nothing to restore: the rest goes, it is said, and no runtime is started without its
    settings."""
    with CliNode(tmp_path, version) as node:
        checks.done(node.agent("apply"))
        node.config.unlink()
        starts = node.supervisor.starts
        assert conditions(node)["config.toml"] == "gone"
        found = shows(node.agent("revert", "-o", "json"), "Reverted")
        assert any("removed since" in text for text in found["warnings"])
        assert not node.drop_in.exists()
        assert not node.config.exists()
        assert node.ready() is None
        assert node.supervisor.starts == starts
        assert not (node.state / "memory.json").exists()
        assert "Nothing to do" in node.agent("revert").stdout


def test_removed_imported_file_comes_back(tmp_path: Path) -> None:
    """On 1.x the owner's file is imported by name: without it no containerd starts, so that its
    original comes back."""
    with CliNode(tmp_path, "1.7.24") as node:
        site = node.etc / "site.toml"
        site.write_text("version = 2\n" + node.config.read_text().partition("\n\n")[2])
        section = f'[{node.section}.containerd]\n  default_runtime_name = "runc"\n'
        site.write_text(
            f"version = 2\n{section}[{node.section}.containerd.runtimes.runc]\n"
            '  runtime_type = "io.containerd.runc.v2"\n'
        )
        node.config.write_text(f"imports = [{json.dumps(str(site))}]\n{node.config.read_text()}")
        node.restart()
        original = site.read_bytes()
        checks.done(node.agent("apply"))
        assert site.read_bytes() != original
        site.unlink()
        checks.done(node.agent("revert"))
        assert site.read_bytes() == original
        assert set(node.settled().runtimes) == {"runc"}


def test_files_put_back_without_a_restart_still_need_one(node: CliNode) -> None:
    """The running runtime still has our handlers: it is restarted, and they are gone."""
    original = node.config.read_bytes()
    checks.done(node.agent("apply"))
    node.config.write_bytes(original)
    node.drop_in.unlink()
    assert "nvidia" in node.answer().runtimes
    assert conditions(node) == {"config.toml": "as before", "99-nvidia.toml": "gone"}
    found = shows(node.agent("revert", "-o", "json"), "Reverted")
    assert found["restarted"]
    assert set(node.settled().runtimes) == {"runc"}


def test_drop_in_repaired_by_hand_is_ours(node: CliNode) -> None:
    """Somebody took a handler out of it, and it was put in again: all of it is ours."""
    before = contents(node.tree())
    checks.done(node.agent("apply"))
    text = node.drop_in.read_text()
    node.drop_in.write_text(text.replace("nvidia-container-runtime.cdi", "somewhere-else"))
    assert conditions(node)["99-nvidia.toml"] == "edited since"
    refuses(node, Refusal(3, "--keep-edits"), commands=("revert",))
    checks.done(node.agent("apply"))
    assert conditions(node)["99-nvidia.toml"] == "as written"
    checks.done(node.agent("revert"))
    assert contents(node.tree()) == before


@pytest.mark.parametrize(
    "edit", ["\n# by the admin\n", "privileged_without_host_devices = true\n"], ids=["note", "key"]
)
def test_repaired_file_with_an_edit_stays_edited(node: CliNode, edit: str) -> None:
    """What somebody added is still in it: `status` and `revert` say the same, again and again."""
    checks.done(node.agent("apply"))
    text = node.drop_in.read_text().replace("nvidia-container-runtime.cdi", "somewhere-else")
    head, table, rest = text.partition("runtime_type")
    node.drop_in.write_text(head + edit + table + rest)
    checks.done(node.agent("apply"))
    assert edit.strip() in node.drop_in.read_text()
    assert conditions(node)["99-nvidia.toml"] == "edited since"
    refuses(node, Refusal(3, "--keep-edits"), commands=("revert", "revert"))
    checks.done(node.agent("revert", "--keep-edits"))
    assert set(node.settled().runtimes) == {"runc"}


def test_pending_change_is_no_edit(node: CliNode) -> None:
    """What waits for its restart is as we wrote it, and a revert takes it back."""
    before = contents(node.tree())
    checks.done(node.agent("apply", "--restart-mode=none"))
    assert conditions(node) == {"config.toml": "as written", "99-nvidia.toml": "as written"}
    checks.done(node.agent("revert", "--restart-mode=none"))
    assert contents(node.tree()) == before
    assert conditions(node) == {}


def test_refused_revert_keeps_the_pending_change(node: CliNode) -> None:
    """A revert that is refused takes nothing back, and publishes nothing."""
    checks.done(node.agent("apply"))
    append(node.config, "\n# by the admin\n")
    checks.done(node.agent("apply", "--set-as-default=true", "--restart-mode=none"))
    assert conditions(node) == {"config.toml": "edited since", "99-nvidia.toml": "as written"}
    tree, journal = node.tree(), (node.state / "journal.json").read_bytes()
    ready = node.ready()
    for _ in range(2):
        fails(node.agent("revert", "--restart-mode=none"), 3, "--keep-edits")
        assert touched(tree, node.tree()) == []
        assert (node.state / "journal.json").read_bytes() == journal
        assert node.ready() == ready
    checks.done(node.agent("revert", "--keep-edits"))
    assert set(node.settled().runtimes) == {"runc"}


Respell = Callable[[str], str]
ADMIN = '\n[debug]\n  level = "info" # by the admin\n\n[proxy_plugins]\n'


def _relative(text: str) -> str:
    """The import of the drop-in, from the root file's own directory."""
    (listed,) = tomllib.loads(text)["imports"]
    return text.replace(json.dumps(listed), "'./conf.d/99-nvidia*.toml'")


RESPELL: dict[str, Respell] = {
    "as written": lambda text: text,
    "relative import": _relative,
    "literal quotes": lambda text: text.replace('"', "'"),
}


@pytest.mark.parametrize("how", RESPELL)
@versions
def test_nothing_of_ours_stays_in_an_edited_root(version: str, how: str, tmp_path: Path) -> None:
    """Handlers, a default, an import, an empty table: all of it goes, the edit stays."""
    if version.startswith("1") and how == "relative import":
        pytest.skip("1.x has no import of ours")
    with CliNode(tmp_path, version, "# nothing\n") as node:
        original = node.config.read_text()
        checks.done(node.agent("apply", "--set-as-default=true"))
        node.config.write_text(RESPELL[how](node.config.read_text()) + ADMIN)
        checks.done(node.agent("revert", "--keep-edits"))
        found = node.config.read_text()
        assert tomllib.loads(found) == tomllib.loads(original + ADMIN), found
        assert "# by the admin" in found
        assert not node.drop_in.exists()
        assert set(node.settled().runtimes) == {"runc"}


def test_default_that_we_took_back_returns(tmp_path: Path) -> None:
    """Row 3 sets the default to runc where a peer's nvidia was it: that key was ours too."""
    with CliNode(tmp_path, "1.7.24") as node:
        nvidia = f"{node.section}.containerd.runtimes.nvidia"
        peer = f'[{nvidia}]\n  runtime_type = "io.containerd.runc.v2"\n'
        peer += f'[{nvidia}.options]\n  BinaryName = "/opt/{{}}"\n'
        program = node.toolkit / "nvidia-container-runtime"
        text = node.config.read_text().replace(
            f"[{node.section}.containerd]",
            f'[{node.section}.containerd]\n  default_runtime_name = "nvidia"',
        )
        if 'default_runtime_name = "nvidia"' not in text:
            text += f'\n[{node.section}.containerd]\n  default_runtime_name = "nvidia"\n'
        text += peer.replace("/opt/{}", str(program))
        node.config.write_text(text)
        node.restart()
        checks.done(node.agent("apply"))
        assert node.settled().default == "runc"
        append(node.config, ADMIN)
        checks.done(node.agent("revert", "--keep-edits"))
        assert tomllib.loads(node.config.read_text()) == tomllib.loads(text + ADMIN)


def test_default_table_stays_where_others_need_it(tmp_path: Path) -> None:
    """On 1.x our `runc` made the table of handlers; with the admin's in it, it has to stay."""
    with CliNode(tmp_path, "1.7.24", "# nothing\n") as node:
        checks.done(node.agent("apply"))
        kata = f"{node.section}.containerd.runtimes.kata"
        append(node.config, f'\n[{kata}]\n  runtime_type = "io.containerd.kata.v2"\n')
        checks.done(node.agent("revert", "--keep-edits"))
        assert set(node.settled().runtimes) == {"runc", "kata"}


def test_edited_drop_in_stays_without_our_header(node: CliNode) -> None:
    """What stays is the admin's, and does not say that we wrote it."""
    checks.done(node.agent("apply", "--set-as-default=true"))
    append(node.drop_in, ADMIN)
    checks.done(node.agent("revert", "--keep-edits"))
    text = node.drop_in.read_text()
    assert tomllib.loads(text) == tomllib.loads("version = 3\n" + ADMIN)
    assert "toolkit-agent" not in text


@pytest.mark.parametrize("command", ["apply", "apply --set-as-default=true"])
def test_nothing_of_ours_stays_in_an_edited_drop_in_of_crio(place: Path, command: str) -> None:
    """Handlers, a default and our header go; the admin's key stays in a table of its own."""
    with make(place) as node:
        before = node.answer()
        checks.done(node.agent(command))
        text = node.drop_in.read_text()
        head = "[crio.runtime]\n"
        edit = 'log_level = "info" # by the admin\n'
        text = text.replace(head, head + edit, 1) if head in text else text + "\n" + head + edit
        node.drop_in.write_text(text)
        fails(node.agent("revert"), 3, "--keep-edits")
        checks.done(node.agent("revert --keep-edits"))
        left = node.drop_in.read_text()
        assert tomllib.loads(left) == {"crio": {"runtime": {"log_level": "info"}}}
        assert "# by the admin" in left
        assert "toolkit-agent" not in left
        after = node.answer()
        assert (after.default, set(after.runtimes)) == (before.default, set(before.runtimes))


def test_status_lists_no_spec_before_the_first_apply(node: CliNode) -> None:
    """Before the first apply there is no spec of ours to list (see test_spec for those there)."""
    data = json.loads(node.agent("status", "-o", "json").stdout)
    assert data["specs"] == []
