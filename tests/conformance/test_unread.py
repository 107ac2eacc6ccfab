"""An imported file that containerd reads and we do not: it is in the way only where it matters."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from agent.errors import Refused
from agent.toml import document
from tests.conformance import checks
from tests.conformance.private_node import PrivateNode
from tests.conformance.shapes import BY_NAME
from tests.conformance.trees import contents, touched
from tests.tools.runtimes import Runtime

pytestmark = pytest.mark.real

_KEYS = "a." * 70 + "a = 1\n"  # more parts than we read
_CRI = {
    "1.6": 'plugins."io.containerd.grpc.v1.cri"',
    "1.7": 'plugins."io.containerd.grpc.v1.cri"',
    "2.1": 'plugins."io.containerd.cri.v1.runtime"',
}
_SHAPE = {"1.6": "kubeadm-v2", "1.7": "kubeadm-v2", "2.1": "kubeadm-v3"}


def _text(generation: str, more: str = "") -> str:
    version = 3 if generation == "2.1" else 2
    text = f'version = {version}\n{more}\n[plugins."io.containerd.example.v1.theirs"]\n{_KEYS}'
    with pytest.raises(Refused):
        document.parse(text.encode(), "it")
    return text


@pytest.fixture
def node(generation: str, runtime: Runtime) -> Iterator[PrivateNode]:
    with PrivateNode(runtime, BY_NAME[_SHAPE[generation]]) as found:
        yield found


def _add(node: PrivateNode, text: str, name: str = "50-theirs.toml") -> str:
    """A drop-in of somebody else's, which the running containerd has loaded."""
    directory = node.etc / "containerd"
    path = directory / "more" / name
    path.parent.mkdir()
    path.write_text(text)
    root = directory / "config.toml"
    lines = root.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("imports")]
    root.write_text(f'imports = ["{path.parent}/*.toml"]\n' + "".join(kept))
    node.restart()
    return str(path)


@pytest.mark.parametrize("generation", ["1.6", "1.7", "2.1"])
def test_unread_file_without_our_keys_is_a_warning(node: PrivateNode, generation: str) -> None:
    """A warning names it; the node is made right, is right, and comes back."""
    path = _add(node, _text(generation))
    before = contents(node.tree())
    result = node.agent("apply")
    checks.done(result)
    assert f"{path} cannot be read by this agent" in result.stdout
    again = node.agent("apply")
    checks.done(again)
    assert "Nothing to do" in again.stdout
    status = json.loads(node.agent("status", "-o", "json").stdout)
    assert status["ready"] is True
    assert any(text.startswith(path) for text in status["warnings"])
    checks.done(node.agent("revert"))
    assert contents(node.tree()) == before


@pytest.mark.parametrize("generation", ["2.1"])
def test_unread_file_with_many_mirrors_is_a_warning(node: PrivateNode, generation: str) -> None:
    """The dump that has them all is not read as a whole either."""
    above = "plugins.'io.containerd.cri.v1.images'.registry"
    mirrors = "".join(
        f'[{above}.mirrors."r{number}.example"]\nendpoint = ["https://m{number}.example"]\n'
        for number in range(5000)
    )
    path = _add(node, _text(generation, f"[{above}]\nconfig_path = ''\n{mirrors}"))
    result = node.agent("apply")
    checks.done(result)
    assert f"{path} cannot be read by this agent (it has more than" in result.stdout
    assert "Nothing to do" in node.agent("apply").stdout


def _refused(node: PrivateNode, path: str, *words: str, options: tuple[str, ...] = ()) -> None:
    before, starts = node.whole(), node.supervisor.starts
    for command in ("plan", "apply"):
        result = node.agent(command, *options)
        for word in (f"{path}: a key in it has more than 64 parts", *words):
            checks.tells(command, result, 3, word)
    paths = touched(before, node.whole())
    assert [p for p in paths if not p.startswith(("validations", "state"))] == []
    assert node.supervisor.starts == starts


@pytest.mark.parametrize("generation", ["1.6", "1.7", "2.1"])
@pytest.mark.parametrize("key", ["default_runtime_name", "runtimes"])
def test_unread_file_with_our_keys_is_refused(node: PrivateNode, generation: str, key: str) -> None:
    """The refusal names the key, because no plan can be made without it."""
    kata = f"[{_CRI[generation]}.containerd.runtimes.kata]\nruntime_type = 'io.containerd.runc.v2'"
    tables = f"{kata}\n{kata.replace('kata', 'runc')}"  # 1.x does not serve the CRI without runc
    default = f"[{_CRI[generation]}.containerd]\ndefault_runtime_name = 'kata'\n"
    path = _add(
        node, _text(generation, (default if key == "default_runtime_name" else "") + tables)
    )
    _refused(node, path, "no edit of it is needed, but it sets plugins.", ".containerd.")


@pytest.mark.parametrize("generation", ["2.1"])
def test_unread_file_that_wins_over_ours_is_refused(node: PrivateNode, generation: str) -> None:
    """It says what holds anyhow, so that its effect shows only once we want something else."""
    text = f"[{_CRI[generation]}.containerd]\ndefault_runtime_name = 'runc'"
    path = _add(node, _text(generation, text))
    ours = f"--drop-in-config={os.path.dirname(path)}/10-nvidia.toml"
    options = (ours, "--set-as-default=true")
    _refused(node, path, "it sets", "default_runtime_name", options=options)


@pytest.mark.parametrize("generation", ["1.7"])
def test_unread_file_that_hides_ours_is_refused(node: PrivateNode, generation: str) -> None:
    """containerd 1.x takes the whole section from the last file that has it: an edit of another
    file would have no effect."""
    root = node.etc / "containerd/config.toml"
    text = root.read_text()
    root.write_text(text[: text.index('  [plugins."io.containerd.grpc.v1.cri"]')])
    path = _add(node, _text(generation, f"[{_CRI[generation]}]\nmax_concurrent_downloads = 4"))
    _refused(node, path, "it sets", "containerd.runtimes")


@pytest.mark.parametrize("generation", ["1.6", "2.1"])
def test_unread_file_that_imports_others_is_refused(node: PrivateNode, generation: str) -> None:
    """What these say is not known either."""
    (node.etc / "containerd/other.toml").write_text("")
    text = f'imports = ["{node.etc}/containerd/other.toml"]'
    _refused(node, _add(node, _text(generation, text)), "it sets imports")


@pytest.mark.parametrize("generation", ["1.6", "2.1"])
def test_file_that_containerd_cannot_read_is_refused(node: PrivateNode, generation: str) -> None:
    """Neither can it start on it: it was started on something else."""
    path = _add(node, "")
    with open(path, "w", encoding="ascii") as file:
        file.write("[debug\n" + _KEYS)
    before, starts = node.whole(), node.supervisor.starts
    result = node.agent("apply")
    checks.refused(result, 3, f"use {path}: ")
    checks.refused(result, 3, "does not read it either")
    assert node.supervisor.starts == starts
    paths = touched(before, node.whole())
    assert [p for p in paths if not p.startswith(("validations", "state"))] == []


@pytest.mark.parametrize("generation", ["2.1"])
def test_unread_file_on_a_right_node_changes_nothing(node: PrivateNode, generation: str) -> None:
    """On a node that is right nothing is to be done; the dump is of the file as it lies there."""
    path = _add(node, "")
    checks.done(node.agent("apply"))
    with open(path, "w", encoding="ascii") as file:
        file.write(_text(generation))
    assert "Nothing to do" in node.agent("apply").stdout
    table = f"[{_CRI[generation]}.containerd.runtimes.kata]\nruntime_type = 'io.containerd.runc.v2'"
    with open(path, "w", encoding="ascii") as file:
        file.write(_text(generation, table))
    _refused(node, path, "it sets", "runtimes.kata")
